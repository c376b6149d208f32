"""Shuffled rounds: their order, what is timed again, the statistics, and that nothing is lost."""

import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from random import Random
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

import quadranas.measurement.timing
from quadranas.backends.interface import Program
from quadranas.errors import DeviceLostError, ThrottledError
from quadranas.latency.journal import Calls, Journal
from quadranas.latency.processor import CallTimes
from quadranas.measurement.plan import Plan
from quadranas.measurement.summary import (
    DISTURBED,
    REFERENCE,
    REFERENCES_PER_ROUND,
    Timings,
    timing_of,
)
from quadranas.measurement.timing import (
    COOLING_S,
    DISAGREEMENT,
    MAX_ATTEMPTS,
    MAX_EXTRA,
    time_programs,
)
from quadranas.reporter import Reporter
from tests.measuring import ScriptedProgram

QUIET = Reporter(quiet=True)
NAMES = [f"op {index}" for index in range(12)]


class Recorder(Journal):
    """A journal that remembers in which order it was written."""

    def __init__(self, path: Path | None = None) -> None:
        super().__init__(path, {"kind": "test"})
        self.order: list[tuple[int, str]] = []

    def add(
        self, program: str, round_number: int, times_ms: list[float], calls: Calls | None = None
    ) -> None:
        super().add(program, round_number, times_ms, calls)
        self.order.append((round_number, program))

    def rounds(self) -> list[list[str]]:
        """The names in every round, references too."""
        count = 1 + max(number for number, _ in self.order)
        return [[name for at, name in self.order if at == number] for number in range(count)]


def constant(names: Iterable[str] = NAMES) -> dict[str, Program]:
    return {REFERENCE: ScriptedProgram(1.0), **{name: ScriptedProgram(2.0) for name in names}}


def timed(programs: Mapping[str, Program], plan: Plan, journal: Journal | None = None) -> Timings:
    return time_programs(programs, journal or Recorder(), QUIET, plan)


def test_every_round_has_everything_once_in_another_order() -> None:
    journal = Recorder()
    timed(constant(), Plan(num_rounds=6), journal)
    rounds = journal.rounds()
    assert len(rounds) == 6
    references = [f"{REFERENCE} {index}" for index in range(REFERENCES_PER_ROUND)]
    for names in rounds:
        assert sorted(names) == sorted(NAMES + references)
    orders = {tuple(name for name in names if name in NAMES) for names in rounds}
    assert len(orders) == 6


