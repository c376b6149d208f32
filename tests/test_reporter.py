"""Messages and progress: what a person sees in a terminal of 80 columns, and in a log."""

from collections.abc import Callable
from io import StringIO

import pytest
from rich.console import Console

from quadranas.reporter import SECONDS_PER_LINE, Reporter, time_left

METRICS: dict[str, float | str | None] = {
    "phase": "search",
    "epoch": 3,
    "loss": 1.2345,
    "accuracy": 0.456,
    "gate_accuracy": 0.4,
    "expected_ms": 29.87,
    "entropy": 0.71,
    "skip_rate": 0.25,
}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets the time."""
    now = [1000.0]
    monkeypatch.setattr("quadranas.reporter.time.monotonic", lambda: now[0])

    def at(seconds: float) -> None:
        now[0] = 1000.0 + seconds

    return at


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "1 s left"),
        (89, "89 s left"),
        (91, "2 min left"),
        (3600, "60 min left"),
        (7500, "2 h 5 min left"),
    ],
)
def test_a_remaining_time_has_a_unit_that_suits_it(seconds: float, text: str) -> None:
    assert time_left(seconds) == text


def test_without_a_terminal_a_line_tells_how_far_it_is(
    clock: Callable[[float], None], capsys: pytest.CaptureFixture[str]
) -> None:
    with Reporter() as reporter:
        handle = reporter.phase("compiling", 104, 0)
        for done in range(1, 105):
            clock(done * 2)
            reporter.advance(handle, done)
    lines = capsys.readouterr().err.splitlines()
    assert lines[:2] == [
        "compiling: 15 of 104 steps, 3 min left",
        "compiling: 30 of 104 steps, 3 min left",
    ]
    assert len(lines) == 208 // SECONDS_PER_LINE
    quiet = Reporter(quiet=True)
    handle = quiet.phase("compiling", 2, 0)
    clock(1000)
    quiet.advance(handle, 1)
    assert capsys.readouterr().err == ""


def test_the_remaining_time_is_that_of_all_phases(
    clock: Callable[[float], None], capsys: pytest.CaptureFixture[str]
) -> None:
    reporter = Reporter()
    handle = reporter.phase("search", 20, 10, later_steps=90)
    clock(100)
    reporter.advance(handle, 15)  # five steps in 100 s; 5 and then 90 are left
    reporter.epoch(handle, METRICS)
    *_, line = capsys.readouterr().err.splitlines()
    assert line == (
        "search 3       loss 1.234  acc 45.6%  E[latency] 29.87 ms  held-out 40.0%  entropy 0.71  "
        "skip 0.25  32 min left"
    )


@pytest.mark.parametrize("width", [80, 200])
def test_a_terminal_of_80_columns_shows_progress_and_time(
    clock: Callable[[float], None], monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    monkeypatch.setattr(Console, "is_terminal", True)
    reporter = Reporter()
    handle = reporter.phase("search", 12_345, 0, later_steps=90_000)
    clock(1000)
    reporter.advance(handle, 2_345)
    reporter.epoch(handle, METRICS)
    printed = Console(file=StringIO(), width=width, force_terminal=False, color_system=None)
    printed.print(reporter.progress.get_renderable())
    assert isinstance(printed.file, StringIO)
    (line,) = printed.file.getvalue().splitlines()
    assert line.startswith("search ")
    assert " 2345/12345 11 h 51 min left loss 1.234  acc" in line
    assert ("skip 0.25" in line) == (width == 200)
