"""The time that calls lose: read from the scheduler, or from clocks, or not known."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path

import pytest

from quadranas.latency.host import pinned, usable_cores
from quadranas.latency.journal import Calls
from quadranas.latency.processor import (
    MAX_THREADS,
    TASKS,
    CallTimes,
    ClockWatch,
    SchedulerWatch,
    call_times_ms,
    open_watch,
    own_threads,
    watched_times_ms,
)
from quadranas.measurement.timing import LOST, undisturbed_calls
from tests.measuring import ScriptedProgram


def statistics(folder: Path, thread: int, ran_ns: int, waited_ns: int) -> None:
    """Write what the scheduler says about a thread, without moving the file."""
    (folder / str(thread)).mkdir(exist_ok=True)
    (folder / str(thread) / "schedstat").write_text(f"{ran_ns} {waited_ns} 3\n")


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    for thread in (7, 8):
        statistics(tmp_path, thread, 10**9, 10**6)
    return tmp_path


def test_the_longest_wait_of_a_thread_is_what_a_call_lost(tasks: Path) -> None:
    with open_watch([7, 8], tasks) as watch:
        assert isinstance(watch, SchedulerWatch)
        watch.start()
        statistics(tasks, 7, 2 * 10**9, 3 * 10**6)
        statistics(tasks, 8, 2 * 10**9, 5 * 10**6)
        assert watch.lost_ms(20.0) == 4.0
        assert watch.lost_ms(1.5) == 1.5  # the rest was before or after the call
        watch.start()
        assert watch.lost_ms(20.0) == 0.0
    assert watch.files == []


@pytest.mark.parametrize("content", ["0 0 0\n", "", "12\n", "words and words\n"])
def test_without_statistics_clocks_are_compared(tasks: Path, content: str) -> None:
    (tasks / "7" / "schedstat").write_text(content)
    with open_watch([7], tasks) as watch:
        assert isinstance(watch, ClockWatch)
    with open_watch([9], tasks) as watch:
        assert isinstance(watch, ClockWatch)


def test_an_ended_thread_lost_nothing() -> None:
    release = threading.Event()
    thread = threading.Thread(target=release.wait)
    thread.start()
    assert thread.native_id is not None
    with open_watch([threading.get_native_id(), thread.native_id]) as watch:
        watch.start()
        release.set()
        thread.join()
        lost_ms = watch.lost_ms(1e3)
        assert lost_ms is not None
        assert lost_ms >= 0


@pytest.mark.parametrize(
    ("wall_ms", "cpu_ms", "lost_ms"),
    [(10.0, 10.0, 0.0), (21.0, 12.0, 9.0), (10.0, 10.2, 0.0), (10.0, 38.0, None)],
)
def test_wall_time_less_cpu_time(wall_ms: float, cpu_ms: float, lost_ms: float | None) -> None:
    """Of several threads, which take more CPU time than there was, nothing is known."""
    watch = ClockWatch(cpu_ns=iter([5_000_000, 5_000_000 + round(cpu_ms * 1e6)]).__next__)
    watch.start()
    assert watch.lost_ms(wall_ms) == lost_ms


def test_every_call_is_watched_by_itself() -> None:
    """Wall times 3, 8 and 4 ms, of which the second waited 5."""
    wall = accumulate([0, 3, 0, 8, 0, 4])
    cpu = accumulate([0, 3, 0, 3, 0, 4])
    watch = ClockWatch(cpu_ns=lambda: next(cpu) * 10**6)
    calls: list[int] = []
    times = watched_times_ms(lambda: calls.append(0), 3, watch, lambda: next(wall) * 10**6)
    assert times == [3.0, 8.0, 4.0]
    assert times.lost_ms == (0.0, 5.0, 0.0)
    assert len(calls) == 3


def test_one_call_is_discarded() -> None:
    calls: list[int] = []
    times = call_times_ms(lambda: calls.append(0), 4)
    assert len(times) == len(times.lost_ms) == 4
    assert len(calls) == 5


def test_errors_of_calls_are_not_taken_for_missing_statistics() -> None:
    calls: list[int] = []

    def fail() -> None:
        calls.append(0)
        if len(calls) == 3:
            raise ValueError("the runtime failed")

    with pytest.raises(ValueError, match="the runtime failed"):
        call_times_ms(fail, 5)
    assert len(calls) == 3


@pytest.mark.skipif(not TASKS.is_dir(), reason="needs Linux")
def test_other_threads_of_python_are_not_watched() -> None:
    release = threading.Event()
    thread = threading.Thread(target=release.wait)
    thread.start()
    try:
        found = own_threads()
        assert found[0] == threading.get_native_id()
        assert thread.native_id not in found
        assert len(found) <= MAX_THREADS
    finally:
        release.set()
        thread.join()


# What becomes of calls that lost time


class Disturbed(ScriptedProgram):
    """Calls of 10 ms plus what they lose."""

    def __init__(self, lost_ms: list[list[float | None]]) -> None:
        super().__init__(0.0)
        self.lost_ms = iter(lost_ms)

    def time_ms(self, repeats: int) -> list[float]:
        self.calls += 1
        lost_ms = next(self.lost_ms)
        assert len(lost_ms) == repeats
        return CallTimes((10.0 + (lost or 0.0) for lost in lost_ms), lost_ms)


def test_disturbed_calls_are_dropped_and_repeated() -> None:
    program = Disturbed([[0.0, 4.0, 0.0], [7.0, 0.05, 0.0], [0.0, 0.0, 0.0]])
    times, calls = undisturbed_calls(program, 3)
    assert times == [10.0, 10.0, 10.05]
    assert calls == Calls(made=6, disturbed=2)
    assert program.calls == 2


def test_disturbed_calls_are_kept_only_if_there_are_no_others() -> None:
    always: list[list[float | None]] = [[9.0, 8.0, 7.0]]
    times, calls = undisturbed_calls(Disturbed(always * 3), 3)
    assert times == [19.0, 18.0, 17.0]
    assert calls == Calls(made=9, disturbed=9)
    times, calls = undisturbed_calls(Disturbed([*always * 2, [9.0, 0.0, 9.0]]), 3)
    assert times == [10.0]
    assert calls == Calls(made=9, disturbed=8)


def test_what_is_unknown_is_not_zero() -> None:
    assert undisturbed_calls(ScriptedProgram(3.0), 2) == ([3.0, 3.0], None)
    assert undisturbed_calls(Disturbed([[0.0, None]]), 2) == ([10.0, 10.0], None)


# A busy loop on the same core

SPIN = """
import os, sys
os.sched_setaffinity(0, {int(sys.argv[1])})
print(flush=True)
while os.getppid() == int(sys.argv[2]):
    sum(range(10_000))
