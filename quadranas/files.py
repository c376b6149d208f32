"""Reading and writing files: strictly, atomically, and without executing their content."""

import copy
import errno
import functools
import json
import math
import os
import re
import shlex
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from quadranas import __version__
from quadranas.errors import Place, QuadranasError, json_values, line_of

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
YAML_FLOAT = "tag:yaml.org,2002:float"
MAX_MERGED = 10_000
"""Limit on the keys of a YAML mapping with merges (`<<`): a few aliases can stand for billions."""

SCIENTIFIC = re.compile(r"[-+]?(\d++(\.\d*+)?|\.\d++)[eE][-+]?\d++\Z")
"""Numbers such as 1e-3, which YAML 1.2 reads as floats, and YAML 1.1 (PyYAML) as strings."""

AMBIGUOUS = re.compile(r"[-+]?(0[0-9_]|[0-9_]+:)")
"""Numbers such as 010 and 1:30, which are 8 and 90 in YAML 1.1, and others in YAML 1.2."""


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader; it also refuses duplicate keys and ambiguous numbers."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            name = (key.tag, key.value) if isinstance(key, yaml.ScalarNode) else id(key)
            if name in seen:
                raise ValueError(f"duplicate key {key.value!r}, line {key.start_mark.line + 1}")
            seen.add(name)
        return node

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        """An integer; those that YAML 1.1 and 1.2 read as different numbers are refused."""
        if AMBIGUOUS.match(str(node.value)):
            line = node.start_mark.line + 1
            raise ValueError(
                f"{node.value} is read as base 8 or 60 by some readers, line {line}; write the "
                "number in base 10, or a text in quotes"
            )
        return super().construct_yaml_int(node)

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        num_keys = len(node.value)
        super().flatten_mapping(node)
        if len(node.value) > max(num_keys, MAX_MERGED):
            line = node.start_mark.line + 1
            raise ValueError(f"more than {MAX_MERGED} merged keys, line {line}")


class _Dumper(yaml.SafeDumper):
    """PyYAML's safe dumper; it quotes texts that the loader would read as numbers."""


for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver(YAML_FLOAT, SCIENTIFIC, list("-+.0123456789"))
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)


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


def missing_folders(path: Path) -> list[Path]:
    """A folder and those around it, as far as they do not exist yet, innermost first."""
    return [folder for folder in (path, *path.parents) if not folder.exists()]


def remove_empty(folders: Iterable[Path]) -> None:
    """Remove folders that are empty, in this order; others stay."""
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


def refuse_special(path: Path) -> None:
    """Refuse to write to a folder, or to a pipe, a socket or a device, which would be replaced.

    Raises:
        QuadranasError: the path is one of them.
    """
    with suppress(OSError, ValueError):
        if kind := "a folder" if path.is_dir() else special_kind(path):
            raise QuadranasError(
                f"cannot write {path}: it is {kind}, not a file", "Name a file to write."
            )


def refuse_existing(path: Path) -> None:
    """Refuse to replace a file.

    Raises:
        QuadranasError: it exists.
    """
    if path.exists():
        raise _exists(path)


def _exists(path: Path) -> QuadranasError:
    return QuadranasError(f"the output {path} exists already", "Choose another --output.")


def write_atomically(path: Path, data: bytes | str, *, replace: bool = True) -> None:
    """Write a file so that readers see the old or the new content completely, even after a crash.

    Args:
        replace: replace an existing file, also one that another process has written meanwhile.

    Raises:
        QuadranasError: the folder cannot be written, the disk is full, the path is no regular
            file (`refuse_special`), or it exists and `replace` is off.
    """
    refuse_special(path)
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
        if replace:
            Path(temporary).replace(path)
        else:
            _move_new(Path(temporary), path)
    except FileExistsError as error:
        is_there = not replace and path.exists()
        raise (_exists(path) if is_there else cannot_write(path, error)) from error
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:  # missing after success; removed after errors and interrupts
        if temporary:
            Path(temporary).unlink(missing_ok=True)


def _move_new(temporary: Path, path: Path) -> None:
    """Move a file to a path that does not exist; several processes cannot do it."""
    try:
        path.hardlink_to(temporary)
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        refuse_existing(path)
        temporary.replace(path)


def write_json(path: Path, content: Any, *, replace: bool = True) -> None:
    """Write plain data as indented JSON, atomically."""
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    write_atomically(path, text, replace=replace)


def write_compact_json(path: Path, content: Any) -> None:
    """Write plain data as JSON on one line, atomically; for files that only programs read."""
    write_atomically(path, json.dumps(content, separators=(",", ":"), allow_nan=False) + "\n")


def file_name(text: str) -> str:
    """A name for a file or folder from a text that may have been read from a file."""
    return re.sub(r"[^\w.+@=-]", "-", text).lstrip(".") or "unnamed"


