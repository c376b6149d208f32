"""Writing a folder atomically: it appears complete or not at all."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from quadranas.errors import QuadranasError
from quadranas.files import TEMPORARY
from quadranas.runs.run_folder import RunFolder


@contextmanager
def whole_folder(path: Path, *, replace: bool = False) -> Iterator[RunFolder]:
    """Write a new folder, which appears complete when the context is left, or not at all.

    Args:
        replace: replace an existing folder with content.

    Raises:
        QuadranasError: the folder exists with content and `replace` is off, or cannot be written.
    """
    restore_replaced(path)
    if not (replace and path.is_dir()):
        RunFolder(path).refuse_content()
    path = path.resolve()
    staging = path.with_name(f".{path.name}{TEMPORARY}")
    shutil.rmtree(staging, ignore_errors=True)  # of a process that was killed
    try:
        staging.mkdir(parents=True)
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
    except OSError as error:
        raise QuadranasError(
            f"cannot write to the output {path}: {error.strerror or error}",
            "Choose another --output.",
        ) from error
    finally:
        restore_replaced(path)
        shutil.rmtree(staging, ignore_errors=True)


def _replaced(path: Path) -> Path:
    """The temporary path of a folder that is being replaced."""
    return path.with_name(f".{path.name}.old{TEMPORARY}")


def restore_replaced(path: Path) -> None:
    """Undo or finish a replacement during which the process was killed."""
    path = path.resolve()
    old = _replaced(path)
    with suppress(OSError):  # the following write reports unreadable folders
        if old.exists() and not path.exists():
            old.replace(path)
        shutil.rmtree(old, ignore_errors=True)
