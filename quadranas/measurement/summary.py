"""The statistics of timings: latencies of programs, and the noise of the machine."""

import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from quadranas.latency.journal import Calls, Journal
from quadranas.measurement.plan import Plan

REFERENCE = "reference"
REFERENCES_PER_ROUND = 5

DISTURBED = 0.05
"""A round whose reference is slower than the quietest round's by more than this is disturbed."""

MIN_UNDISTURBED = 5
"""Number of rounds with undisturbed calls that a latency needs; all if fewer are planned."""

STATISTIC = "first quartile of the rounds' minima"


@dataclass(frozen=True)
class Timing:
    """The latency of a program, in milliseconds, by its undisturbed calls if there are any.

    Args:
        latency_ms: first quartile of the rounds' minima.
        minimum_ms, median_ms, p95_ms: minimum, median and 95th percentile of all calls.
        spread: interquartile range of all calls, relative to their median.
        num_rounds: number of rounds that these numbers are of.
        halves_ms: the latency in even and in odd rounds.
        dropped: share of calls that were disturbed; `None` if unknown.
        is_busy: whether too few rounds had undisturbed calls.
    """

    latency_ms: float
    minimum_ms: float
    median_ms: float
    p95_ms: float
    spread: float
    num_rounds: int
    halves_ms: tuple[float, float]
    dropped: float | None = None
    is_busy: bool = False

    @property
    def disagreement(self) -> float:
        """Relative difference between the latencies in odd and in even rounds."""
        low, high = sorted(self.halves_ms)
        return high / low - 1


@dataclass(frozen=True)
class Timings:
    """The latencies of programs, and the noise of the machine.

    Args:
        reference_ms: latency of the reference operation.
        num_disturbed: number of rounds whose reference was slow.
        num_throttled: number of rounds that were repeated because the device lowered its clock.
        noise, noise_p95: relative difference between odd and even rounds, median and 95th
            percentile over the programs.
        dropped: share of all calls that were disturbed; `None` if unknown.
        companions: the programs that were timed beside others again, by their first round there.
    """

    programs: Mapping[str, Timing]
    reference_ms: float
    num_rounds: int
    num_disturbed: int
    noise: float
    noise_p95: float
    dropped: float | None = None
    num_throttled: int = 0
    begun: Mapping[str, int] = field(default_factory=dict)
    companions: Mapping[int, Mapping[str, Timing]] = field(default_factory=dict)

    @property
    def busy(self) -> list[str]:
        """The programs of which too few calls were undisturbed."""
        return [name for name, timing in self.programs.items() if timing.is_busy]

    def beside(self, name: str) -> Mapping[str, Timing]:
        """The companions, timed in the same rounds as a program."""
        return self.companions[self.begun.get(name, 0)]


def is_undisturbed(name: str, number: int, journal: Journal) -> bool:
    """Whether the kept calls of a program in a round had the processor, as far as is known."""
    calls = journal.calls.get(name, {}).get(number)
    return calls is None or calls.disturbed < calls.made


def _in_session(number: int, start: int, end: int | None) -> bool:
    return start <= number and (end is None or number < end)


def _reference_ms(journal: Journal, start: int = 0, end: int | None = None) -> dict[int, float]:
    """The latency of the reference by round: the median of its timings there."""
    rounds: dict[int, list[float]] = {}
    disturbed: dict[int, list[float]] = {}
    for index in range(REFERENCES_PER_ROUND):
        name = f"{REFERENCE} {index}"
        for number, times in journal.samples.get(name, {}).items():
            if _in_session(number, start, end):
                found = rounds if is_undisturbed(name, number, journal) else disturbed
                found.setdefault(number, []).append(min(times))
    return {number: statistics.median(times) for number, times in (disturbed | rounds).items()}


def disturbed_rounds(journal: Journal, start: int = 0, end: int | None = None) -> set[int]:
    """The rounds whose reference was slow."""
    rounds = _reference_ms(journal, start, end)
    quietest = min(rounds.values())
    return {number for number, ms in rounds.items() if ms > quietest * (1 + DISTURBED)}