"""


@contextmanager
def busy_loop(core: int) -> Iterator[None]:
    """Another process that wants all the time of a core."""
    command = [sys.executable, "-S", "-c", SPIN, str(core), str(os.getpid())]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield
        finally:
            process.kill()


class Spinning(ScriptedProgram):
    """Every call takes so much processor time, however long that lasts."""

    def __init__(self, cpu_ms: float) -> None:
        super().__init__(cpu_ms)
        self.cpu_ns = round(cpu_ms * 1e6)

    def time_ms(self, repeats: int) -> list[float]:
        def call() -> None:
            end = time.thread_time_ns() + self.cpu_ns
            while time.thread_time_ns() < end:
                pass

        return call_times_ms(call, repeats)


@pytest.mark.skipif(not TASKS.is_dir(), reason="pins processes and reads the scheduler of Linux")
def test_a_busy_loop_on_the_same_core_is_noticed() -> None:
    """Long calls are all disturbed; of short ones, those that are kept are as without the loop."""
    with pinned(1), busy_loop(usable_cores()[0]):
        times, calls = undisturbed_calls(Spinning(40.0), 2)
        assert calls is not None
        assert calls.disturbed == calls.made
        assert min(times) > 40 * (1 + LOST)
        watched = Spinning(40.0).time_ms(2)
        assert isinstance(watched, CallTimes)
        for ms, lost_ms in zip(watched, watched.lost_ms, strict=True):
            assert lost_ms is not None
            assert ms - lost_ms == pytest.approx(40, rel=0.15)  # what the call is without the loop
        times, calls = undisturbed_calls(Spinning(0.5), 20)
        assert calls is not None
        assert calls.made > calls.disturbed
        assert sorted(times)[len(times) // 2] == pytest.approx(0.5, rel=0.15)
