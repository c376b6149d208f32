"""Timing programs so that their latencies can be compared: in shuffled rounds.

A round is one pass over all programs in random order, so that anything that slows the machine down
for a while affects all of them alike. A program's latency is the first quartile of its rounds'
minima. The minimum inside a round excludes disturbances of single calls; the quartile over the
rounds excludes disturbed rounds, and exceptionally fast ones too: on a shared virtual machine (2
cores of a Zen 5, 2026-11-21) short programs reached their overall minimum in bursts too short for
long programs, and two halves of one measurement differed by 1.4 % in the minimum, but by 0.8 % in
the quartile. A reference operation, timed several times in every round, shows which rounds were
disturbed; another round is added for each.

A call that waited for a processor is dropped and repeated (`latency/processor.py`). The reference
alone does not show such calls: it is shorter than the time slice of a busy neighbour, while a long
network is interrupted in every call.

A device that is too hot, or lacks power, lowers its clock for a while. Where it says so, the whole
round is discarded, and repeated after a pause.
"""

import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from random import Random

from quadranas.backends.interface import Program
from quadranas.errors import ThrottledError
from quadranas.latency.journal import Calls, Journal
from quadranas.latency.processor import CallTimes
from quadranas.measurement.plan import Plan
from quadranas.measurement.summary import (
    REFERENCE,
    REFERENCES_PER_ROUND,
    Timings,
    disturbed_rounds,
    dropped_share,
    is_undisturbed,
    summarise,
    timing_in,
)
from quadranas.reporter import Reporter, time_left

DISAGREEMENT = 0.01
"""A program whose latencies in odd and even rounds differ by more than this is unsteady, and is
timed again."""

LOST = 0.01
"""A call that waited for a processor for more than this fraction of its time is disturbed."""

MAX_ATTEMPTS = 3
"""Limit on the attempts to get undisturbed calls of a program in one round."""

BUSY = 0.2
"""Share of disturbed calls above which a machine is busy: the measurement says so, and nothing is
concluded about the speed of the machine."""

COOLING_S = (10, 30, 60, 120, 240)
"""The pauses before a round is repeated because the device lowered its clock."""

TIMINGS = ".timings"
"""Suffix of the journal that stores the timings until the file is complete."""

MAX_EXTRA = 10
"""Limit on the rounds beyond the planned ones, for disturbed rounds and unsteady programs."""


def time_programs(
    programs: Mapping[str, Program],
    journal: Journal,
    reporter: Reporter,
    plan: Plan,
    *,
    max_parallel: int = 1,
    companions: Collection[str] = (),
) -> Timings:
    """Time programs in shuffled rounds; timings already in the journal are not repeated.

    Args:
        programs: the programs by name; one of them is `REFERENCE`.
        max_parallel: number of programs that can be timed at once.
        companions: programs to time beside those that were begun again, to compare with.
    """
    names = [name for name in programs if name != REFERENCE]
    sessions = _sessions(names, journal, companions)
    progress = _Progress(journal, reporter, plan, sum(map(len, sessions.values())), len(sessions))
    rounds = _Rounds(programs, journal, plan, max_parallel, progress)
    ends = [*list(sessions)[1:], None]
    for (start, members), end in zip(sessions.items(), ends, strict=True):
        rounds.run_session(start, end, members)
    return summarise(sessions, companions, journal, plan)


def undisturbed_calls(
    program: Program, repeats: int, attempts: int = MAX_ATTEMPTS
) -> tuple[list[float], Calls | None]:
    """Time calls; those that lost the processor are dropped and repeated.

    Args:
        attempts: how often to time `repeats` calls until as many are undisturbed.

    Returns: the times in milliseconds, of disturbed calls only if there are no others; and the
        numbers of calls, `None` if it is unknown which calls lost the processor.
    """
    kept: list[float] = []
    disturbed: list[float] = []
    for _ in range(attempts):
        times = program.time_ms(repeats)
        if not isinstance(times, CallTimes):
            return times, None
        for ms, lost_ms in zip(times, times.lost_ms, strict=True):
            if lost_ms is None:
                return list(times), None
            (disturbed if lost_ms > LOST * ms else kept).append(ms)
        if len(kept) >= repeats:
            break
    return (kept or disturbed)[:repeats], Calls(len(kept) + len(disturbed), len(disturbed))


def _sessions(
    names: Sequence[str], journal: Journal, companions: Collection[str]
) -> dict[int, list[str]]:
    """The programs to time, by the first round of each session.

    A session follows another when programs are begun again; the companions are part of all.
    """
    begun = {name: journal.begun.get(name, 0) for name in names}
    return {
        start: [n for n in names if begun[n] == start or (n in companions and begun[n] < start)]
        for start in sorted(set(begun.values()))
    }


