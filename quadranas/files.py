"""Reading and writing files: strictly, atomically, and without executing their content."""

import errno
import json
import os
import shutil
import subprocess
import tempfile
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


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
PROTECTED = (errno.EACCES, errno.EPERM, errno.EROFS)
"""Error numbers of disks that are full, and of files that must not be written."""


def cannot_write(
    what: str | Path, error: BaseException, then: str = "or choose another folder"
) -> QuadranasError:
    """The error for a file that cannot be written; the hint depends on the cause.

    Args:
        what: the file, or words that name it.
        then: the end of the hint, such as "then continue with --resume".
    """
    number = error.errno if isinstance(error, OSError) else None
    reason = (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__
    remedy = "Free some space"
    if number in PROTECTED:
        remedy = "Make it writable"
    elif number is not None and number not in FULL:
        remedy = "Remove the cause"
    comma = ", " if then.startswith("then") else " "
    return QuadranasError(f"cannot write {what}: {reason}", f"{remedy}{comma}{then}.")


def write_atomically(path: Path, data: bytes | str) -> None:
    """Write a file so that readers see the old or the new content completely, even after a crash.

    Raises:
        QuadranasError: the folder cannot be written or the disk is full.
    """
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
        raise cannot_write(path, error) from error
    finally:  # missing after success; removed after errors and interrupts
        if temporary:
            Path(temporary).unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Write plain data as indented JSON, atomically."""
    write_atomically(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def write_compact_json(path: Path, content: Any) -> None:
    """Write plain data as JSON on one line, atomically; for files that nobody reads."""
    write_atomically(path, json.dumps(content, separators=(",", ":"), allow_nan=False) + "\n")


def read_text(path: str | Path, what: str) -> str:
    """The text of a file; `what` names its role in the error message."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise QuadranasError(f"cannot read {what} {path}: not UTF-8 text") from error
    except OSError as error:
        raise QuadranasError(f"cannot read {what} {path}: {error.strerror or error}") from error
    except ValueError as error:  # a path that holds a null character
        raise QuadranasError(f"cannot read {what} {str(path)!r}: {error}") from error


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
