"""Output of the commands: results on stdout, as text or one JSON object; the rest on stderr."""

import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import typer
from rich.table import Table

from quadranas.cli.streams import OutputError
from quadranas.errors import PromiseMissedError, RunInterruptedError, printable
from quadranas.reporter import PlainConsole, Reporter

if TYPE_CHECKING:
    from quadranas.runs.results import DeriveResult, DeviceLatency, StoredResult
    from quadranas.validation import CommandError, CommandResult

Result = TypeVar("Result", bound="CommandResult")

INTERRUPTED = 130
"""Exit code after Ctrl-C."""

INTERRUPT_CODE: ContextVar[int] = ContextVar("INTERRUPT_CODE", default=INTERRUPTED)
"""Exit code after the signal that raised a KeyboardInterrupt."""

SECONDS_FOR_MAIN = 5.0

MIN_TABLE_WIDTH = 60
"""Minimum width of a table in characters: in a narrower one, cells would show nothing."""

ARGUMENTS: ContextVar[Sequence[str]] = ContextVar("ARGUMENTS", default=())
"""The arguments of the running command; `main` sets them. They decide whether errors are printed
as JSON, also for a command line that cannot be parsed."""


def command_line() -> str:
    """The running command, for the header of a table."""
    return shlex.join(["quadranas", *ARGUMENTS.get()])


def follows() -> bool:
    """Whether another process of the same training, the main one, prints for this one."""
    rank = os.environ.get("RANK", "0")
    return rank.isdecimal() and rank.strip("0") != "" and "WORLD_SIZE" in os.environ


def _is_said_by_main(code: int) -> bool:
    """Whether the main process prints the error of this process, which failed before they met.

    With the same error the main process ends about now, and `torchrun` then ends this one. If
    this one is still there after some seconds, only it has failed.
    """
    if not follows():
        return False
    if code == INTERRUPT_CODE.get():
        return True
    try:
        time.sleep(SECONDS_FOR_MAIN)
    except KeyboardInterrupt:
        return True
    return False


def fail(message: str, hint: str, code: int, *, is_printed: bool | None = None) -> NoReturn:
    """Print an error with its hint, and exit.

    Args:
        is_printed: see `QuadranasError`.
    """
    if is_printed is False or (is_printed is None and _is_said_by_main(code)):
        sys.exit(code)
    if is_printed is None and follows():
        message = f"process {os.environ['RANK']}: {message}"
    if "--json" in ARGUMENTS.get():
        from quadranas.validation import CommandError

        with suppress(OutputError):  # this error is the one to report
            print_json(CommandError(error=message, hint=hint))
            sys.stdout.flush()
    console = PlainConsole(stderr=True)
    console.print(f"error: {message}", style="red")
    if hint:
        console.print(hint)
    sys.exit(code)


@contextmanager
def reporting(quiet: bool) -> Iterator[Reporter]:
    """Show progress on stderr; exit with a message when the command is interrupted."""
    try:
        with Reporter(quiet=quiet) as reporter:
            yield reporter
    except RunInterruptedError as error:
        fail(error.message, error.hint, INTERRUPT_CODE.get(), is_printed=error.is_printed)
    except KeyboardInterrupt:
        fail("interrupted", f"Repeat it with: {command_line()}", INTERRUPT_CODE.get())


def network_line(result: "DeriveResult") -> str:
    """A description of a derived network, with the source of its latency."""
    tested = f", {accuracy_text(result)}" if result.accuracy is not None else ""
    size = f"{result.params / 1e6:.2f} M parameters, {result.macs / 1e6:.1f} M MACs"
    further = "".join(f"\n{_latency_text(one)}{_source(one)}" for one in result.also)
    return f"{_latency_text(result)}; {size}{tested}{_source(result)}{further}"


def _latency_text(latency: "DeviceLatency") -> str:
    """Measured and predicted latency, and the budget."""
    measured = ""
    if latency.measured_ms is not None:
        measured = f"measured {latency.measured_ms:.4g} ms{percentiles(latency)}, "
    return (
        f"{measured}predicted {latency.predicted_ms:.4g} ms of {latency.budget_ms:.4g} ms on "
        f"{latency.device}"
    )


def accuracy_text(result: "StoredResult") -> str:
    """The test accuracy with its resolution, and at that of the training if it is higher there."""
    text = f"test accuracy {result.accuracy:.2%}"
    if result.resolution is None:
        return text
    text += f" at {result.resolution} pixels"
    as_trained = result.accuracy_as_trained
    if as_trained is None or result.accuracy is None or as_trained <= result.accuracy:
        return text
    return (
        f"{text} ({as_trained:.2%} at {result.trained_resolution} pixels, the "
        "resolution of the training)"
    )


def _source(latency: "DeviceLatency") -> str:
    """The source of the latency, and why a network is not measured although its table was."""
    source = f"\nlatency table: {latency.table.summary}"
    if latency.table.method == "analytic" or not latency.not_measured:
        return source
    return f"{source}\nnot measured: {latency.not_measured}"


def percentiles(result: "DeviceLatency") -> str:
    """Median and 95th percentile of the measured calls, in brackets."""
    if result.measured_p50_ms is None:  # of an earlier version
        return ""
    return f" (p50 {result.measured_p50_ms:.4g}, p95 {result.measured_p95_ms:.4g})"


def warn(text: str) -> None:
    """Print an error on stderr without exiting."""
    PlainConsole(stderr=True).print(text, style="red")


def check_promise(missed: str) -> None:
    """Exit with the code for a missed budget.

    Args:
        missed: how the budget was missed; empty if it was kept.
    """
    if missed and not follows():
        warn(f"budget missed: {missed}")
        raise typer.Exit(PromiseMissedError.exit_code)


def say(text: str, style: str | None = None) -> None:
    """Print text on stdout without wrapping lines."""
    PlainConsole().print(text, style=style)


def print_table(table: Table) -> None:
    """Print a table on stdout, as wide as the terminal, but wide enough for its cells."""
    console = PlainConsole(soft_wrap=False)
    console.width = max(console.width, MIN_TABLE_WIDTH)
    console.print(table)


def shown(result: Result) -> Result:
    """A result for people: names and paths on one line, without control characters."""
    printed: Result = _shown(result)
    return printed


def _shown(value: Any) -> Any:
    from pydantic import BaseModel

    if isinstance(value, str):
        return printable(value)
    if isinstance(value, Path):
        return type(value)(printable(str(value)))
    if isinstance(value, BaseModel):
        return value.model_copy(update={name: _shown(field) for name, field in value})
    if isinstance(value, Mapping):
        return {_shown(key): _shown(inner) for key, inner in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(map(_shown, value))
    return value


def print_json(content: "CommandResult | CommandError") -> None:
    """Print the one JSON object of a command on stdout."""
    sys.stdout.write(json.dumps(content.model_dump(mode="json"), indent=2) + "\n")


def print_result(
    result: Result,
    as_json: bool,
    text: Callable[[Result], str],
    next_command: Callable[[Result], str] | None = None,
) -> None:
    """Print a result as JSON or as text; in a process that follows another one, nothing.

    Args:
        text: describes the result, whose names it can print as they are.
        next_command: the command line that usually follows; its paths are not escaped, so that it
            can be copied.
    """
    if follows():
        return
    if as_json:
        return print_json(result)
    say(text(shown(result)))
    if next_command is not None and (line := next_command(result)):
        say(f"next: {line}")