def _latency_ms(rounds: Sequence[Sequence[float]]) -> float:
    """The first quartile of the rounds' minima."""
    return float(np.percentile([min(times) for times in rounds], 25))


def dropped_share(calls: Iterable[Mapping[int, Calls]]) -> float | None:
    """The share of disturbed calls; `None` if it is unknown."""
    known = [each for rounds in calls for each in rounds.values()]
    made = sum(each.made for each in known)
    return sum(each.disturbed for each in known) / made if made else None


def timing_in(
    name: str, journal: Journal, plan: Plan, start: int = 0, end: int | None = None
) -> Timing:
    """The statistics of a program's rounds in a session."""
    rounds = {
        number: times
        for number, times in sorted(journal.samples[name].items())
        if _in_session(number, start, end)
    }
    kept = [times for n, times in rounds.items() if is_undisturbed(name, n, journal)]
    needed = min(MIN_UNDISTURBED, plan.num_rounds)
    known = journal.calls.get(name, {})
    return timing_of(
        kept or list(rounds.values()),
        dropped=dropped_share([{number: known[number] for number in rounds if number in known}]),
        is_busy=len(kept) < needed,
    )


def timing_of(
    rounds: Sequence[Sequence[float]], *, dropped: float | None = None, is_busy: bool = False
) -> Timing:
    """The statistics of a program's calls.

    Args:
        rounds: milliseconds of the calls of each round.
        dropped, is_busy: see `Timing`.
    """
    calls = np.concatenate([np.asarray(times) for times in rounds])
    quarter, median, three_quarters, p95 = np.percentile(calls, [25, 50, 75, 95])
    return Timing(
        latency_ms=_latency_ms(rounds),
        minimum_ms=float(calls.min()),
        median_ms=float(median),
        p95_ms=float(p95),
        spread=float((three_quarters - quarter) / median),
        num_rounds=len(rounds),
        halves_ms=(_latency_ms(rounds[::2]), _latency_ms(rounds[1::2] or rounds)),
        dropped=dropped,
        is_busy=is_busy,
    )


def busy_text(timing: Timing) -> str:
    """Why a program has no latency that can be used."""
    share = "most" if timing.dropped is None else f"{timing.dropped:.0%}"
    return (
        f"the machine was busy: {share} of the calls lost the processor to other processes, and "
        f"fewer than {MIN_UNDISTURBED} rounds had undisturbed calls; stop other programs and "
        "measure again"
    )


def summarise(
    sessions: Mapping[int, Sequence[str]],
    companions: Collection[str],
    journal: Journal,
    plan: Plan,
) -> Timings:
    """The latencies of all programs.

    Args:
        sessions: the programs that were timed, by the first round of each session.
        companions: the programs that were timed in every session.
    """
    ends = [*list(sessions)[1:], None]
    found = {
        start: {name: timing_in(name, journal, plan, start, end) for name in members}
        for (start, members), end in zip(sessions.items(), ends, strict=True)
    }
    programs = {
        name: timing
        for start, timings in reversed(found.items())
        for name, timing in timings.items()
        if journal.begun.get(name, 0) == start
    }
    first = min(sessions)
    references = list(_reference_ms(journal, first).values())
    noise = [timing.disagreement for timing in programs.values()]
    return Timings(
        programs=programs,
        reference_ms=float(np.percentile(references, 25)),
        num_rounds=len(references),
        num_disturbed=len(disturbed_rounds(journal, first)),
        noise=statistics.median(noise),
        noise_p95=float(np.percentile(noise, 95)),
        dropped=dropped_share(journal.calls.values()),
        num_throttled=journal.num_throttled,
        begun=dict(journal.begun),
        companions={
            start: {name: timings[name] for name in companions if name in timings}
            for start, timings in found.items()
        },
    )
