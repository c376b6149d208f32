"""The command line: parses arguments, calls a function of `quadranas.commands`, prints the result.

Exit codes: 0 success, 1 internal error, 2 user error (the message says how to fix it), 3 a
budget, numerical check or accuracy limit was missed, 130 interrupted, 143 terminated.
Heavy modules are imported by the commands that need them, so that `--help` is fast.
"""

import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Annotated

import typer

from quadranas import __version__
from quadranas.cli import (
    conversion_commands,
    deployment_commands,
    inspection_commands,
    latency_commands,
    search_commands,
)
from quadranas.cli.console import ARGUMENTS, INTERRUPTED, fail, say
from quadranas.errors import QuadranasError, refuse_unwritable

app = typer.Typer(
    name="quadranas",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Find, train and export the best network for a device and a latency budget.",
)


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        say(f"quadranas {__version__}")
        raise typer.Exit


GROUPS = (
    search_commands,
    latency_commands,
    conversion_commands,
    inspection_commands,
    deployment_commands,
)
for group in GROUPS:
    for name, command in group.COMMANDS.items():
        app.command(name)(command)


def main() -> None:
    """Entry point of the console script."""
    # Threads that sleep while they wait: spinning ones made steps up to 50 times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Otherwise PyTorch's profiler, which counts allocations, logs its start and stop.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    signal.signal(signal.SIGTERM, _terminated)
    arguments = sys.argv[1:]
    ARGUMENTS.set(arguments)
    try:
        _check_names(arguments)
        code = app(arguments, prog_name="quadranas", standalone_mode=False) or 0
    except QuadranasError as error:
        fail(error.message, error.hint, error.exit_code)
    except typer.TyperException as error:
        if not error.format_message():  # the help was printed instead
            sys.exit(error.exit_code)
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else "quadranas"
        fail(error.format_message(), f"See: {command} --help", error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    if code == INTERRUPTED:  # typer 0.29 exits with it on a KeyboardInterrupt, without a message
        fail("interrupted", "", INTERRUPTED)
    sys.exit(code)


def _check_names(arguments: Sequence[str]) -> None:
    """Refuse arguments that cannot be written later; `run` records nothing and takes any image.

    Raises:
        QuadranasError: an argument is not UTF-8.
    """
    for argument in arguments if arguments[:1] != ["run"] else ():
        refuse_unwritable(argument, "argument")


def _terminated(number: int, frame: FrameType | None) -> None:
    """Exit as after Ctrl-C, so that partly written files are removed."""
    sys.exit(128 + number)
