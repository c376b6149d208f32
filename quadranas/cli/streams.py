"""Standard output and error: any encoding, closed or full, without a traceback.

A result that cannot be printed is an error. Progress and messages that cannot be printed are
dropped, so that a run continues when its terminal is closed.
"""

import errno
import io
import os
import select
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any, TextIO

from quadranas.errors import QuadranasError

HINT = "Redirect the output to a file on a disk with free space; the command's files are complete."


class OutputError(QuadranasError):
    """Standard output cannot be written."""


class ClosedPipeError(OutputError):
    """The reader of standard output has ended, as in `quadranas devices | head -1`."""

    exit_code = 141


@contextmanager
def standard_streams() -> Iterator[bool]:
    """Replace stdout and stderr, unless something else has replaced them already.

    Yields whether stdout is open; if it is not, a result would be lost. Writing to stdout then
    raises an `OutputError` if that fails.
    """
    is_open = sys.stdout is not None
    _open_descriptors()
    out = _stream(1, sys.stdout, _refuse) if sys.stdout is sys.__stdout__ else sys.stdout
    err = _stream(2, sys.stderr, _ignore) if sys.stderr is sys.__stderr__ else sys.stderr
    with redirect_stdout(out), redirect_stderr(err):
        yield is_open


def _open_descriptors() -> None:
    """Open closed standard descriptors on /dev/null.

    Otherwise they are given to the next files that are opened, such as a checkpoint, and libraries
    write their messages into those.
    """
    descriptor = os.open(os.devnull, os.O_RDWR)
    while descriptor <= 2:
        descriptor = os.dup(descriptor)
    os.close(descriptor)


def _refuse(error: OSError) -> None:
    if error.errno == errno.EPIPE:
        raise ClosedPipeError("the reader of stdout has ended") from error
    raise OutputError(f"cannot write to stdout: {error.strerror or error}", HINT) from error


def _ignore(error: OSError) -> None:
    """Ignore that stderr cannot be written; its text is lost."""


def _stream(descriptor: int, old: TextIO | None, on_error: Callable[[OSError], None]) -> TextIO:
    """A text stream; characters that its encoding lacks are written as escapes."""
    raw = _Descriptor(descriptor, on_error)
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=old.encoding if old is not None else "utf-8",
        errors="backslashreplace",
        line_buffering=descriptor == 2 or raw.isatty(),
    )


class _Descriptor(io.RawIOBase):
    """A file descriptor to write to.

    Args:
        on_error: called at the first error; everything after it is dropped.
    """

    def __init__(self, descriptor: int, on_error: Callable[[OSError], None]) -> None:
        super().__init__()
        self.descriptor = descriptor
        self.on_error = on_error
        self.has_failed = False

    def fileno(self) -> int:
        return self.descriptor

    def isatty(self) -> bool:
        return os.isatty(self.descriptor)

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        while not self.has_failed:
            try:
                return os.write(self.descriptor, data)
            except BlockingIOError:  # the terminal or pipe is shared with a program that polls it
                select.select([], [self.descriptor], [])
            except OSError as error:
                self.has_failed = True
                self.on_error(error)
        return memoryview(data).nbytes
