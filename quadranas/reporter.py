"""Messages and progress of long-running commands, on stderr."""

from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.text import Text

from quadranas.errors import printable_lines

SHOWN = {
    "loss": "loss {:.3f}",
    "accuracy": "acc {:.1%}",
    "gate_accuracy": "held-out {:.1%}",
    "expected_ms": "E[latency] {:.4g} ms",
    "entropy": "entropy {:.2f}",
    "skip_rate": "skip {:.2f}",
}


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
        return super().render_str(printable_lines(text), **options)


class Reporter:
    """Prints to stderr: a live progress bar in a terminal, otherwise one line per epoch.

    Args:
        quiet: print warnings only.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        self.console = PlainConsole(stderr=True)
        self.quiet = quiet
        columns = ("{task.description}", "{task.fields[metrics]}")
        self.progress = Progress(
            TextColumn(columns[0], markup=False),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn(columns[1], markup=False),
            console=self.console,
            disable=quiet or not self.is_live,
        )

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.progress.stop()

    @property
    def is_live(self) -> bool:
        """Whether stderr is a terminal, where a live bar shows the progress."""
        return self.console.is_terminal

    def message(self, text: str) -> None:
        """Print a message, unless quiet."""
        if not self.quiet:
            self.console.print(text)

    def warning(self, text: str) -> None:
        """Print a warning, even if quiet."""
        self.console.print(f"warning: {text}", style="yellow")

    def phase(self, name: str, num_steps: int, done: int) -> int:
        """Begin a phase; returns a handle for `advance`."""
        return int(self.progress.add_task(name, total=num_steps, completed=done, metrics=""))

    def advance(self, phase: int, done: int) -> None:
        """Report the number of finished steps."""
        self.progress.update(phase, completed=done)  # type: ignore[arg-type]

    def epoch(
        self, phase: int, metrics: Mapping[str, float | str | None], remaining_s: float
    ) -> None:
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
            self.message(f"{name:<14} {text}  {remaining_s / 60:.1f} min left")