def test_a_round_lasts_as_long_as_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Taking no time itself, every round waits; not one that lies in the journal."""
    waited: list[float] = []
    clock = SimpleNamespace(monotonic=lambda: 7.0, sleep=waited.append)
    monkeypatch.setattr(quadranas.measurement.timing, "time", clock)
    journal = Recorder()
    timed(constant(), Plan(num_rounds=3, round_s=0.25), journal)
    assert waited == [0.25] * 3
    timed(constant(), Plan(num_rounds=5, round_s=0.25), journal)
    assert waited == [0.25] * 5


def test_the_references_are_spread_over_the_round() -> None:
    journal = Recorder()
    timed(constant(), Plan(num_rounds=2), journal)
    for names in journal.rounds():
        places = [index for index, name in enumerate(names) if name.startswith(REFERENCE)]
        assert places[0] == 0
        assert {after - before for before, after in pairwise(places)} == {3}


def test_a_seed_decides_the_order() -> None:
    orders = []
    for seed in (0, 0, 1):
        journal = Recorder()
        timed(constant(), Plan(num_rounds=3, seed=seed), journal)
        orders.append(journal.order)
    assert orders[0] == orders[1]
    assert orders[0] != orders[2]


@pytest.mark.parametrize("num_names", [1, 2, 5, 7])
def test_few_programs_are_timed_as_well(num_names: int) -> None:
    programs = constant(NAMES[:num_names])
    timings = timed(programs, Plan(num_rounds=4))
    assert {name: timing.num_rounds for name, timing in timings.programs.items()} == dict.fromkeys(
        NAMES[:num_names], 4
    )
    assert timings.reference_ms == 1.0


def rounds_of_reference(times_ms: Sequence[float]) -> ScriptedProgram:
    """A reference that takes so long in each of the rounds, and then as long as in the last."""
    return ScriptedProgram([ms for ms in times_ms for _ in range(REFERENCES_PER_ROUND)])


def test_disturbed_rounds_are_repeated() -> None:
    """Rounds 1 and 3 are slow by more than what is allowed, and so is the first repetition."""
    slow, fast = 1 + 1.01 * DISTURBED, 1 + 0.99 * DISTURBED
    reference = rounds_of_reference([1.0, slow, fast, slow, slow, 1.0])
    timings = timed(constant() | {REFERENCE: reference}, Plan(num_rounds=4))
    # 4 planned, 2 of them disturbed; of the repetitions the first is disturbed too
    assert timings.num_rounds == 4 + 2 + 1
    assert timings.num_disturbed == 3
    assert {timing.num_rounds for timing in timings.programs.values()} == {7}


def test_a_single_slow_call_of_the_reference_disturbs_nothing() -> None:
    """Two of the five in a round may be slow: their median decides."""
    script = [1.0, 9.0, 1.0, 9.0, 1.0] * 4
    timings = timed(constant() | {REFERENCE: ScriptedProgram(script)}, Plan(num_rounds=4))
    assert (timings.num_rounds, timings.num_disturbed) == (4, 0)


def test_a_machine_that_never_calms_down_is_given_up_on() -> None:
    reference = rounds_of_reference([1.0, *[2.0] * 100])
    timings = timed(constant() | {REFERENCE: reference}, Plan(num_rounds=3))
    assert timings.num_rounds == 3 + MAX_EXTRA
    assert timings.num_disturbed == 2 + MAX_EXTRA


def test_programs_whose_halves_disagree_are_timed_again() -> None:
    """Of 5 rounds, the third made the even half slow; one more makes the halves agree."""
    low, high = 1.0, 1 + 3 * DISAGREEMENT
    unsteady = ScriptedProgram([high, low, high, low, low])
    steady = ScriptedProgram([1.0, 1 + 0.99 * DISAGREEMENT])
    programs = {REFERENCE: ScriptedProgram(1.0), "unsteady": unsteady, "steady": steady}
    journal = Recorder()
    timings = timed(programs, Plan(num_rounds=4), journal)
    assert timings.programs["steady"].num_rounds == 4
    # even rounds: high high low -> quartile between; they agree when low has the quartile
    extra = timings.programs["unsteady"].num_rounds - 4
    assert 0 < extra < MAX_EXTRA
    assert all("steady" not in names for names in journal.rounds()[4:])
    assert timings.num_rounds == 4 + extra  # the references were timed along


def test_a_program_that_never_agrees_is_given_up_on() -> None:
    restless = ScriptedProgram([1.0, 2.0] * 100)
    timings = timed(
        {REFERENCE: ScriptedProgram(1.0), "restless": restless}, Plan(num_rounds=4, repeats=1)
    )
    assert timings.programs["restless"].num_rounds == 4 + MAX_EXTRA
    assert timings.noise == pytest.approx(1.0)


def quantile(values: Sequence[float], share: Fraction) -> Fraction:
    """Linear between the two values beside the place, exactly."""
    ordered = sorted(map(Fraction, values))
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


milliseconds = st.floats(0.01, 1000)


@given(
    rounds=st.lists(st.lists(milliseconds, min_size=3, max_size=3), min_size=1, max_size=9),
    references=st.lists(st.floats(1.0, 1.04), min_size=1, max_size=9),
)
def test_statistics_are_those_of_a_plain_reference(
    rounds: list[list[float]], references: list[float]
) -> None:
    plan = Plan(num_rounds=len(rounds), repeats=3)
    programs = {
        REFERENCE: rounds_of_reference(references),
        "op": ScriptedProgram(rounds),
    }
    journal = Recorder()
    timings = timed(programs, plan, journal)
    taken = [journal.samples["op"][number] for number in sorted(journal.samples["op"])]
    assert taken[: len(rounds)] == rounds
    minima = [min(times) for times in taken]
    calls = [ms for times in taken for ms in times]
    quarter, half, three_quarters = (quantile(calls, Fraction(n, 4)) for n in (1, 2, 3))
    timing = timings.programs["op"]
    assert timing.latency_ms == pytest.approx(float(quantile(minima, Fraction(1, 4))), rel=1e-12)
    assert timing.minimum_ms == min(calls)
    assert timing.median_ms == pytest.approx(float(half), rel=1e-12)
    spread = float((three_quarters - quarter) / half)
    assert timing.spread == pytest.approx(spread, rel=1e-9, abs=1e-12)
    assert timing.num_rounds == len(taken)
    low, high = sorted(
        quantile(half, Fraction(1, 4)) for half in (minima[::2], minima[1::2] or minima)
    )
    assert timings.noise == pytest.approx(float(high / low - 1), rel=1e-9, abs=1e-12)
    each = (references + [references[-1]] * 99)[: timings.num_rounds]
    assert timings.reference_ms == pytest.approx(float(quantile(each, Fraction(1, 4))))
    assert timings.num_disturbed == sum(ms > min(each) * (1 + DISTURBED) for ms in each)


def test_the_least_of_a_round_and_the_quartile_of_the_rounds() -> None:
    """By hand: minima 4, 1, 3, 2, 5; a quarter of the way from the least to the greatest: 2."""
    rounds = [[4.0, 9.0], [1.0, 1.5], [7.0, 3.0], [2.0, 2.0], [5.0, 6.0]]
    op = ScriptedProgram(rounds)
    journal = Journal(None, {})
    for number, times in enumerate(rounds):
        journal.add("op", number, times)
    for number in range(5, 5 + MAX_EXTRA):
        journal.add("op", number, [2.0, 2.0])
    programs = {REFERENCE: ScriptedProgram(1.0), "op": op}
    timing = time_programs(programs, journal, QUIET, Plan(num_rounds=5, repeats=2))
    assert op.calls == 0
    assert timing.programs["op"].latency_ms == 2.0
    assert timing.programs["op"].minimum_ms == 1.0


class Lost(ScriptedProgram):
    """Answers so many times, over all programs that share the count."""

    def __init__(self, left: list[int], counts: Counter[str], name: str) -> None:
        super().__init__(Random(name).uniform(1, 1.005))
        self.left = left
        self.counts = counts
        self.name = name

    def time_ms(self, repeats: int) -> list[float]:
        if not self.left[0]:
            raise DeviceLostError("the device does not answer")
        self.left[0] -= 1
        self.counts[self.name] += 1
        return super().time_ms(repeats)


@pytest.mark.parametrize("max_parallel", [1, 3])
def test_what_is_in_the_journal_is_not_timed_again(tmp_path: Path, max_parallel: int) -> None:
    """The device is lost again and again; every timing is taken once, and the result the same."""
    counts: Counter[str] = Counter()
    plan = Plan(num_rounds=5)

    def programs(answers: int) -> dict[str, Program]:
        left = [answers]
        return {name: Lost(left, counts, name) for name in (REFERENCE, *NAMES)}

    whole = timed(programs(10_000), plan)
    once = counts.copy()
    counts.clear()
    losses = 0
    for answers in (0, 1, 30, 1, 17, 10_000):
        with Journal(tmp_path / "t", {}) as journal:
            before = journal.num_timings
            try:
                found = time_programs(
                    programs(answers), journal, QUIET, plan, max_parallel=max_parallel
                )
            except DeviceLostError:
                losses += 1
                if max_parallel == 1:
                    assert journal.num_timings == before + answers
    assert losses == 5
    assert found == whole
    if max_parallel == 1:
        assert counts == once
    with Journal(tmp_path / "t", {}) as journal:
        assert time_programs(programs(0), journal, QUIET, plan) == whole


def test_several_at_once_are_each_timed_once(tmp_path: Path) -> None:
    """Three wait for each other, so they do run at once; the journal has each where it belongs."""
    together = threading.Barrier(3)
    lock = threading.Lock()
    counts: Counter[str] = Counter()

    class Together(ScriptedProgram):
        def __init__(self, name: str, ms: float) -> None:
            super().__init__(ms)
            self.name = name

        def time_ms(self, repeats: int) -> list[float]:
            together.wait(timeout=30)
            with lock:
                counts[self.name] += 1
                return super().time_ms(repeats)

    names = NAMES[:10]  # with 5 references, 15 a round: a multiple of 3
    programs: dict[str, Program] = {REFERENCE: Together(REFERENCE, 1.0)}
    programs |= {name: Together(name, 2.0 + index) for index, name in enumerate(names)}
    with Journal(tmp_path / "t", {}) as journal:
        timings = time_programs(programs, journal, QUIET, Plan(num_rounds=4), max_parallel=3)
        assert journal.num_timings == 4 * 15
    assert counts == dict.fromkeys(names, 4) | {REFERENCE: 4 * REFERENCES_PER_ROUND}
    for index, name in enumerate(names):
        assert timings.programs[name].latency_ms == 2.0 + index


def test_progress_is_told_and_counts_what_was_done_before(
    capsys: pytest.CaptureFixture[str],
) -> None:
    journal = Recorder()
    with Reporter() as reporter:
        time_programs(constant(), journal, reporter, Plan(num_rounds=3))
        time_programs(constant(), journal, reporter, Plan(num_rounds=5))
    lines = capsys.readouterr().err.splitlines()
    begun = [line.split(",")[0] for line in lines]
    assert begun == [
        *("round 1 of 3", "round 2 of 3", "round 3 of 3"),
        *("round 4 of 5", "round 5 of 5"),
    ]


def test_rounds_beyond_the_plan_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    reference = rounds_of_reference([1.0, 2.0, 1.0, 1.0])
    with Reporter() as reporter:
        time_programs(
            constant() | {REFERENCE: reference}, Recorder(), reporter, Plan(num_rounds=3)
        )
    told = " ".join(capsys.readouterr().err.split())
    assert told.count("further round") == 1
    assert "further round 1 of at most 10, of 12 programs: rounds were disturbed" in told


# Calls that lost the processor


class Losing(ScriptedProgram):
    """Takes so long, and loses so much of it in each of its timings, and then as in the last."""

    def __init__(self, ms: float, shares: Sequence[float]) -> None:
        super().__init__(ms)
        self.shares = shares

    def time_ms(self, repeats: int) -> list[float]:
        share = self.shares[min(self.calls, len(self.shares) - 1)]
        times = super().time_ms(repeats)
        return CallTimes((ms / (1 - share) for ms in times), [ms * share for ms in times])


def test_disturbed_calls_are_in_no_statistic() -> None:
    """Of four rounds the third has no undisturbed call; its times are left out."""
    shares = [0.0, 0.5, 0.0, *[0.5] * MAX_ATTEMPTS, 0.0]
    programs = {REFERENCE: Losing(1.0, [0.0]), "op": Losing(2.0, shares)}
    plan = Plan(num_rounds=4, repeats=2)
    journal = Recorder()
    timings = timed(programs, plan, journal)
    timing = timings.programs["op"]
    assert (timing.latency_ms, timing.median_ms, timing.p95_ms, timing.spread) == (2, 2, 2, 0)
    assert timing.halves_ms == (2.0, 2.0)
    assert timings.noise == timings.noise_p95 == 0
    # four planned rounds need four with undisturbed calls, so one was added
    assert timing.num_rounds == 4
    assert len(journal.samples["op"]) == 5
    assert not timing.is_busy
    made = 2 * (len(shares) + 1)
    assert timing.dropped == pytest.approx(2 * (1 + MAX_ATTEMPTS) / made)
    calls_of_reference = 2 * REFERENCES_PER_ROUND * 5
    assert timings.dropped == pytest.approx(2 * (1 + MAX_ATTEMPTS) / (made + calls_of_reference))


def test_a_program_without_undisturbed_calls_is_busy() -> None:
    """Its reference is too short to be disturbed, so that alone shows nothing."""
    programs = {REFERENCE: Losing(1.0, [0.0]), "op": Losing(12.0, [0.43])}
    timings = timed(programs, Plan(num_rounds=10))
    assert timings.busy == ["op"]
    assert timings.programs["op"].dropped == 1.0
    assert timings.num_disturbed == 0


def test_a_device_that_cannot_tell_has_no_share_and_is_not_busy() -> None:
    timings = timed(constant(), Plan(num_rounds=4))
    assert timings.dropped is None
    assert {timing.dropped for timing in timings.programs.values()} == {None}
    assert timings.busy == []


def test_percentiles_are_of_all_calls() -> None:
    rounds = [[1.0, 3.0], [2.0, 4.0]]
    timing = timing_of(rounds)
    assert (timing.latency_ms, timing.median_ms) == (1.25, 2.5)
    assert timing.p95_ms == pytest.approx(3.85)


def test_programs_are_begun_again_beside_their_companions(tmp_path: Path) -> None:
    """Their new rounds have the companion and the reference, and what was not begun again does
    not take part; the machine has become twice as slow, which both sides of a comparison show."""
    plan = Plan(num_rounds=4, repeats=2)
    counts: Counter[str] = Counter()

    def programs(ms: float) -> dict[str, Program]:
        class Counted(ScriptedProgram):
            def __init__(self, name: str, ms: float) -> None:
                super().__init__(ms)
                self.name = name

            def time_ms(self, repeats: int) -> list[float]:
                counts[self.name] += 1
                return super().time_ms(repeats)

        return {name: Counted(name, ms) for name in (REFERENCE, "base", "good", "bad")}

    def run(journal: Journal, ms: float) -> Timings:
        return time_programs(programs(ms), journal, QUIET, plan, companions=["base"])

    with Journal(tmp_path / "t", {}) as journal:
        run(journal, 1.0)
        journal.begin_again(["bad"])
        counts.clear()
        run(journal, 2.0)
    assert counts == {REFERENCE: 4 * REFERENCES_PER_ROUND, "base": 4, "bad": 4}
    counts.clear()
    with Journal(tmp_path / "t", {}) as journal:
        timings = run(journal, 9.0)
    assert not counts
    latencies = {name: timing.latency_ms for name, timing in timings.programs.items()}
    assert latencies == {"base": 1.0, "good": 1.0, "bad": 2.0}
    assert timings.beside("bad")["base"].latency_ms == 2.0
    assert timings.beside("good")["base"].latency_ms == 1.0
    assert timings.programs["base"].num_rounds == 4
    with Journal(tmp_path / "t", {}) as journal:
        journal.begin_again(["base", "good", "bad"])  # now only their new rounds count
        timings = run(journal, 3.0)
    assert {timing.latency_ms for timing in timings.programs.values()} == {3.0}
    assert timings.reference_ms == 3.0
    assert timings.beside("bad")["base"].latency_ms == 3.0


def test_a_busy_machine_is_told_of_once(capsys: pytest.CaptureFixture[str]) -> None:
    programs = {REFERENCE: Losing(1.0, [0.0]), "op": Losing(12.0, [0.43])}
    with Reporter() as reporter:
        time_programs(programs, Recorder(), reporter, Plan(num_rounds=5))
    told = " ".join(capsys.readouterr().err.split())
    assert told.count("the machine is busy: 38% of the calls so far lost the processor") == 1


class HotProgram(ScriptedProgram):
    """Gets hot in some of its calls."""

    def __init__(self, hot: Iterable[int]) -> None:
        super().__init__(2.0)
        self.hot = set(hot)

    def time_ms(self, repeats: int) -> list[float]:
        times = super().time_ms(repeats)
        if self.calls in self.hot:
            raise ThrottledError("the board lowered its clock", "Cool it.")
        return times


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that would have been made."""
    waited: list[float] = []
    clock = SimpleNamespace(monotonic=lambda: 7.0, sleep=waited.append)
    monkeypatch.setattr(quadranas.measurement.timing, "time", clock)
    return waited


