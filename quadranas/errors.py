"""Errors that a user can fix; the command line prints them and exits with their code."""

from collections.abc import Iterable
from difflib import get_close_matches


class QuadranasError(Exception):
    """A fault that the user can fix: what is wrong, and what to do next.

    Args:
        message: what is wrong, the value that was given, and what is accepted.
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
    """The budget cannot be read, or no network of the space is within it."""


class MissingEntryError(QuadranasError):
    """A latency table lacks an operation; the hint is the command that fills it."""


class MissingExtraError(QuadranasError):
    """An optional package is needed and absent; the hint is the extra to install."""


class DeviceLostError(QuadranasError):
    """A device stopped answering; what was measured is kept."""


class PromiseMissedError(QuadranasError):
    """A budget, numerical check or accuracy limit was missed (exit code 3)."""

    exit_code = 3


class RunInterruptedError(KeyboardInterrupt):
    """Ctrl-C during a run: what is left, and the command that continues it.

    Args:
        message: what was interrupted.
        hint: the next step; empty where nothing is left to continue.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


def nearest(word: str, accepted: Iterable[str]) -> str:
    """A suffix such as ``; did you mean 'vpu'?`` or an empty string when nothing is near."""
    matches = get_close_matches(word, list(accepted), n=1, cutoff=0.5)
    return f"; did you mean {matches[0]!r}?" if matches else ""


def unknown(thing: str, value: str, accepted: Iterable[str], hint: str = "") -> QuadranasError:
    """The error for a name that is not in a list: lists what is accepted, suggests the nearest."""
    names = sorted(accepted)
    message = f"unknown {thing} {value!r}; accepted: {', '.join(names)}{nearest(value, names)}"
    return QuadranasError(message, hint)
