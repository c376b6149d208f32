"""User errors, and the lines of files that they are about.

The command line prints message and hint, and exits with the error's code.
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path

Place = tuple[str | int, ...]
"""The keys and indices that lead to a value in a file."""

JSON_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*+"|[{}\[\]:,]|[^\s{}\[\]:,"]++')

MAX_VALUES = 10_000
"""Limit on the values of a YAML file that are looked through for the line of a fault."""


class QuadranasError(Exception):
    """An error that the user can fix: what is wrong, and what to do next.

    Args:
        message: names the faulty item, the value received and the accepted values.
        hint: the next step, usually a command.

    Attributes:
        is_printed: whether this process prints the error, of several that train together; None
            for an error that all have, which the main process prints.
    """

    exit_code = 2
    is_printed: bool | None = None

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}" if self.hint else self.message


class BudgetError(QuadranasError):
    """The budget is not a valid duration, or no network of the space keeps it."""


class MissingEntryError(QuadranasError):
    """A latency table lacks an operation; the hint is the command that fills it."""


class MissingExtraError(QuadranasError):
    """An optional package is not installed; the hint names the extra to install."""


class DeviceLostError(QuadranasError):
    """The connection to a device was lost; measurements taken before are kept."""


class ThrottledError(QuadranasError):
    """A device lowered its clock during a measurement, because of heat or its power supply."""


class ProcessesEndedError(QuadranasError):
    """Another process of the same training has ended, so that this one cannot go on."""


class PromiseMissedError(QuadranasError):
    """The result misses a budget, a numerical check or an accuracy limit (exit code 3)."""

    exit_code = 3


class RunInterruptedError(KeyboardInterrupt):
    """Ctrl-C or SIGTERM during a run: what is left, and the command that continues it.

    Args:
        message: what was interrupted.
        hint: the next step; empty where nothing is left to continue.

    Attributes:
        is_printed: see `QuadranasError`.
    """

    is_printed: bool | None = None

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


def some(names: Sequence[str], most: int = 3) -> str:
    """The first names of a list, and the number of the others."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def nearest(word: str, accepted: Iterable[str]) -> str:
    """A suffix such as ``; did you mean 'vpu'?``, or an empty string without a close match."""
    matches = get_close_matches(word, list(accepted), n=1, cutoff=0.5)
    return f"; did you mean {matches[0]!r}?" if matches else ""


def unknown(thing: str, value: str, accepted: Iterable[str], hint: str = "") -> QuadranasError:
    """The error for an unknown name: lists the accepted names and suggests the nearest."""
    names = sorted(accepted)
    message = f"unknown {thing} {value!r}; accepted: {', '.join(names)}{nearest(value, names)}"
    return QuadranasError(message, hint)


def json_values(text: str) -> Iterator[tuple[Place, int, str]]:
    """Place, offset and first token of every value in a JSON text."""
    place: list[str | int | None] = []  # None: in an object, before a key
    for match in JSON_TOKEN.finditer(text):
        token = match[0]
        if token in "]}":
            place.pop()
        elif token == ",":
            last = place[-1]
            place[-1] = last + 1 if isinstance(last, int) else None
        elif place and place[-1] is None:
            place[-1] = str(json.loads(token))
        elif token != ":":
            yield tuple(part for part in place if part is not None), match.start(), token
            if token in "[{":
                place.append(0 if token == "[" else None)


def line_of(path: Path, place: Sequence[str | int]) -> int | None:
    """The line of a JSON or YAML file on which a value, or the nearest one around it, begins.

    `None` if it is not found, and for the document as a whole.
    """
    try:
        text = path.read_text(encoding="utf-8")
        is_yaml = path.suffix in (".yaml", ".yml")
        found = _yaml_offsets(text) if is_yaml else {p: at for p, at, _ in json_values(text)}
    except Exception:  # the file has changed since, or another fault hides the place
        return None
    around = (tuple(place[:length]) for length in range(len(place), 0, -1))
    offset = next((found[outer] for outer in around if outer in found), None)
    return None if offset is None else text.count("\n", 0, offset) + 1


def _yaml_offsets(text: str) -> dict[Place, int]:
    import yaml

    offsets: dict[Place, int] = {}
    left: list[tuple[Place, yaml.Node | None]] = [((), yaml.compose(text, yaml.SafeLoader))]
    while left and len(offsets) < MAX_VALUES:  # aliases can describe documents without end
        place, node = left.pop()
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                offsets[(*place, str(key.value))] = key.start_mark.index
                left.append(((*place, str(key.value)), value))
        elif isinstance(node, yaml.SequenceNode):
            for index, value in enumerate(node.value):
                offsets[(*place, index)] = value.start_mark.index
                left.append(((*place, index), value))
    return offsets


def printable(name: str) -> str:
    """A name in one line that any terminal and file can hold: other characters are escaped."""
    escaped = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)
    return "".join(escaped)


def printable_lines(text: str) -> str:
    """A text in which only line breaks are control characters; see `printable`."""
    return "\n".join(map(printable, text.split("\n")))


def refuse_unwritable(name: str, what: str) -> None:
    """Refuse a name of a file or folder that configurations and results cannot contain.

    Raises:
        QuadranasError: it is not UTF-8; names `what`.
    """
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise QuadranasError(
            f"{what} '{printable(name)}' is not UTF-8, so it cannot be written to a configuration "
            "or a result",
            "Rename the file or folder, or reach it through a link with another name.",
        ) from error
