"""The time that a timed call lost to other processes.

On Linux the scheduler counts, for each thread, how long it was ready to run and waited for a
processor (`/proc/PID/task/TID/schedstat`, second number, ns). That is what a busy neighbour takes,
and the only sign that also holds for several threads: wall time less CPU time counts waiting for
locks and files too, and with N threads the CPU time may be anything up to N times the wall time.
The number of involuntary context switches says how often, not how long. Under a busy loop on the
same core of a 2-core x86-64 server (Linux 6.18, 2026-11-29) the run delay of calls of 8 ms agreed
with wall time less CPU time within 0.1 ms. Elsewhere that difference is used; for several threads
it is unknown. Time that a hypervisor takes from the whole machine shows in neither.
"""

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Protocol

TASKS = Path("/proc/self/task")
"""Folder of the threads of this process."""

MAX_THREADS = 64
"""Limit on the watched threads, each of which is an open file."""

PARALLEL = 1.1
"""CPU time relative to wall time above which several threads have worked."""


class CallTimes(list[float]):
    """The times of calls, in milliseconds.

    Args:
        lost_ms: for each call, the time that it waited for a processor; `None` where unknown.
    """

    def __init__(self, times_ms: Iterable[float], lost_ms: Iterable[float | None]) -> None:
        super().__init__(times_ms)
        self.lost_ms = tuple(lost_ms)


class ProcessorWatch(Protocol):
    """Finds the time that calls lost."""

    def start(self) -> None:
        """Begin a call."""

    def lost_ms(self, wall_ms: float) -> float | None:
        """The time lost since `start`; `None` if it is unknown.

        Args:
            wall_ms: duration of the call.
        """


class SchedulerWatch:
    """Reads the run delay of threads of this process; `contextlib.closing` closes its files.

    Args:
        threads: ids of the threads.
        tasks: see `TASKS`.

    Raises:
        OSError, ValueError, IndexError: the scheduler keeps no statistics.
    """

    def __init__(self, threads: Iterable[int], tasks: Path = TASKS) -> None:
        self.files: list[int] = []
        self.before: list[int] = []
        try:
            for thread in threads:
                self.files.append(os.open(tasks / str(thread) / "schedstat", os.O_RDONLY))
            if not any(run_ns for run_ns, _ in map(_read, self.files)):
                raise OSError("the scheduler keeps no statistics")
        except (OSError, ValueError, IndexError):
            self.close()
            raise

    def start(self) -> None:
        """See `ProcessorWatch`."""
        self.before = self._delays_ns()

    def lost_ms(self, wall_ms: float) -> float | None:
        """See `ProcessorWatch`: the longest delay, since threads wait for the slowest."""
        waited = zip(self._delays_ns(), self.before, strict=True)
        # A delay between reading and timing can be longer than the call.
        return min(max((now - then) / 1e6 for now, then in waited), wall_ms)

    def _delays_ns(self) -> list[int]:
        delays = []
        for file in self.files:
            try:
                delays.append(_read(file)[1])
            except OSError:  # the thread has ended
                delays.append(0)
        return delays

    def close(self) -> None:
        """Close the files; the watch cannot be used after that."""
        while self.files:
            os.close(self.files.pop())


def _read(file: int) -> tuple[int, int]:
    """How long a thread has run, and how long it has waited to run, in nanoseconds."""
    ran, waited, *_ = os.pread(file, 64, 0).split()
    return int(ran), int(waited)


class ClockWatch:
    """Compares wall time with CPU time, where the scheduler offers no statistics.

    Args:
        cpu_ns: clock of the CPU time of this process.
    """

    def __init__(self, cpu_ns: Callable[[], int] = time.process_time_ns) -> None:
        self.cpu_ns = cpu_ns
        self.before = 0

    def start(self) -> None:
        """See `ProcessorWatch`."""
        self.before = self.cpu_ns()

    def lost_ms(self, wall_ms: float) -> float | None:
        """See `ProcessorWatch`."""
        cpu_ms = (self.cpu_ns() - self.before) / 1e6
        if cpu_ms > PARALLEL * wall_ms:
            return None
        return max(0.0, wall_ms - cpu_ms)


def call_times_ms(call: Callable[[], object], repeats: int) -> CallTimes:
    """Time calls in this process, in milliseconds, after one that is discarded."""
    with open_watch(_threads_of(call)) as watch:
        return watched_times_ms(call, repeats, watch)


@contextmanager
def open_watch(threads: Iterable[int], tasks: Path = TASKS) -> Iterator[ProcessorWatch]:
    """The best watch of threads of this process that the system offers.

    Args:
        threads: ids of the threads, one of which is running.
    """
    try:
        watch = SchedulerWatch(threads, tasks)
    except (OSError, ValueError, IndexError):  # no such file, or without these numbers
        yield ClockWatch()
        return
    with closing(watch):
        yield watch


def watched_times_ms(
    call: Callable[[], object],
    repeats: int,
    watch: ProcessorWatch,
    clock_ns: Callable[[], int] = time.perf_counter_ns,
) -> CallTimes:
    """Time calls, and find with a watch what they lost."""
    times, lost = [], []
    for _ in range(repeats):
        watch.start()
        start = clock_ns()
        call()
        times.append((clock_ns() - start) / 1e6)
        lost.append(watch.lost_ms(times[-1]))
    return CallTimes(times, lost)


def own_threads() -> list[int]:
    """The threads of this process that can work in a call, the calling one first.

    Python's other threads, such as that of a progress bar, cannot.
    """
    others = {thread.native_id for thread in threading.enumerate()}
    return [threading.get_native_id(), *_run_times(others)][:MAX_THREADS]


def _threads_of(call: Callable[[], object]) -> list[int]:
    """Make a call; returns those of `own_threads` that worked in it."""
    own = threading.get_native_id()
    others = {thread.native_id for thread in threading.enumerate()}
    before = _run_times(others)
    call()
    worked = [thread for thread, ns in _run_times(others).items() if ns > before.get(thread, -1)]
    return [own, *worked[: MAX_THREADS - 1]]


def _run_times(without: set[int | None]) -> dict[int, int]:
    """How long each thread of this process, except some, has run, in nanoseconds."""
    found: dict[int, int] = {}
    with suppress(OSError):
        for task in TASKS.iterdir():
            if int(task.name) not in without:
                # A thread can end at any time.
                with suppress(OSError, ValueError, IndexError):
                    found[int(task.name)] = int((task / "schedstat").read_bytes().split()[0])
    return found
