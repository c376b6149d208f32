"""Running a command of a device file: without a shell, with a time limit, and one error."""

import os
import shlex
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from typing import IO

from quadranas.errors import QuadranasError, printable_lines

LAST_LINES = 8
"""Number of lines of a program's output that an error shows."""

MAX_OUTPUT = 64 * 2**20
"""Limit on the output that is read, in bytes."""


def check_program(program: str, device: str) -> None:
    """Check that a program exists before anything is prepared for it.

    Raises:
        QuadranasError: it is not there, or cannot be executed.
    """
    if shutil.which(program) is None:
        raise _absent(program, device)


def run_command(arguments: Sequence[str], timeout_s: float, device: str) -> str:
    """Run a command, and return everything that it prints.

    Args:
        device: name of the device, for the messages.

    Raises:
        QuadranasError: the program is not there, exceeds the time limit, or exits with another
            code than 0; the message ends with its last lines.
    """
    # A file, since a process that outlives the command would keep a pipe open.
    with tempfile.TemporaryFile() as output:
        try:
            process = subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            raise _absent(arguments[0], device, error.strerror or str(error)) from error
        fault = ""
        try:
            code = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            fault = f"did not end within {timeout_s:g} s and was stopped"
        finally:
            _stop(process)
        text = _text_of(output)
    if not fault and code:
        name = f"signal {-code}" if code < 0 else f"code {code}"
        fault = f"ended with {name}"
    if fault:
        raise tool_error(device, arguments, fault, text)
    return text


def tool_error(
    device: str, arguments: Sequence[str], fault: str, text: str, hint: str = ""
) -> QuadranasError:
    """The error for a program that does not do what it should, with its last lines.

    Args:
        text: what it printed.
    """
    lines = [line for line in printable_lines(text.replace("\r", "\n")).splitlines() if line]
    last = "\n".join(f"  {line[:200]}" for line in lines[-LAST_LINES:])
    said = f"; its last lines:\n{last}" if last else "; it printed nothing"
    return QuadranasError(
        f"device {device!r}: the command {shlex.join(arguments)[:500]!r} {fault}{said}",
        hint or "Run it by hand, and correct the section 'command' of the device's file.",
    )


def _absent(program: str, device: str, reason: str = "") -> QuadranasError:
    return QuadranasError(
        f"device {device!r}: cannot run {program!r}: {reason or 'no such program'}",
        "Install it, or write its whole path in the section 'command' of the device's file.",
    )


def _stop(process: "subprocess.Popen[bytes]") -> None:
    """End a command that still runs, with the processes that it has started."""
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _text_of(output: IO[bytes]) -> str:
    size = output.seek(0, os.SEEK_END)
    output.seek(max(0, size - MAX_OUTPUT))
    return output.read().decode(errors="replace")
