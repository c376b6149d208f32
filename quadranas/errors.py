"""User errors. The command line prints their message and hint, and exits with their code."""

from collections.abc import Iterable
from difflib import get_close_matches


class QuadranasError(Exception):
    """An error that the user can fix: what is wrong, and what to do next.

    Args:
        message: names the faulty item, the value received and the accepted values.
        hint: the next step, usually a command.
    """

    exit_code = 2

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}" if self.hint else self.message


class BudgetError(QuadranasError):
    """The budget is not a valid duration, or no network of the space keeps it."""


class MissingEntryError(QuadranasError):
    """A latency table lacks an operation; the hint is the command that fills it."""


class MissingExtraError(QuadranasError):
    """An optional package is not installed; the hint names the extra to install."""


class DeviceLostError(QuadranasError):
    """The connection to a device was lost; measurements taken before are kept."""


class PromiseMissedError(QuadranasError):
    """The result misses a budget, a numerical check or an accuracy limit (exit code 3)."""

    exit_code = 3


class RunInterruptedError(KeyboardInterrupt):
    """Ctrl-C or SIGTERM during a run: what is left, and the command that continues it.

    Args:
        message: what was interrupted.
        hint: the next step; empty where nothing is left to continue.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


def printable_lines(text: str) -> str:
    """A text in which only line breaks are control characters; see `printable`."""
    return "\n".join(map(printable, text.split("\n")))


def nearest(word: str, accepted: Iterable[str]) -> str:
    """A suffix such as ``; did you mean 'vpu'?``, or an empty string without a close match."""
    matches = get_close_matches(word, list(accepted), n=1, cutoff=0.5)
    return f"; did you mean {matches[0]!r}?" if matches else ""


def unknown(thing: str, value: str, accepted: Iterable[str], hint: str = "") -> QuadranasError:
    """The error for an unknown name: lists the accepted names and suggests the nearest."""
    names = sorted(accepted)
    message = f"unknown {thing} {value!r}; accepted: {', '.join(names)}{nearest(value, names)}"
    return QuadranasError(message, hint)


def printable(name: str) -> str:
    """A name in one line that any terminal and file can hold: other characters are escaped."""
    escaped = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)
    return "".join(escaped)


def refuse_unwritable(name: str, what: str) -> None:
    """Refuse a name of a file or folder that configurations and results cannot contain.

    Raises:
        QuadranasError: it is not UTF-8; names `what`.
    """
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise QuadranasError(
            f"{what} '{printable(name)}' is not UTF-8, so it cannot be written to a configuration "
            "or a result",
            "Rename the file or folder, or reach it through a link with another name.",
        ) from error
