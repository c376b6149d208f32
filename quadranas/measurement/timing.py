"""Timing programs so that their latencies can be compared: in shuffled rounds.

A round is one pass over all programs in random order, so that anything that slows the machine down
for a while affects all of them alike. A program's latency is the first quartile of its rounds'
minima. The minimum inside a round excludes disturbances of single calls; the quartile over the
rounds excludes disturbed rounds, and exceptionally fast ones too: on a shared virtual machine (2
cores of a Zen 5, 2026-11-21) short programs reached their overall minimum in bursts too short for
long programs, and two halves of one measurement differed by 1.4 % in the minimum, but by 0.8 % in
the quartile. A reference operation, timed several times in every round, shows which rounds were
disturbed; another round is added for each.
"""

import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from random import Random

import numpy as np

from quadranas.backends.interface import Program
from quadranas.latency.journal import Journal
from quadranas.measurement.plan import Plan
from quadranas.reporter import Reporter, time_left

REFERENCE = "reference"
REFERENCES_PER_ROUND = 5

DISTURBED = 0.05
"""A round whose reference is slower than the quietest round's by more than this is disturbed."""

DISAGREEMENT = 0.01
"""A program whose latencies in odd and even rounds differ by more than this is unsteady, and is
timed again."""

STATISTIC = "first quartile of the rounds' minima"

TIMINGS = ".timings"
"""Suffix of the journal that stores the timings until the file is complete."""

MAX_EXTRA = 10
"""Limit on the rounds beyond the planned ones, for disturbed rounds and unsteady programs."""


@dataclass(frozen=True)
class Timing:
    """The latency of a program, in milliseconds.

    Args:
        latency_ms: first quartile of the rounds' minima.
        minimum_ms, median_ms: minimum and median of all calls.
        spread: interquartile range of all calls, relative to their median.
    """

    latency_ms: float
    minimum_ms: float
    median_ms: float
    spread: float
    num_rounds: int


@dataclass(frozen=True)
class Timings:
    """The latencies of programs, and the noise of the machine.

    Args:
        reference_ms: latency of the reference operation.
        num_disturbed: number of rounds whose reference was slow.
        noise: relative difference between odd and even rounds, median over the programs.
    """

    programs: Mapping[str, Timing]
    reference_ms: float
    num_rounds: int
    num_disturbed: int
    noise: float


def time_programs(
    programs: Mapping[str, Program],
    journal: Journal,
    reporter: Reporter,
    plan: Plan,
    *,
    max_parallel: int = 1,
) -> Timings:
    """Time programs in shuffled rounds; timings already in the journal are not repeated.

    Args:
        programs: the programs by name; one of them is `REFERENCE`.
        max_parallel: number of programs that can be timed at once.
    """
    names = [name for name in programs if name != REFERENCE]
    rounds = _Rounds(programs, journal, plan, max_parallel)
    total = plan.num_rounds * (len(names) + REFERENCES_PER_ROUND)
    phase = reporter.phase("timing", total, journal.num_timings)
    started, done_before = time.monotonic(), journal.num_timings

    def advance() -> None:
        reporter.advance(phase, min(journal.num_timings, total))

    for number in range(plan.num_rounds):
        rounds.run(number, names, advance)
        done = journal.num_timings
        if done > done_before:
            left_s = (time.monotonic() - started) / (done - done_before) * (total - done)
            _say_round(reporter, number + 1, plan.num_rounds, left_s)
    for number in range(plan.num_rounds, plan.num_rounds + MAX_EXTRA):
        # Further rounds time all programs until enough rounds were quiet, then the unsteady ones.
        quiet = number - len(_disturbed(journal))
        again = names
        if quiet >= plan.num_rounds:
            again = [n for n in names if _disagreement(_rounds_of(n, journal)) > DISAGREEMENT]
        if not again:
            break
        rounds.run(number, again, advance)
    return _summarise(names, journal)


class _Rounds:
    """Runs rounds of all programs, in an order that depends on seed and round number."""

    def __init__(
        self, programs: Mapping[str, Program], journal: Journal, plan: Plan, max_parallel: int
    ) -> None:
        self.programs = programs
        self.journal = journal
        self.plan = plan
        self.max_parallel = max_parallel

    def run(self, number: int, names: Sequence[str], advance: Callable[[], None]) -> None:
        order = list(names)
        Random(f"{self.plan.seed} {number}").shuffle(order)
        step = max(1, len(order) // REFERENCES_PER_ROUND)
        for index in range(REFERENCES_PER_ROUND):
            order.insert(index * (step + 1), f"{REFERENCE} {index}")
        samples = self.journal.samples
        todo = [name for name in order if number not in samples.get(name, {})]
        started = time.monotonic()
        for name, times in self._time(todo):
            self.journal.add(name, number, times)
            advance()
        if todo:
            time.sleep(max(0.0, self.plan.round_s - (time.monotonic() - started)))

    def _time(self, names: Sequence[str]) -> Iterable[tuple[str, list[float]]]:
        def time_one(name: str) -> list[float]:
            key = REFERENCE if name.startswith(f"{REFERENCE} ") else name
            return self.programs[key].time_ms(self.plan.repeats)

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


def _reference_ms(journal: Journal) -> dict[int, float]:
    """The latency of the reference by round: the median of its timings there."""
    rounds: dict[int, list[float]] = {}
    for index in range(REFERENCES_PER_ROUND):
        for number, times in journal.samples.get(f"{REFERENCE} {index}", {}).items():
            rounds.setdefault(number, []).append(min(times))
    return {number: statistics.median(times) for number, times in rounds.items()}


def _disturbed(journal: Journal) -> set[int]:
    """The rounds whose reference was slow."""
    rounds = _reference_ms(journal)
    quietest = min(rounds.values())
    return {number for number, ms in rounds.items() if ms > quietest * (1 + DISTURBED)}


def _latency_ms(rounds: Sequence[Sequence[float]]) -> float:
    """The first quartile of the rounds' minima."""
    return float(np.percentile([min(times) for times in rounds], 25))


def _disagreement(rounds: Sequence[Sequence[float]]) -> float:
    """Relative difference between the latencies in odd and in even rounds."""
    low, high = sorted((_latency_ms(rounds[::2]), _latency_ms(rounds[1::2] or rounds)))
    return high / low - 1


def _rounds_of(name: str, journal: Journal) -> list[list[float]]:
    return [times for _, times in sorted(journal.samples[name].items())]


def timing_of(rounds: Sequence[Sequence[float]]) -> Timing:
    """The statistics of a program's calls.

    Args:
        rounds: milliseconds of the calls of each round.
    """
    calls = np.concatenate([np.asarray(times) for times in rounds])
    quarter, median, three_quarters = np.percentile(calls, [25, 50, 75])
    return Timing(
        latency_ms=_latency_ms(rounds),
        minimum_ms=float(calls.min()),
        median_ms=float(median),
        spread=float((three_quarters - quarter) / median),
        num_rounds=len(rounds),
    )


def _summarise(names: Sequence[str], journal: Journal) -> Timings:
    references = list(_reference_ms(journal).values())
    return Timings(
        programs={name: timing_of(_rounds_of(name, journal)) for name in names},
        reference_ms=float(np.percentile(references, 25)),
        num_rounds=len(references),
        num_disturbed=len(_disturbed(journal)),
        noise=statistics.median(_disagreement(_rounds_of(name, journal)) for name in names),
    )