def read_text(path: str | Path, what: str) -> str:
    """The text of a file; `what` names its role in the error message."""
    require_readable(path, what)
    try:
        return Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise QuadranasError(f"cannot read {what} {path}: not UTF-8 text") from error
    except OSError as error:
        raise QuadranasError(f"cannot read {what} {path}: {error.strerror or error}") from error


def refuse_links(folder: Path) -> None:
    """Refuse a folder with a link that leads out of it, to a file that its author may not know.

    Raises:
        QuadranasError: names the link, and the copy to make instead.
    """
    try:
        home = folder.resolve()
        links = [p for p in sorted(folder.iterdir()) if p.is_symlink() and not p.is_dir()]
        outside = next((p for p in links if not p.resolve().is_relative_to(home)), None)
    except OSError as error:
        raise QuadranasError(f"cannot read {folder}: {error.strerror or error}") from error
    if outside is not None:
        raise QuadranasError(
            f"{outside} is a link out of {folder}, and only files in the folder are read",
            f"If you trust it, copy the file itself: cp -rL {shlex.quote(str(folder))} COPY",
        )


def read_yaml(path: str | Path, what: str) -> dict[str, Any]:
    """A YAML mapping, loaded without executing anything.

    Raises:
        QuadranasError: unreadable, not a mapping, with a duplicate key or a number that is not
            finite.
    """
    text = read_text(path, what)
    try:
        content = copy.deepcopy(_load_yaml(text))
    except YAML_FAULTS as error:
        raise QuadranasError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise QuadranasError(f"{path}: expected a mapping of keys, got {type(content).__name__}")
    return _finite(content, path)


@functools.lru_cache(maxsize=64)
def _load_yaml(text: str) -> Any:
    """The content of a YAML text, not to be changed. Commands read some files several times."""
    return yaml.load(text, _Loader)  # derived from the safe loader


def dump_yaml(content: Any) -> str:
    """Plain data as YAML that `read_yaml` reads back unchanged."""
    return str(yaml.dump(content, Dumper=_Dumper, sort_keys=False))


def read_json(path: str | Path, what: str) -> dict[str, Any]:
    """A JSON object; errors as in `read_yaml`."""
    text = read_text(path, what)
    try:
        content = _unique_json(text)
    except ValueError as error:  # also of overlong numbers
        raise QuadranasError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise QuadranasError(f"{path}: expected an object, got {type(content).__name__}")
    return _finite(content, path)


def parse_json(text: str | bytes) -> Any:
    """Parse JSON as its standard has it: every key once, and finite numbers only.

    Raises:
        ValueError: not valid JSON, too deeply nested, a duplicate key, or a number that is not
            finite.
    """
    content = _unique_json(text.decode() if isinstance(text, bytes) else text)
    fault = _not_finite(content)
    if fault is not None:
        raise ValueError(f"{_in_words(fault)}: Input should be a finite number")
    return content


class _DuplicateKeyError(ValueError):
    """A key twice in one JSON object, which Python's parser accepts."""


def _unique_json(text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except _DuplicateKeyError as error:
        raise ValueError(f"{error}{_duplicate_line(text)}") from error
    except RecursionError as error:
        raise ValueError("too deeply nested") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        key = next(key for key in content if keys.count(key) > 1)
        raise _DuplicateKeyError(f"duplicate key {key!r}")
    return content


def _duplicate_line(text: str) -> str:
    """The line of the first duplicate key as a suffix; empty if it is not found."""
    seen = set()
    with suppress(ValueError, IndexError):  # another fault follows
        for place, offset, _ in json_values(text):
            if place in seen:
                return f", line {text.count(chr(10), 0, offset) + 1}"
            seen.add(place)
    return ""


def _finite(content: dict[str, Any], path: str | Path) -> dict[str, Any]:
    """The content of a file, if its numbers are finite."""
    place = _not_finite(content)
    if place is None:
        return content
    value: Any = content
    for part in place:
        value = value[part]
    line = line_of(Path(path), place)
    raise QuadranasError(
        f"{path}: {_in_words(place)}: Input should be a finite number (got {value})"
        f"{'' if line is None else f', line {line}'}"
    )


def _not_finite(content: Any) -> Place | None:
    """The place of the first number that is not finite; `None` if all are."""
    left: list[tuple[Place, Any]] = [((), content)]
    seen = set()  # aliases of YAML can describe documents without end
    while left:
        place, value = left.pop()
        if isinstance(value, float) and not math.isfinite(value):
            return place
        if isinstance(value, dict | list) and id(value) not in seen:
            seen.add(id(value))
            items = value.items() if isinstance(value, dict) else enumerate(value)
            left += [((*place, key), inner) for key, inner in items]
    return None


def _in_words(place: Place) -> str:
    return ".".join(map(str, place))


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
