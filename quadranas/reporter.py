"""Messages and progress of long-running commands, on stderr."""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from rich.console import Console
from rich.text import Text

from quadranas.errors import printable_lines

SHOWN = {
    "loss": "loss {:.3f}",
    "accuracy": "acc {:.1%}",
    "val_accuracy": "val {:.1%}",
    "expected_ms": "E[latency] {:.4g} ms",
    "gate_accuracy": "held-out {:.1%}",
    "entropy": "entropy {:.2f}",
    "skip_rate": "skip {:.2f}",
}
"""The metrics that are shown, the most important first: a narrow terminal cuts the others."""

MAX_PRINTED = 100_000
"""Maximum number of characters of a text that is printed: a name in a file can have millions."""

SECONDS_PER_LINE = 30.0
"""Without a terminal, the longest time without a line while steps are done."""


class PlainConsole(Console):
    """A console that prints texts as they are: names may come from files.

    Markup such as `[red]` and `:smile:` is not interpreted, and control characters are escaped.

    Args:
        stderr: print to stderr instead of stdout.
        soft_wrap: leave the wrapping of lines to the terminal; not for tables.
    """

    def __init__(self, *, stderr: bool = False, soft_wrap: bool = True) -> None:
        super().__init__(
            stderr=stderr, soft_wrap=soft_wrap, highlight=False, markup=False, emoji=False
        )

    def render_str(self, text: str, **options: Any) -> Text:
        """The text to print, also for the cells of tables."""
        more = "..." if len(text) > MAX_PRINTED else ""
        return super().render_str(printable_lines(text[:MAX_PRINTED]) + more, **options)


def time_left(seconds: float) -> str:
    """A remaining time in words: `40 s left`, `12 min left`, `3 h 5 min left`."""
    if seconds < 90:
        return f"{math.ceil(max(seconds, 0))} s left"
    minutes = math.ceil(seconds / 60)
    if minutes < 90:
        return f"{minutes} min left"
    return f"{minutes // 60} h {minutes % 60} min left"


@dataclass
class _Phase:
    """A phase and its pace; steps of later phases are assumed to take as long as its own."""

    name: str
    num_steps: int
    first: int
    later_steps: int
    started_at: float
    done: int

    @property
    def left(self) -> str:
        """The remaining time of this and later phases; empty before the first step."""
        if self.done <= self.first:
            return ""
        pace = (time.monotonic() - self.started_at) / (self.done - self.first)
        return time_left(pace * (self.num_steps - self.done + self.later_steps))


class Reporter:
    """Prints to stderr: a live progress bar in a terminal, otherwise lines at intervals.

    Args:
        quiet: print warnings only.
        silent: print nothing, as in a process that only follows another one.
    """

    def __init__(self, *, quiet: bool = False, silent: bool = False) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
        from rich.table import Column

        self.console = PlainConsole(stderr=True)
        self.quiet, self.silent = quiet or silent, silent
        self._phases: dict[int, _Phase] = {}
        self._printed_at = time.monotonic()
        # Where the line is too narrow, the metrics are cut, and nothing else.
        rest = Column(no_wrap=True, overflow="ellipsis", ratio=1)
        self.progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=10),
            MofNCompleteColumn(),
            TextColumn("{task.fields[left]}", markup=False),
            TextColumn("{task.fields[metrics]}", markup=False, table_column=rest),
            console=self.console,
            disable=self.quiet or not self.is_live,
            expand=True,
        )

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self.progress.stop()

    @property
    def is_live(self) -> bool:
        """Whether stderr is a terminal, where a live bar shows the progress."""
        return self.console.is_terminal

    def message(self, text: str) -> None:
        """Print a message, unless quiet."""
        if not self.quiet:
            self._printed_at = time.monotonic()
            self.console.print(text)

    def warning(self, text: str) -> None:
        """Print a warning, even if quiet."""
        if not self.silent:
            self.console.print(f"warning: {text}", style="yellow")

    def phase(self, name: str, num_steps: int, done: int, later_steps: int = 0) -> int:
        """Begin a phase; returns a handle for `advance`.

        Args:
            later_steps: number of steps of the phases that follow, for the remaining time.
        """
        added = self.progress.add_task(name, total=num_steps, completed=done, metrics="", left="")
        started = time.monotonic()
        self._phases[added] = _Phase(name, num_steps, done, later_steps, started, done)
        return int(added)

    def advance(self, phase: int, done: int) -> None:
        """Report the number of finished steps."""
        begun = self._phases[phase]
        begun.done = done
        left = begun.left
        self.progress.update(phase, completed=done, left=left)  # type: ignore[arg-type]
        if not self.is_live and time.monotonic() - self._printed_at >= SECONDS_PER_LINE:
            self.message(f"{begun.name}: {done} of {begun.num_steps} steps, {left}")

    def epoch(self, phase: int, metrics: Mapping[str, float | str | None]) -> None:
        """Report the metrics of an epoch."""
        parts = []
        for key, template in SHOWN.items():
            value = metrics.get(key)
            if isinstance(value, float):
                parts.append(template.format(value))
        text = "  ".join(parts)
        self.progress.update(phase, metrics=text)  # type: ignore[arg-type]
        if not self.is_live:
            name = f"{metrics['phase']} {metrics.get('resolution', metrics['epoch'])}"
            self.message(f"{name:<14} {text}  {self._phases[phase].left}")