def test_a_round_in_which_the_clock_was_lowered_is_repeated_as_a_whole(
    tmp_path: Path, pauses: list[float]
) -> None:
    path = tmp_path / "timings"
    programs = constant() | {"hot": HotProgram([2, 3])}
    with Recorder(path) as journal:
        timings = timed(programs, Plan(num_rounds=3), journal)
        order = journal.order
    assert timings.num_throttled == 2
    assert timings.num_rounds == 3
    assert [pause for pause in pauses if pause] == list(COOLING_S[:2])
    counts = Counter(order)
    assert counts[1, "hot"] == 1
    repeated = [name for name in NAMES if counts[1, name] > 1]
    assert repeated  # what was timed in that round before it got hot
    assert all(counts[number, name] == 1 for name in NAMES for number in (0, 2))
    with Recorder(path) as journal:
        assert journal.num_throttled == 2
        again = timed(programs, Plan(num_rounds=3), journal)
        assert not journal.order
    assert again == timings


def test_a_device_that_stays_hot_is_one_error_and_resumes(
    tmp_path: Path, pauses: list[float]
) -> None:
    path = tmp_path / "timings"
    hot = HotProgram(range(2, 3 + len(COOLING_S)))
    programs = {REFERENCE: ScriptedProgram(1.0), "hot": hot}
    with Recorder(path) as journal, pytest.raises(ThrottledError, match="lowered its clock"):
        timed(programs, Plan(num_rounds=2), journal)
    assert [pause for pause in pauses if pause] == list(COOLING_S)
    with Recorder(path) as journal:
        timings = timed(programs, Plan(num_rounds=2), journal)
        assert {number for number, _ in journal.order} == {1}
    assert timings.num_throttled == 1 + len(COOLING_S)
