"""The command line: parses arguments, calls a function of `quadranas.commands`, prints the result.

Exit codes: 0 success, 1 internal error, 2 user error (the message says how to fix it), 3 a
budget, numerical check or accuracy limit was missed, 130 interrupted, 141 the reader of stdout
has ended, 143 terminated.
Heavy modules are imported by the commands that need them, so that `--help` is fast.
"""

import functools
import os
import re
import signal
import sys
from collections import Counter
from collections.abc import Sequence
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer
import typer.main
from typer.core import TyperCommand, TyperOption

from quadranas import __version__
from quadranas.cli import (
    bundle_commands,
    conversion_commands,
    data_commands,
    deployment_commands,
    inspection_commands,
    latency_commands,
    search_commands,
    table_commands,
    training_commands,
)
from quadranas.cli.console import ARGUMENTS, INTERRUPT_CODE, INTERRUPTED, fail, say
from quadranas.cli.streams import ClosedPipeError, OutputError, standard_streams
from quadranas.errors import QuadranasError, refuse_unwritable

app = typer.Typer(
    name="quadranas",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    help="Find, train and export the best network for a device and a latency budget.",
)


class OneValueCommand(TyperCommand):
    """A command that refuses repeated options, of which all but the last would be ignored."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments; errors are those of typer, and a repeated option."""
        _, _, order = self.make_parser(ctx).parse_args(args=list(args))
        for parameter, count in Counter(order).items():
            is_single = isinstance(parameter, TyperOption) and not parameter.multiple
            if is_single and count > 1 and parameter.name != "help":
                times = "twice" if count == 2 else f"{count} times"
                ctx.fail(f"Option '{parameter.opts[0]}' is given {times}; give it once.")
        return super().parse_args(ctx, args)


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        say(f"quadranas {__version__}")
        raise typer.Exit


GROUPS = (
    search_commands,
    training_commands,
    table_commands,
    latency_commands,
    conversion_commands,
    data_commands,
    inspection_commands,
    deployment_commands,
    bundle_commands,
)
for group in GROUPS:
    for name, command in group.COMMANDS.items():
        app.command(name, cls=OneValueCommand)(command)


@functools.cache
def _command() -> Any:
    """The command line as typer's objects; calling `app` makes them anew every time."""
    return typer.main.get_command(app)


def main() -> None:
    """Entry point of the console script."""
    # Threads that wait spin for some microseconds, then they sleep. Without spinning, steps at 32
    # pixels took 128 ms on two idle cores, 62 ms with it; with libgomp's usual milliseconds of it,
    # 690 instead of 380 ms when two other processes were busy (torch 2.13, November 2026).
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    # Otherwise PyTorch's profiler, which counts allocations, logs its start and stop.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    handled = [
        number
        for number in (signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) is not signal.SIG_IGN  # as for SIGHUP after nohup
    ]
    for number in handled:
        signal.signal(number, _interrupted)
    # Rich prints nothing in 0 to 9 columns, and fails on digits that are no number, as "\u00b2".
    if not re.fullmatch(r"[1-9][0-9]{1,5}", os.environ.get("COLUMNS", "80")):
        del os.environ["COLUMNS"]
    INTERRUPT_CODE.set(INTERRUPTED)
    arguments = sys.argv[1:]
    ARGUMENTS.set(arguments)
    with standard_streams() as is_open:
        if not is_open:
            fail(
                "stdout is closed, so the result cannot be printed",
                "Redirect it to a file or to /dev/null.",
                QuadranasError.exit_code,
            )
        try:
            sys.exit(_printing(arguments))
        finally:  # while Python ends, a KeyboardInterrupt would print a traceback
            for number in handled:
                signal.signal(number, signal.SIG_DFL)


def _printing(arguments: Sequence[str]) -> int:
    """Run a command, and see to it that its output is written; returns its exit code."""
    try:
        code = _run(arguments)
        sys.stdout.flush()
    except ClosedPipeError as error:
        return error.exit_code
    except OutputError as error:
        fail(error.message, error.hint, error.exit_code)
    return code


def _run(arguments: Sequence[str]) -> int:
    """Run a command; returns its exit code."""
    try:
        _check_names(arguments)
        code = _command()(arguments, prog_name="quadranas", standalone_mode=False) or 0
    except OutputError:
        raise
    except QuadranasError as error:
        fail(error.message, error.hint, error.exit_code, is_printed=error.is_printed)
    except OSError as error:
        _fail_with(error)
    except typer.TyperException as error:
        if not error.format_message():  # the help was printed instead
            return error.exit_code
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else "quadranas"
        fail(error.format_message(), f"See: {command} --help", error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    if code == INTERRUPTED:  # typer 0.29 exits with it on a KeyboardInterrupt, without a message
        fail("interrupted", "", INTERRUPT_CODE.get())
    return code


def _check_names(arguments: Sequence[str]) -> None:
    """Refuse arguments that cannot be written later; `run` records nothing and takes any image.

    Raises:
        QuadranasError: an argument is not UTF-8.
    """
    for argument in arguments if arguments[:1] != ["run"] else ():
        refuse_unwritable(argument, "argument")


def _fail_with(error: OSError) -> NoReturn:
    """Report a file that cannot be used, as if its name is too long; raise other errors."""
    if error.filename is None:
        raise error
    fail(
        f"cannot use {error.filename}: {error.strerror}",
        "Choose another file or folder, or remove the cause.",
        QuadranasError.exit_code,
    )


def _interrupted(number: int, frame: FrameType | None) -> None:
    """End as after Ctrl-C, so that nothing is half written and the next step is said."""
    INTERRUPT_CODE.set(128 + number)
    raise KeyboardInterrupt
