"""Writing a folder atomically: it appears complete or not at all."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from quadranas.errors import QuadranasError
from quadranas.files import TEMPORARY, missing_folders, remove_empty
from quadranas.runs import layout
from quadranas.runs.lock import FolderLock
from quadranas.runs.run_folder import RunFolder


@contextmanager
def whole_folder(path: Path, *, replace: bool = False) -> Iterator[RunFolder]:
    """Write a new folder, which appears complete when the context is left, or not at all.

    Args:
        replace: replace an existing folder with content.

    Raises:
        QuadranasError: the folder exists with content and `replace` is off, or cannot be written.
    """
    if not (replace and path.is_dir()):
        RunFolder(path).refuse_content()
    path = path.resolve()
    staging = path.with_name(f".{path.name}{TEMPORARY}")
    missing = missing_folders(path.parent)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path):
            _restore(path)
            shutil.rmtree(staging, ignore_errors=True)  # of a process that was killed
            try:
                yield from _written(path, staging, replace=replace)
            finally:
                _restore(path)
                shutil.rmtree(staging, ignore_errors=True)
        missing.clear()
    except OSError as error:
        raise QuadranasError(
            f"cannot write to the output {path}: {error.strerror or error}",
            "Choose another --output.",
        ) from error
    finally:
        remove_empty(missing)


def _written(path: Path, staging: Path, *, replace: bool) -> Iterator[RunFolder]:
    """Let the folder be written under another name, then move it to its place."""
    if not (replace and path.is_dir()):
        RunFolder(path).refuse_content()  # of a process that wrote it until now
    staging.mkdir()
    yield RunFolder(staging)
    if replace and path.exists():
        path.replace(old := _replaced(path))
        staging.replace(path)
        shutil.rmtree(old)
    elif path.exists():
        for item in staging.iterdir():
            item.replace(path / item.name)
    else:
        staging.replace(path)


def _locked(path: Path) -> FolderLock:
    """The lock of a folder that may not exist yet, beside it."""
    return FolderLock(path.with_name(f".{path.name}{layout.LOCK}"), path)


def _replaced(path: Path) -> Path:
    """The temporary path of a folder that is being replaced."""
    return path.with_name(f".{path.name}.old{TEMPORARY}")


def restore_replaced(path: Path) -> None:
    """Undo or finish a replacement during which the process was killed.

    Raises:
        QuadranasError: the process is still at work.
    """
    path = path.resolve()
    with suppress(OSError):  # the following write reports unreadable folders
        if _replaced(path).exists():
            with _locked(path):
                _restore(path)


def _restore(path: Path) -> None:
    old = _replaced(path)
    with suppress(OSError):
        if old.exists() and not path.exists():
            old.replace(path)
        shutil.rmtree(old, ignore_errors=True)