class _Progress:
    """Reports the progress of a measurement, and once that the machine is busy."""

    def __init__(
        self, journal: Journal, reporter: Reporter, plan: Plan, members: int, sessions: int
    ) -> None:
        self.journal, self.reporter, self.plan = journal, reporter, plan
        self.total = plan.num_rounds * (members + sessions * REFERENCES_PER_ROUND)
        self.phase = reporter.phase("timing", self.total, journal.num_timings)
        self.started, self.done_before = time.monotonic(), journal.num_timings
        self.has_said_busy = False

    def advance(self) -> None:
        """A program was timed."""
        if self.journal.num_timings <= self.total:
            self.reporter.advance(self.phase, self.journal.num_timings)

    def say_throttled(self, error: ThrottledError, pause_s: float) -> None:
        """A round is repeated after a pause."""
        self.reporter.message(
            f"{error.message}; this round is repeated after {pause_s:g} s to cool down"
        )

    def say_extra(self, number: int, programs: int) -> None:
        """A round beyond the plan begins; its number is from 1 on."""
        self.reporter.message(
            f"further round {number} of at most {MAX_EXTRA}, of {programs} programs: rounds were "
            "disturbed, or their times disagree"
        )

    def finish_round(self, number: int) -> None:
        """The planned round of this number, from 1 on, is complete."""
        done = self.journal.num_timings
        if done <= self.done_before:
            return
        left_s = (time.monotonic() - self.started) / (done - self.done_before)
        left_s *= max(0, self.total - done)
        _say_round(self.reporter, number, self.plan.num_rounds, left_s)
        dropped = dropped_share(self.journal.calls.values())
        if not self.has_said_busy and dropped is not None and dropped > BUSY:
            self.has_said_busy = True
            self.reporter.message(
                f"the machine is busy: {dropped:.0%} of the calls so far lost the processor to "
                "other processes and are repeated; stop other programs to measure faster"
            )


class _Rounds:
    """Runs rounds of all programs, in an order that depends on seed and round number."""

    def __init__(
        self,
        programs: Mapping[str, Program],
        journal: Journal,
        plan: Plan,
        max_parallel: int,
        progress: _Progress,
    ) -> None:
        self.programs = programs
        self.journal = journal
        self.plan = plan
        self.max_parallel = max_parallel
        self.progress = progress

    def run_session(self, start: int, end: int | None, names: Sequence[str]) -> None:
        """Run the planned rounds of some programs, and those to be added.

        Args:
            start: the first round.
            end: the first round of the next session.
        """
        planned = start + self.plan.num_rounds
        for number in range(start, min(planned, end or planned)):
            self.run(number, names)
            self.progress.finish_round(number - start + 1)
        last = planned + MAX_EXTRA
        for number in range(planned, min(last, end or last)):
            # Further rounds time all programs until enough rounds were quiet, then those that
            # are unsteady or had too few undisturbed calls.
            quiet = number - start - len(disturbed_rounds(self.journal, start, end))
            again = names
            if quiet >= self.plan.num_rounds:
                again = [name for name in names if self._is_unsteady(name, start, end)]
            if not again:
                break
            self.progress.say_extra(number - planned + 1, len(again))
            self.run(number, again)

    def _is_unsteady(self, name: str, start: int, end: int | None) -> bool:
        timing = timing_in(name, self.journal, self.plan, start, end)
        if timing.is_busy:
            return timing.dropped is None or timing.dropped < 1  # else further rounds are in vain
        return timing.disagreement > DISAGREEMENT

    def run(self, number: int, names: Sequence[str]) -> None:
        """Run a round; while the device is too hot, wait and repeat it.

        Raises:
            ThrottledError: it does not cool down.
        """
        for pause_s in (*COOLING_S, None):
            try:
                self._run_once(number, names)
            except ThrottledError as error:
                self.journal.discard_throttled(number)
                if pause_s is None:
                    raise
                self.progress.say_throttled(error, pause_s)
                time.sleep(pause_s)
            else:
                return

    def _run_once(self, number: int, names: Sequence[str]) -> None:
        order = list(names)
        Random(f"{self.plan.seed} {number}").shuffle(order)
        step = max(1, len(order) // REFERENCES_PER_ROUND)
        for index in range(REFERENCES_PER_ROUND):
            order.insert(index * (step + 1), f"{REFERENCE} {index}")
        samples = self.journal.samples
        todo = [name for name in order if number not in samples.get(name, {})]
        started = time.monotonic()
        for name, (times, calls) in self._time(todo, number):
            self.journal.add(name, number, times, calls)
            self.progress.advance()
        if todo:
            time.sleep(max(0.0, self.plan.round_s - (time.monotonic() - started)))

    def _time(
        self, names: Sequence[str], number: int
    ) -> Iterable[tuple[str, tuple[list[float], Calls | None]]]:
        def time_one(name: str) -> tuple[list[float], Calls | None]:
            key = REFERENCE if name.startswith(f"{REFERENCE} ") else name
            # A neighbour that disturbed all calls of the last round is probably still there.
            is_hopeful = is_undisturbed(name, number - 1, self.journal)
            attempts = MAX_ATTEMPTS if is_hopeful else 1
            return undisturbed_calls(self.programs[key], self.plan.repeats, attempts)

        if self.max_parallel == 1:
            for name in names:
                yield name, time_one(name)
            return
        with ThreadPoolExecutor(self.max_parallel) as pool:
            futures = {pool.submit(time_one, name): name for name in names}
            try:
                for future in as_completed(futures):
                    yield futures[future], future.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise


def _say_round(reporter: Reporter, number: int, total: int, left_s: float) -> None:
    """Report the progress in about ten lines if there is no live progress bar."""
    if not reporter.is_live and number * 10 // total > (number - 1) * 10 // total:
        reporter.message(f"round {number} of {total}, {time_left(left_s)}")
