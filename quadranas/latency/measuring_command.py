"""The command of a device file: a program that times a model file, and how its output is read."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from quadranas.latency.runtimes import RUNTIMES, check_name
from quadranas.validation import Frozen

NAME = "command"
"""The runtime whose devices have a command."""

SIZES = {"s": 1e3, "ms": 1.0, "us": 1e-3, "ns": 1e-6}
"""The units of reported times, in milliseconds."""

UNIT = "unit"
"""Name of the group of a pattern that finds the unit."""

PLACEHOLDERS = {
    "file": "path of the model file",
    "name": "its name without folder",
    "folder": "folder for files that the command writes",
    "input": "path of a file with the input",
    "output": "path of the file that the command writes its output to",
    "shape": "sizes of the input as in 1,3,224,224; {shape:x} gives 1x3x224x224",
    "batch": "number of images per call",
    "repeats": "number of calls to time",
    "threads": "number of threads of the device",
    "precision": "precision of the device",
}
"""What can stand in braces in an argument."""

PLACEHOLDER = re.compile(r"\{([a-z_]+)(?::([^{}]*))?\}")
"""A placeholder; other braces are ordinary characters."""

Arguments = Annotated[tuple[str, ...], Field(min_length=1), AfterValidator(lambda a: _checked(a))]
"""A command as a list of arguments with placeholders; it never passes through a shell."""

Unit = Literal["s", "ms", "us", "ns"]
FileFormat = Annotated[
    str, AfterValidator(lambda name: check_name("format", name, RUNTIMES[NAME].runs))
]


INDEX = re.compile(r"-?[0-9]{1,9}")


class ReportedTimes(Frozen):
    """How the times are read from what a command prints.

    Args:
        unit: unit of the reported times: s, ms, us or ns; `None` if the pattern finds it.
        pattern: regular expression with one group, the number, and for a program that chooses its
            unit a second one named `unit`, as in `(?P<unit>us|ms|s)`; every match is one time.
        json_path: instead of a pattern, the place of the times in a JSON text: keys and indices
            separated by dots, `*` for all, as in `runs.*.latency`.
        file: file that the command writes its times to, with placeholders; `None` if it prints
            them.
    """

    unit: Unit | None = None
    pattern: str | None = None
    json_path: str | None = None
    file: str | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.pattern is None) == (self.json_path is None):
            raise ValueError("set either pattern or json_path, not both")
        names = self._names() if self.pattern is not None else {}
        if (self.unit is None) != (UNIT in names):
            raise ValueError(
                f"the unit of the times must be said once: by the key unit ({', '.join(SIZES)}), "
                "or by a group (?P<unit>...) of the pattern"
            )
        if self.file is not None:
            _checked((self.file,))
        return self

    def _names(self) -> Mapping[str, int]:
        """The named groups of the pattern, whose groups are checked."""
        try:
            compiled = re.compile(self.pattern or "")
        except re.error as error:
            raise ValueError(f"pattern is not a regular expression: {error}") from error
        if compiled.groups - (UNIT in compiled.groupindex) != 1:
            raise ValueError(
                f"pattern needs exactly one group besides that of the unit, the number, but has "
                f"{compiled.groups}; write (?:...) for a group that is not the number"
            )
        return compiled.groupindex

    @property
    def unit_text(self) -> str:
        """The unit, for messages."""
        return self.unit or "the unit that it prints"

    def read_ms(self, text: str) -> list[float]:
        """The times in a text, in milliseconds; empty if there are none.

        Raises:
            ValueError: what is found is not a number.
        """
        if self.pattern is not None:
            return [self._matched_ms(match) for match in re.finditer(self.pattern, text, re.M)]
        assert self.json_path is not None
        assert self.unit is not None
        found = _values(_json_in(text), self.json_path.split("."))
        return [_number(value) * SIZES[self.unit] for value in found]

    def _matched_ms(self, match: re.Match[str]) -> float:
        own = match.re.groupindex.get(UNIT)
        number = next(match[i] for i in range(1, match.re.groups + 1) if i != own)
        unit = self.unit or match[UNIT]
        if unit not in SIZES:
            raise ValueError(f"{unit!r} is no unit; accepted: {', '.join(SIZES)}")
        return _number(number) * SIZES[unit]


class MeasuringCommand(Frozen):
    """A program that times a model file on a device, and how it is called.

    Commands are obeyed only with `--allow-commands`. Placeholders and examples are described in
    `docs/how-to/any-device.md`.

    Args:
        tool: name and version of the program, recorded in the tables; tables of different tools
            are not mixed.
        format: format of the model file: `onnx`, `openvino`, `torch`, `executorch` or
            `litert`.
        run: the command that times a file, as a list of arguments; omit for a device that is
            measured by hand.
        times: how the times are read; required with `run`.
        setup: command that runs once for every file before it is timed.
        precision: precision that the command runs networks in; must be the device's.
        opset: ONNX opset of the file; `None` for the format's default.
        input_file: format of the file with the input: `npy`, or `raw` for float32 alone.
        output_file: format of the file with the output, `npy` or `raw`, to compare numbers with;
            `None` if the command writes none.
        timeout_seconds: time limit of every command in seconds.
        plausible_factor: largest accepted ratio of a reported latency to the estimate of the
            analytic model, and of the estimate to it.
        on_this_machine: the command runs networks on this machine; it is then pinned to as many
            cores as the device has threads.
    """

    tool: str = Field(min_length=1, max_length=200)
    format: FileFormat
    run: Arguments | None = None
    times: ReportedTimes | None = None
    setup: Arguments | None = None
    precision: str = "fp32"
    opset: int | None = None
    input_file: Literal["npy", "raw"] = "npy"
    output_file: Literal["npy", "raw"] | None = None
    timeout_seconds: float = Field(default=300.0, gt=0, le=86_400)
    plausible_factor: float = Field(default=100.0, gt=1, le=1e9)
    on_this_machine: bool = False

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.run is None) != (self.times is None):
            raise ValueError("run and times must both be set, or neither")
        if self.run is None and self.setup is not None:
            raise ValueError("setup needs run")
        arguments = " ".join((*(self.run or ()), *(self.setup or ())))
        if self.run is not None and "{file}" not in arguments and "{name}" not in arguments:
            raise ValueError("run or setup needs an argument with {file}, the model file")
        return self

    @property
    def settings(self) -> dict[str, str]:
        """The settings that affect its times, for the conditions of a measurement."""
        given = {"run": self.run, "setup": self.setup, "times": self.times}
        texts = {key: _text(value) for key, value in given.items() if value is not None}
        return {"format": self.format, **texts}


def filled(arguments: Sequence[str], values: Mapping[str, object]) -> list[str]:
    """Arguments with their placeholders replaced; `values` are by placeholder."""

    def value(match: re.Match[str]) -> str:
        found = values[match[1]]
        if isinstance(found, tuple):
            return (match[2] or ",").join(map(str, found))
        return str(found)

    return [PLACEHOLDER.sub(value, argument) for argument in arguments]


def _checked(arguments: tuple[str, ...]) -> tuple[str, ...]:
    for argument in arguments:
        if "\0" in argument:
            raise ValueError("an argument cannot contain a null character")
        for match in PLACEHOLDER.finditer(argument):
            check_name("placeholder", match[1], PLACEHOLDERS)
    return arguments


def _text(value: object) -> str:
    if isinstance(value, ReportedTimes):
        return json.dumps(value.model_dump(exclude_none=True), sort_keys=True)
    return json.dumps(value)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"{value!r} is not a number")
    return float(value)


def _json_in(text: str) -> Any:
    """The JSON text itself, or the last line of a text that is JSON."""
    for part in (text, *reversed(text.splitlines())):
        if part.lstrip()[:1] in ("{", "["):
            try:
                return json.loads(part)
            except (ValueError, RecursionError):
                continue
    return None


def _values(content: Any, path: Sequence[str]) -> Iterator[Any]:
    """The values at a place; nothing if it does not exist."""
    if not path:
        yield from content if isinstance(content, list) else (content,)
        return
    key, rest = path[0], path[1:]
    if key == "*":
        parts = content.values() if isinstance(content, dict) else content
        for part in parts if isinstance(content, dict | list) else ():
            yield from _values(part, rest)
    elif isinstance(content, dict) and key in content:
        yield from _values(content[key], rest)
    elif isinstance(content, list) and INDEX.fullmatch(key):
        index = int(key)
        yield from _values(content[index], rest) if -len(content) <= index < len(content) else ()
