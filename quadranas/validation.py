"""Validation of plain data: strict models, and one line per fault."""

import os
import re
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    GetCoreSchemaHandler,
    PlainSerializer,
    ValidationError,
)

from quadranas.errors import QuadranasError, line_of, nearest, printable

SCHEMA_PARTS = {
    *("schema", "fields", "items_schema", "keys_schema", "values_schema", "choices"),
    *("definitions", "extras_schema"),
}
"""The keys of a pydantic schema under which there are other schemas."""


def _with_strict_numbers(schema: Any) -> Any:
    if isinstance(schema, list | tuple):
        return type(schema)(map(_with_strict_numbers, schema))
    if not isinstance(schema, dict):
        return schema
    if schema.get("type") in ("int", "float", "bool"):
        return {**schema, "strict": True}
    return {
        key: _with_strict_fields(part)
        if key == "fields" and isinstance(part, dict)
        else _with_strict_numbers(part)
        if key in SCHEMA_PARTS
        else part
        for key, part in schema.items()
    }


def _with_strict_fields(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: _with_strict_numbers(field) for name, field in fields.items()}


class Strict(BaseModel):
    """Plain data whose numbers are numbers: neither texts nor booleans become one."""

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> Any:
        """The schema with strict numbers and booleans; lists still become tuples, texts paths."""
        return _with_strict_numbers(handler(source))


