"""Reading and writing files: strictly, atomically, and without executing their content."""

import json
import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from quadranas import __version__
from quadranas.errors import QuadranasError

PACKAGE = Path(__file__).parent
TEMPORARY = ".tmp"
"""Suffix of temporary files during writing; their names begin with a dot."""

YAML_FAULTS = (
    yaml.YAMLError,
    # Raised through PyYAML 6.0: dates such as 2001-99-99, `!!int ""`, `!!bool x`, deep nesting
    ValueError,
    LookupError,
    AttributeError,
    TypeError,
    RecursionError,
)


def shipped(folder: str) -> Path:
    """The folder of shipped data: inside the installed package, or beside it in a checkout."""
    installed = PACKAGE / folder
    return installed if installed.is_dir() else PACKAGE.parent / folder


SPECIAL: Mapping[Callable[[int], bool], str] = {
    stat.S_ISFIFO: "a pipe",
    stat.S_ISSOCK: "a socket",
    stat.S_ISCHR: "a device",
    stat.S_ISBLK: "a device",
}
"""Files that are no files: reading them can wait forever, or never end."""


def special_kind(path: str | Path) -> str:
    """What a path is that is neither a file nor a folder, such as "a pipe"; otherwise empty.

    Raises:
        OSError: it does not exist or its name is too long.
        ValueError: it contains a null character.
    """
    mode = Path(path).stat().st_mode
    return next((kind for test, kind in SPECIAL.items() if test(mode)), "")


def require_readable(path: str | Path, what: str) -> None:
    """Check that a path can be opened without waiting for another program.

    Args:
        what: role of the file, for the message.

    Raises:
        QuadranasError: missing, a pipe, a socket or a device, or a name that no file can have.
    """
    try:
        kind = special_kind(path)
    except OSError as error:
        raise QuadranasError(f"cannot read {what} {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise QuadranasError(f"cannot read {what} {str(path)!r}: {error}") from error
    if kind:
        raise QuadranasError(
            f"cannot read {what} {path}: it is {kind}, not a file",
            "Write its content to a file, and name that.",
        )


def write_atomically(path: Path, data: bytes | str) -> None:
    """Write a file so that readers see the old or the new content completely, even after a crash.

    Raises:
        QuadranasError: the folder cannot be written, the disk is full, or the path is a pipe, a
            socket or a device, which would be replaced.
    """
    with suppress(OSError, ValueError):
        if kind := special_kind(path):
            raise QuadranasError(
                f"cannot write {path}: it is {kind}, not a file", "Name a file to write."
            )
    content = data.encode() if isinstance(data, str) else data
    temporary = ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(TEMPORARY, f".{path.name}.", path.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except OSError as error:
        raise QuadranasError(
            f"cannot write {path}: {error.strerror or error}",
            "Free some space or choose another folder.",
        ) from error
    finally:  # missing after success; removed after errors and interrupts
        if temporary:
            Path(temporary).unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Write plain data as indented JSON, atomically."""
    write_atomically(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def read_text(path: str | Path, what: str) -> str:
    """The text of a file; `what` names its role in the error message."""
    require_readable(path, what)
    try:
        return Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise QuadranasError(f"cannot read {what} {path}: not UTF-8 text") from error
    except OSError as error:
        raise QuadranasError(f"cannot read {what} {path}: {error.strerror or error}") from error


def read_yaml(path: str | Path, what: str) -> dict[str, Any]:
    """A YAML mapping, loaded without executing anything."""
    text = read_text(path, what)
    try:
        content = yaml.safe_load(text)
    except YAML_FAULTS as error:
        raise QuadranasError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise QuadranasError(f"{path}: expected a mapping of keys, got {type(content).__name__}")
    return content


def read_json(path: str | Path, what: str) -> dict[str, Any]:
    """A JSON object."""
    text = read_text(path, what)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError also covers overlong numbers
        raise QuadranasError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise QuadranasError(f"{path}: expected an object, got {type(content).__name__}")
    return content


@dataclass(frozen=True)
class Stamp:
    """The version, commit and date that a file was made with."""

    quadranas: str
    commit: str
    time: datetime

    @property
    def date(self) -> str:
        """The date in UTC, as in 2026-05-31."""
        return self.time.strftime("%Y-%m-%d")


def stamp() -> Stamp:
    """This version of the package and the present time."""
    return Stamp(__version__, source_commit(), datetime.now(UTC))


def source_commit() -> str:
    """The commit of the checkout this package runs from; empty for an installed package."""
    git = shutil.which("git")
    if git is None or not (PACKAGE.parent / ".git").exists():
        return ""
    result = subprocess.run(
        [git, "rev-parse", "--short=12", "HEAD"],
        cwd=PACKAGE.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return result.stdout.strip()
