"""A folder that appears whole or not at all."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from quadranas.errors import QuadranasError
from quadranas.files import TEMPORARY
from quadranas.runs.run_folder import RunFolder


@contextmanager
def whole_folder(path: Path, *, replace: bool = False) -> Iterator[RunFolder]:
    """A new folder that appears whole when the context is left, or not at all.

    Args:
        replace: put it in the place of one with content.

    Raises:
        QuadranasError: it exists with content and is not to be replaced, or cannot be written.
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
    """Where a folder lies while another takes its place."""
    return path.with_name(f".{path.name}.old{TEMPORARY}")


def restore_replaced(path: Path) -> None:
    """Undo or finish a replacement in the middle of which a process was killed."""
    path = path.resolve()
    old = _replaced(path)
    with suppress(OSError):  # what can neither be read nor moved is for others to complain about
        if old.exists() and not path.exists():
            old.replace(path)
        shutil.rmtree(old, ignore_errors=True)
