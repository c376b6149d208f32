"""Output of the commands: results on stdout, as text or one JSON object; the rest on stderr."""

import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, NoReturn

import typer
from rich.console import Console

from quadranas.errors import PromiseMissedError, RunInterruptedError

if TYPE_CHECKING:
    from quadranas.reporter import Reporter
    from quadranas.runs.results import DeriveResult
    from quadranas.validation import CommandResult

INTERRUPTED = 130
"""Exit code after Ctrl-C."""

ARGUMENTS: ContextVar[Sequence[str]] = ContextVar("ARGUMENTS", default=())
"""The arguments of the running command; `main` sets them. They decide whether errors are printed
as JSON, also for a command line that cannot be parsed."""


def command_line() -> str:
    """The running command, for the header of a table."""
    return shlex.join(["quadranas", *ARGUMENTS.get()])


def fail(message: str, hint: str, code: int) -> NoReturn:
    """Print an error with its hint, and exit."""
    if "--json" in ARGUMENTS.get():
        print_json({"error": message, "hint": hint})
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    console.print(f"error: {message}", style="red", markup=False)
    if hint:
        console.print(hint, markup=False)
    sys.exit(code)


@contextmanager
def reporting(quiet: bool) -> "Iterator[Reporter]":
    """Show progress on stderr; exit with a message when a run is interrupted."""
    from quadranas.reporter import Reporter

    try:
        with Reporter(quiet=quiet) as reporter:
            yield reporter
    except RunInterruptedError as error:
        fail(error.message, error.hint, INTERRUPTED)


def network_line(result: "DeriveResult") -> str:
    """A description of a derived network, with the source of its latency."""
    tested = f", test accuracy {result.accuracy:.2%}" if result.accuracy is not None else ""
    measured = f"measured {result.measured_ms:.4g} ms, " if result.measured_ms is not None else ""
    return (
        f"{measured}predicted {result.predicted_ms:.4g} ms of {result.budget_ms:.4g} ms on "
        f"{result.device}; {result.params / 1e6:.2f} M parameters, "
        f"{result.macs / 1e6:.1f} M MACs{tested}\nlatency: {result.table.summary}"
    )


def warn(text: str) -> None:
    """Print an error on stderr without exiting."""
    Console(stderr=True, soft_wrap=True, highlight=False).print(text, style="red", markup=False)


def check_promise(missed: str) -> None:
    """Exit with the code for a missed budget.

    Args:
        missed: how the budget was missed; empty if it was kept.
    """
    if missed:
        warn(f"budget missed: {missed}")
        raise typer.Exit(PromiseMissedError.exit_code)


def say(text: str, style: str | None = None) -> None:
    """Print text on stdout without wrapping lines."""
    Console(soft_wrap=True, highlight=False).print(text, markup=False, style=style)


def print_json(content: "CommandResult | dict[str, str]") -> None:
    """Print the one JSON object of a command on stdout."""
    if not isinstance(content, dict):
        content = content.model_dump(mode="json")
    sys.stdout.write(json.dumps(content, indent=2) + "\n")


def print_result(result: "CommandResult", as_json: bool, text: str) -> None:
    """Print a result as JSON or as text."""
    if as_json:
        print_json(result)
    else:
        say(text)
