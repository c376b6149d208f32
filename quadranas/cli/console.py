"""Output of the commands: results on stdout, as text or one JSON object; the rest on stderr."""

import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, NoReturn

from rich.console import Console
from rich.table import Table

from quadranas.errors import RunInterruptedError
from quadranas.validation import CommandResult

if TYPE_CHECKING:
    from quadranas.reporter import Reporter
    from quadranas.runs.results import DeriveResult

INTERRUPTED = 130
"""Exit code after Ctrl-C."""

ARGUMENTS: ContextVar[Sequence[str]] = ContextVar("ARGUMENTS", default=())
"""The arguments of the command that is running; `main` sets them. A command line that cannot be
parsed also has to be answered in JSON, so the mode is not left to the parsed options."""


def command_line() -> str:
    """The command that is running, for the header of a table."""
    return shlex.join(["quadranas", *ARGUMENTS.get()])


def fail(message: str, hint: str, code: int) -> NoReturn:
    """Print one error with its next step and exit."""
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
    """A derived network in words, with the source of its latency."""
    tested = f", test accuracy {result.accuracy:.2%}" if result.accuracy is not None else ""
    measured = f"measured {result.measured_ms:.4g} ms, " if result.measured_ms is not None else ""
    return (
        f"{measured}predicted {result.predicted_ms:.4g} ms of {result.budget_ms:.4g} ms on "
        f"{result.device}; {result.params / 1e6:.2f} M parameters, "
        f"{result.macs / 1e6:.1f} M MACs{tested}\nlatency: {result.table.summary}"
    )


def warn(text: str) -> None:
    """Print an error on stderr that is not the end of the command."""
    Console(stderr=True, soft_wrap=True, highlight=False).print(text, style="red", markup=False)


def say(text: str) -> None:
    """Print text on stdout, lines unbroken."""
    Console(soft_wrap=True, highlight=False).print(text, markup=False)


def print_json(content: CommandResult | dict[str, Any]) -> None:
    """Print the one JSON object of a command on stdout."""
    if isinstance(content, CommandResult):
        content = content.model_dump(mode="json")
    sys.stdout.write(json.dumps(content, indent=2) + "\n")


def print_result(result: CommandResult | dict[str, Any], as_json: bool, text: str) -> None:
    """Print a result in the form that was asked for."""
    if as_json:
        print_json(result)
    else:
        say(text)


def print_prediction(result: dict[str, Any]) -> None:
    """Print what a file's operators take, and loudly what is not in the sum."""
    table = Table("operator", "fused", "kind", "MACs", "ms", "share")
    for operator in result["operators"]:
        share = operator["latency_ms"] / max(result["latency_ms"], 1e-12)
        macs = f"{operator['macs']:,}"
        numbers = (macs, f"{operator['latency_ms']:.4f}", f"{share:.1%}")
        fused = _counted(operator["ops"])
        table.add_row(operator["name"], fused, operator["kind"], *numbers)
    Console(highlight=False, markup=False, emoji=False).print(table)
    bound = "at least " if result["is_lower_bound"] else ""
    threads = f", threads: {result['threads']}" if result["threads"] else ""
    inputs = ", ".join("x".join(map(str, shape)) for shape in result["inputs"])
    say(
        f"{result['model']}: {bound}{result['latency_ms']:.4g} ms for {inputs} on "
        f"{result['device']}; {result['macs'] / 1e6:.1f} M MACs, {len(result['operators'])} "
        f"operators\nlatency: {result['method']} ({result['title']}, {result['runtime']}, "
        f"{result['precision']}{threads}; expected error {result['expected_error']})"
    )
    for missing in result["unpriced"]:
        names = ", ".join(missing["nodes"][:3]) + (", ..." if missing["count"] > 3 else "")
        _warn(f"NOT PRICED: {missing['count']} x {missing['op']} ({names})")
    if result["unpriced"]:
        _warn("The latency is a LOWER BOUND: what is not priced is missing from it.")


def _counted(ops: list[str]) -> str:
    """Operator types in order, repeated ones once with their number."""
    counts = {op: ops.count(op) for op in ops}
    return " ".join(f"{n} {op}" if n > 1 else op for op, n in counts.items())


def _warn(text: str) -> None:
    Console(soft_wrap=True, highlight=False).print(text, markup=False, style="bold red")
