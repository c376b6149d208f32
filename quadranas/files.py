"""Reading and writing files: strict, atomic, and never executing what they hold."""

import json
import os
import tempfile
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from quadranas.errors import QuadranasError, nearest

Model = TypeVar("Model", bound=BaseModel)
PACKAGE = Path(__file__).parent


def shipped(folder: str) -> Path:
    """The folder of shipped data: inside the installed package, or beside it in a checkout."""
    installed = PACKAGE / folder
    return installed if installed.is_dir() else PACKAGE.parent / folder


def write_atomically(path: Path, data: bytes | str) -> None:
    """Write a file so that a reader, or a crash, sees the old content or the new, never half.

    Raises:
        QuadranasError: the folder cannot be written or the disk is full.
    """
    content = data.encode() if isinstance(data, str) else data
    temporary = ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except OSError as error:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
        raise QuadranasError(
            f"cannot write {path}: {error.strerror or error}",
            "Free some space or choose another folder.",
        ) from error


def write_json(path: Path, content: Any) -> None:
    """Write plain data as indented JSON, atomically."""
    write_atomically(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def read_text(path: Path, what: str) -> str:
    """The text of a file; `what` names its role in the error message."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise QuadranasError(f"cannot read {what} {path}: {reason}") from error


def read_yaml(path: Path, what: str) -> dict[str, Any]:
    """A YAML mapping, loaded without executing anything."""
    try:
        content = yaml.safe_load(read_text(path, what))
    except yaml.YAMLError as error:
        raise QuadranasError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise QuadranasError(f"{path}: expected a mapping of keys, got {type(content).__name__}")
    return content


def read_json(path: Path, what: str) -> dict[str, Any]:
    """A JSON object."""
    try:
        content = json.loads(read_text(path, what))
    except (json.JSONDecodeError, RecursionError) as error:
        raise QuadranasError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise QuadranasError(f"{path}: expected an object, got {type(content).__name__}")
    return content


def validate(model: type[Model], content: dict[str, Any], source: str | Path) -> Model:
    """Check plain data against a model.

    Raises:
        QuadranasError: one line per fault: file, key path, value got, nearest key.
    """
    try:
        return model.model_validate(content)
    except ValidationError as error:
        faults = [_describe(model, fault) for fault in error.errors()]
        raise QuadranasError("\n".join(f"{source}: {fault}" for fault in faults[:5])) from error


def _describe(model: type[BaseModel], fault: Any) -> str:
    """One fault of pydantic's list as `key.path: what is wrong, value got`."""
    location = [part for part in fault["loc"] if part != "function-after"]
    path = ".".join(str(part) for part in location) or "(file)"
    if fault["type"] == "extra_forbidden":
        keys = sorted(_keys_at(model, location[:-1]))
        suggestion = nearest(str(location[-1]), keys)
        return f"{path}: unknown key (value {fault['input']!r}); accepted: {', '.join(keys)}" + (
            suggestion
        )
    if fault["type"] == "missing":
        return f"{path}: required key is missing"
    message = fault["msg"].removeprefix("Value error, ")
    value = repr(fault["input"])
    return f"{path}: {message}" + (f" (got {value})" if len(value) < 80 else "")


def _keys_at(model: type[BaseModel], location: list[Any]) -> set[str]:
    """The field names accepted at a key path, followed through nested models."""
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