class Frozen(Strict):
    """Plain data: immutable, hashable, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def environment_number(name: str, default: int, least: int = 0) -> int:
    """A number in an environment variable that torchrun sets.

    Raises:
        QuadranasError: it is set to something else than an integer of at least `least`.
    """
    text = os.environ.get(name, str(default))
    if not re.fullmatch(r"[0-9]{1,9}", text) or int(text) < least:
        raise QuadranasError(
            f"the environment variable {name} is {printable(text[:MAX_KEY])!r}; expected a number "
            f"of at least {least}",
            f"Remove it with: unset {name}, or start the processes with torchrun.",
        )
    return int(text)


MOST_SEEDS = 2**31
"""Random seeds are below this, as in configurations; samplers take no larger ones."""


def check_seed(seed: int) -> None:
    """Check a random seed.

    Raises:
        QuadranasError: it is negative or too large.
    """
    if not 0 <= seed < MOST_SEEDS:
        raise QuadranasError(f"the seed must be from 0 to {MOST_SEEDS - 1}, got {seed}")


WrittenPath = Annotated[
    Path, PlainSerializer(lambda path: printable(str(path)), return_type=str, when_used="json")
]
"""A path that is written with escapes for what UTF-8 does not have."""


class CommandResult(Frozen):
    """The frozen, typed result of a command; `--json` prints its `model_dump(mode="json")`."""


class CommandError(Frozen):
    """What `--json` prints of a command that fails.

    Args:
        error: what is wrong.
        hint: the next step; may be empty.
    """

    error: str
    hint: str


Model = TypeVar("Model", bound=BaseModel)


Location = tuple[int | str, ...]


UNION_TAGS = ("str", "int", "float", "bool")
"""The suffixes that pydantic appends to the location of a fault in a union."""


MAX_FAULTS = 5
"""Maximum number of faults of one file that an error lists."""

MAX_KEY = 100
"""Maximum number of characters of a key that an error shows."""

BOUNDED = reprlib.Repr()
BOUNDED.maxlevel = 3  # YAML aliases can describe values that are endless when expanded
BOUNDED.maxlist = BOUNDED.maxdict = BOUNDED.maxstring = 80


def validate(model: type[Model], content: dict[str, Any], source: str | Path) -> Model:
    """Check plain data against a model.

    Raises:
        QuadranasError: one line per fault: file, key path, value got, nearest key, and the line
            if `source` is the path of the file that was read.
    """
    try:
        return model.model_validate(content)
    except ValidationError as error:
        lines = (f"{source}: {fault}" for fault in describe_faults(model, error, source))
        raise QuadranasError("\n".join(lines)) from error


def refuse_newer(content: Mapping[str, Any], newest: int, source: str | Path) -> None:
    """Refuse a file whose `format_version` is newer than this version reads.

    Raises:
        QuadranasError: says how to upgrade.
    """
    version = content.get("format_version")
    if isinstance(version, int) and version > newest:
        raise QuadranasError(
            f"{source}: format_version {version} is newer than this quadranas reads "
            f"(up to {newest})",
            "Upgrade with: pip install --upgrade quadranas",
        )


def describe_faults(
    model: type[BaseModel], error: ValidationError, source: str | Path = ""
) -> list[str]:
    """Describe the faults, one line per key: `key.path: message (got value), line 3`.

    The line after the first `MAX_FAULTS` gives the number of the others.
    """
    faults: dict[Location, list[Any]] = {}
    for fault in error.errors():
        location = fault["loc"]
        if fault["type"] != "extra_forbidden" and location and location[-1] in UNION_TAGS:
            location = location[:-1]  # the faults of all members of a union share a line
        faults.setdefault(location, []).append(fault)
    # A misspelt key is often the cause of a missing one, so missing keys come last.
    ordered = sorted(faults.items(), key=lambda item: item[1][0]["type"] == "missing")
    ordered = [
        (location, found)
        for location, found in ordered
        # In a list with a minimum length, a faulty item is also reported as missing.
        if found[0]["type"] != "too_short" or not _any_inside(location, faults)
    ]
    lines = [
        _describe(model, location, found) + _line(source, location)
        for location, found in ordered[:MAX_FAULTS]  # each of them reads the file for its line
    ]
    more = len(ordered) - MAX_FAULTS
    return [*lines, f"{more} more faults"] if more > 0 else lines


def _line(source: str | Path, location: Location) -> str:
    """A suffix with the line of a fault; empty if it is unknown."""
    line = line_of(source, location) if isinstance(source, Path) and source.is_file() else None
    return "" if line is None else f", line {line}"


def _any_inside(location: Location, others: Iterable[Location]) -> bool:
    size = len(location)
    return any(len(other) > size and other[:size] == location for other in others)


def _describe(model: type[BaseModel], location: Location, faults: Sequence[Any]) -> str:
    """The faults found at one key path."""
    fault = faults[0]
    value = _short(fault["input"])
    parts = [_short_key(str(part)) for part in location]
    prefix = f"{'.'.join(parts)}: " if parts else ""
    if fault["type"] == "extra_forbidden":
        keys = sorted(_keys_at(model, location[:-1]))
        suggestion = nearest(parts[-1], keys)
        return f"{prefix}unknown key{value}; accepted: {', '.join(keys)}{suggestion}"
    if fault["type"] == "missing":
        return f"{prefix}required {'key' if isinstance(location[-1], str) else 'value'} is missing"
    message = fault["msg"].removeprefix("Value error, ")
    if fault["type"] != "value_error":  # pydantic's own message
        message = message.replace("tuple", "list").replace("Tuple", "List")
    if fault["type"] == "model_type":
        message = "Input should be a mapping of keys"
    if len(faults) > 1:
        kinds = [other["msg"].split(",")[0].removeprefix("Input should be ") for other in faults]
        message = f"Input should be {' or '.join(kinds)}"
    return f"{prefix}{message}{value}"


def _short_key(key: str) -> str:
    return key if len(key) <= MAX_KEY else f"{key[:MAX_KEY]}..."


def _short(value: Any) -> str:
    """A value in brackets; empty if it is too long."""
    try:
        text = BOUNDED.repr(value)
    except ValueError:  # an integer of thousands of digits
        return ""
    return f" (got {text})" if len(text) < 80 else ""


def _keys_at(model: type[BaseModel], location: Location) -> set[str]:
    """The field names accepted at a key path of nested models."""
    current: Any = model
    for part in location:
        if isinstance(part, int) or current is None:
            continue
        field = current.model_fields.get(part)
        current = _model_inside(field.annotation) if field is not None else current
    return set(current.model_fields) if current is not None else set()


def _model_inside(annotation: Any) -> type[BaseModel] | None:
    """The first pydantic model inside an annotation such as `tuple[Stage, ...] | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        found = _model_inside(argument)
        if found is not None:
            return found
    return None
