"""Decoding against brute force: the best score within the budget, always, on every small space."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quadranas.errors import BudgetError
from quadranas.latency.table import LatencyTable, TableEntry
from quadranas.latency.table_files import find_table
from quadranas.space.architecture import Architecture
from quadranas.space.cost import count_macs, count_params
from quadranas.space.footprint import peak_bytes, weight_bytes
from quadranas.space.operation import OpSpec
from quadranas.space.search_space import SKIPPED, Choices, SearchSpace
from quadranas.space.space_file import SpaceFile, build_space, load_space
from quadranas.strategies import exact, programme
from quadranas.strategies.derivation import check_limits
from quadranas.strategies.exact import SLOWEST_GAP, Decoded, decode, decode_best
from quadranas.strategies.limits import DeviceBudget, Limits, reachable_ms
from quadranas.strategies.scores import BlockScores, GateScores
from tests.strategies.made_up import all_choices, equal_scores, header

TOLERANCE = 1e-6

ROUNDING = 1e-8
"""The lower bound on the latency, which is a rule of thumb, is kept up to rounding errors."""


@pytest.fixture
def few_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A quarter of the nodes: a gap that is small enough after these is so after all of them."""
    monkeypatch.setattr(programme, "MAX_NODES", programme.MAX_NODES // 4)


@dataclass(frozen=True)
class Candidate:
    """One architecture of a space, with all that decoding looks at."""

    score: float
    latency_ms: float
    measures: tuple[float, ...]


def score_of(scores: GateScores, choices: Choices) -> float:
    """The definition, written out again: every gate that decides something is charged."""
    total = 0.0
    for name, block in scores.blocks.items():
        choice = choices[name]
        if block.skip is not None:
            taken = block.skip if choice is None else block.keep
            total += taken - max(block.keep, block.skip)
        for slot, candidates in enumerate(block.slots if choice is not None else ()):
            assert choice is not None
            total += candidates[choice[slot]] - max(candidates)
    return total


def measures(network: Architecture, limits: Limits) -> tuple[float, ...]:
    """Everything but the latency that limits bound, in the order of `ceilings`."""
    return (
        count_params(network),
        count_macs(network),
        sum(map(weight_bytes, network.ops())),
        max(map(peak_bytes, network.ops())),
        *(budget.table.predict_ms(network) for budget in limits.also),
    )


def ceilings(limits: Limits) -> tuple[float, ...]:
    bounds = (limits.max_params, limits.max_macs, limits.max_size, limits.max_memory)
    return (
        *(math.inf if bound is None else bound for bound in bounds),
        *(budget.budget_ms for budget in limits.also),
    )


def price(
    space: SearchSpace, scores: GateScores, table: LatencyTable, limits: Limits
) -> list[Candidate]:
    candidates = []
    for choices in all_choices(space):
        network = space.architecture(choices)
        latency_ms = table.predict_ms(network)
        found = measures(network, limits)
        candidates.append(Candidate(score_of(scores, choices), latency_ms, found))
    return candidates


def within(candidates: list[Candidate], limits: Limits) -> list[Candidate]:
    most = ceilings(limits)
    return [
        c
        for c in candidates
        if c.latency_ms <= limits.budget_ms
        and all(value <= bound for value, bound in zip(c.measures, most, strict=True))
    ]


def check_against_brute_force(
    space: SearchSpace, scores: GateScores, table: LatencyTable, limits: Limits
) -> None:
    feasible = within(price(space, scores, table, limits), limits)
    if not feasible:
        with pytest.raises(BudgetError):
            decode(space, scores, table, limits)
        return
    found = decode(space, scores, table, limits)
    assert found.gap == 0.0
    architecture = space.architecture(found.choices)
    assert found.latency_ms == table.predict_ms(architecture)
    assert found.latency_ms <= limits.budget_ms
    found_measures = measures(architecture, limits)
    assert all(v <= most for v, most in zip(found_measures, ceilings(limits), strict=True))
    assert found.score == pytest.approx(score_of(scores, found.choices))
    floor = limits.min_use * limits.budget_ms
    slowest = max(c.latency_ms for c in feasible)
    if len(feasible) == len(all_choices(space)):
        assert found.choices == scores.preferred(space)
        assert found.score == 0.0
    elif slowest >= floor:
        assert found.latency_ms >= floor * (1 - ROUNDING)
        best = max(c.score for c in feasible if c.latency_ms >= floor)
        assert found.score >= best - TOLERANCE
        best = max(c.score for c in feasible if c.latency_ms >= floor * (1 - ROUNDING))
        assert found.score <= best + TOLERANCE
    else:  # the bound is a share of the slowest network, which is known to a gap
        assert found.latency_ms >= limits.min_use * slowest * (1 - SLOWEST_GAP - ROUNDING)
        best = max(c.score for c in feasible if c.latency_ms >= limits.min_use * slowest)
        assert found.score >= best - TOLERANCE


@st.composite
def small_spaces(draw: st.DrawFn) -> SearchSpace:
    """Spaces of one or two stages with at most two hundred gate configurations."""
    stages = []
    left = 200
    for index in range(draw(st.integers(1, 2))):
        slots: list[dict[str, Any]] = [
            {
                "kind": "quadratic_depthwise",
                "kernel_size": draw(st.sampled_from([[3], [3, 5], [3, 5, 7]])),
            },
            {
                "kind": "feed_forward",
                "expand_ratio": draw(st.sampled_from([[2], [1, 2], [1, 1.5, 2, 4]])),
            },
        ]
        if draw(st.booleans()):
            kinds = [[3], [3, 5], [3, 5, 7]]
            slots = [{"kind": "mbconv", "kernel_size": draw(st.sampled_from(kinds))}]
        options = math.prod(
            len(slot.get("kernel_size", [1])) * len(slot.get("expand_ratio", [1]))
            for slot in slots
        )
        fewest = most = 0
        for _ in range(draw(st.integers(1, 5))):
            optional = most > fewest or draw(st.booleans())
            if options + optional > left:
                break
            left //= options + optional
            most += 1
            fewest += not optional
        kind, patch = ("patch_stem", 4) if index == 0 else ("downsample", 2)
        stages.append(
            {
                "entry": {"kind": kind, "kernel_size": patch, "stride": patch},
                "depth": [fewest, most] if most else [1, 1],
                "slots": slots if most else [{"kind": "feed_forward"}],
            }
        )
    content = {
        "name": "small",
        "resolution": 16,
        "num_classes": 3,
        "widths": [4, 8][: len(stages)],
        "stages": stages,
        "head": "norm_head",
    }
    return build_space(SpaceFile.model_validate(content))


def random_scores(draw: Callable[..., Any], space: SearchSpace) -> GateScores:
    logit = draw(st.sampled_from([st.floats(-5, 5), st.integers(-1, 1), st.floats(-1e-4, 1e-4)]))

    def log_softmax(count: int) -> tuple[float, ...]:
        values = [draw(logit) for _ in range(count)]
        total = math.log(math.fsum(map(math.exp, values)))
        return tuple(value - total for value in values)

    blocks = {}
    for block in space.blocks:
        if not block.is_fixed:
            keep, skip = log_softmax(2) if block.optional else (0.0, None)
            slots = tuple(log_softmax(len(slot.candidates)) for slot in block.slots)
            blocks[block.name] = BlockScores(keep=keep, skip=skip, slots=slots)
    return GateScores(space=space.name, space_digest=space.digest, blocks=blocks)


@st.composite
def problems(draw: st.DrawFn) -> tuple[SearchSpace, GateScores, LatencyTable, Limits]:
    space = draw(small_spaces())
    fine, coarse = st.floats(0.01, 10), st.integers(1, 5).map(lambda tenths: tenths / 10)
    latency = draw(st.sampled_from([fine, coarse]))  # of coarse ones many sums are equal
    entries = tuple(TableEntry(op=op, latency_ms=draw(latency)) for op in space.specs())
    table = LatencyTable(header=header(space), entries=entries)
    low, high = reachable_ms(space, table)
    networks = all_choices(space)
    budget_ms = draw(
        st.floats(-0.05, 1.3).map(lambda share: low + share * max(high - low, 0.1 * low))
        | st.sampled_from(networks).map(lambda c: table.predict_ms(space.architecture(c)))
        | st.sampled_from([1e4 * high, 1e9 * high])
    )
    small, large = (space.extreme(count_params, largest=big) for big in (False, True))
    share = draw(st.none() | st.floats(0, 1))
    max_params = None
    if share is not None:
        least = count_params(small)
        max_params = int(least + share * (count_params(large) - least))
    max_macs = None
    if draw(st.booleans()):
        max_macs = int(draw(st.floats(0.6, 1)) * count_macs(large))
    limits = Limits(
        budget_ms=budget_ms,
        max_params=max_params,
        max_macs=max_macs,
        min_use=draw(st.sampled_from([0.0, 0.5, 0.9])),
    )
    return space, random_scores(draw, space), table, limits


@st.composite
def crowded_problems(draw: st.DrawFn) -> tuple[SearchSpace, GateScores, LatencyTable, Limits]:
    """Problems with limits on two devices, file size and memory."""
    space, scores, table, limits = draw(problems())
    latency = st.floats(0.01, 10)
    entries = tuple(TableEntry(op=op, latency_ms=draw(latency)) for op in space.specs())
    other = LatencyTable(header=header(space), entries=entries)
    typical = space.architecture(draw(st.sampled_from(all_choices(space))))
    size, memory = (
        draw(st.none() | st.just(int(value)))
        for value in (1.05 * sum(map(weight_bytes, typical.ops())), measures(typical, limits)[3])
    )
    low, high = reachable_ms(space, other)
    budget_ms = draw(st.floats(0, 1.1).map(lambda share: low + share * (high - low)))
    also = (DeviceBudget(table=other, budget_ms=budget_ms),)
    return space, scores, table, replace(limits, also=also, max_size=size, max_memory=memory)


@settings(max_examples=100)
@given(problems())
def test_the_best_of_all_architectures_is_found(
    problem: tuple[SearchSpace, GateScores, LatencyTable, Limits],
) -> None:
    check_against_brute_force(*problem)


@settings(max_examples=40)
@given(crowded_problems())
def test_the_best_network_within_all_limits_is_found(
    problem: tuple[SearchSpace, GateScores, LatencyTable, Limits],
) -> None:
    check_against_brute_force(*problem)


@settings(max_examples=40)
@given(crowded_problems())
def test_limits_that_exclude_each_other_name_the_nearest_that_do_not(
    problem: tuple[SearchSpace, GateScores, LatencyTable, Limits],
) -> None:
    """Against brute force: every proposed value is feasible, and a smaller one is not."""
    space, scores, table, limits = problem
    networks = [space.architecture(choices) for choices in all_choices(space)]
    bounds = limits.bounds(table)
    try:
        decode(space, scores, table, limits)
    except BudgetError as error:
        message, hint = error.message, error.hint
    else:
        assert any(all(bound.holds(network) for bound in bounds) for network in networks)
        return
    assert not any(all(bound.holds(network) for bound in bounds) for network in networks)
    if "keeps both" in message:
        one, other = (
            b
            for b in bounds
            if f"keeps both {b.text(b.most)}" in message or f"and {b.text(b.most)}:" in message
        )
        assert not any(one.holds(network) and other.holds(network) for network in networks)
    for bound in bounds:
        option = bound.argument(1.0).split("=")[0].rpartition(" ")[0] or "--also"
        if "Nearest feasible" not in hint or option not in hint:
            continue
        others = [b for b in bounds if b is not bound]
        least = min(bound.of(n) for n in networks if all(b.holds(n) for b in others))
        assert bound.argument(least) in hint


@settings(max_examples=5)
@given(st.data(), st.floats(0, 1.2))
def test_the_best_of_the_toy_space_is_found(data: st.DataObject, share: float) -> None:
    space = load_space("toy")
    table = find_table(space, "vpu")
    scores = random_scores(data.draw, space)
    low, high = reachable_ms(space, table)
    limits = Limits(budget_ms=low + share * (high - low))
    check_against_brute_force(space, scores, table, limits)


@pytest.mark.parametrize("device", ["cpu", "vpu", "gpu"])
@pytest.mark.parametrize("name", ["quadranet-mobile", "quadranet-tiny", "mbconv-mobile"])
def test_shipped_spaces_keep_the_budget_and_use_it(name: str, device: str) -> None:
    space = load_space(name)
    table = find_table(space, device)
    low, high = reachable_ms(space, table)
    for share in (0.02, 0.3, 0.8):
        budget_ms = low + share * (high - low)
        limits = Limits(budget_ms=budget_ms, min_use=0.9)
        found = decode(space, equal_scores(space), table, limits)
        assert 0.9 * budget_ms <= found.latency_ms <= budget_ms
        depths = [b for b in space.blocks if found.choices[b.name] is SKIPPED]
        assert all(block.optional for block in depths)


def fearful_scores(space: SearchSpace, table: LatencyTable) -> GateScores:
    """Gates as a search with a hard penalty leaves them: the slower, the less probable."""
    rng = np.random.default_rng(1)

    def log_softmax(costs: Sequence[float]) -> tuple[float, ...]:
        logits = -3 * np.array(costs) / np.mean(costs) + rng.normal(0, 0.01, len(costs))
        return tuple((logits - np.logaddexp.reduce(logits)).tolist())

    blocks = {}
    for block in space.blocks:
        if not block.is_fixed:
            keep, skip = (-2.1, -0.13) if block.optional else (0.0, None)
            slots = (log_softmax([table.op_ms(op) for op in s.candidates]) for s in block.slots)
            blocks[block.name] = BlockScores(keep=keep, skip=skip, slots=tuple(slots))
    return GateScores(space=space.name, space_digest=space.digest, blocks=blocks)


@pytest.mark.usefixtures("few_nodes")
@pytest.mark.parametrize("device", ["cpu", "vpu", "gpu"])
@pytest.mark.parametrize("name", ["quadranet-mobile", "quadranet-tiny", "mbconv-mobile"])
def test_the_optimum_is_found_where_blocks_are_nearly_alike(
    name: str, device: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Gates that fear every operation, and a network that has to be slow: a small gap is left."""
    space = load_space(name)
    table = find_table(space, device)
    low, high = reachable_ms(space, table)
    for scores in (fearful_scores(space, table), equal_scores(space)):
        for share in (0.4, 0.7):
            budget_ms = low + share * (high - low)
            found = decode(space, scores, table, Limits(budget_ms=budget_ms, min_use=0.9))
            assert found.gap <= (1e-2 if scores.score(found.choices) else 0.0)
    assert capfd.readouterr() == ("", "")


@pytest.mark.usefixtures("few_nodes")
@pytest.mark.parametrize("most", [0.5, 0.8])
def test_a_result_says_how_much_it_may_fall_short(most: float) -> None:
    """Ceilings make the programme hard enough to stop early; some network must still be found."""
    space = load_space("quadranet-tiny")
    table = find_table(space, "cpu")
    low, high = reachable_ms(space, table)
    large = space.extreme(count_macs, largest=True)
    limits = Limits(
        budget_ms=low + 0.7 * (high - low),
        max_params=int(most * count_params(large)),
        max_macs=int(most * count_macs(large)),
    )
    found = decode(space, fearful_scores(space, table), table, limits)
    network = space.architecture(found.choices)
    assert count_params(network) <= most * count_params(large)
    assert count_macs(network) <= most * count_macs(large)
    assert 0 <= found.gap < 0.05


def test_latencies_measured_coarsely_keep_the_budget() -> None:
    """With entries in tenths, thousands of networks need the budget and a rounding error."""
    space = load_space("quadranet-tiny")
    entries = tuple(
        TableEntry(op=op, latency_ms=max(round(ms, 1), 0.1))
        for op, ms in find_table(space, "vpu").latencies_ms.items()
    )
    exact = header(space).model_copy(update={"scale": 1.0, "null_ms": 0.0})
    table = LatencyTable(header=exact, entries=entries)
    low, high = reachable_ms(space, table)
    for share in (0.2, 0.5, 0.8):
        budget_ms = float(round(low + share * (high - low)))
        for scores in (equal_scores(space), hungry_scores(space, table)):
            found = decode(space, scores, table, Limits(budget_ms=budget_ms, min_use=0.9))
            assert 0.9 * budget_ms <= found.latency_ms <= budget_ms


@pytest.mark.usefixtures("few_nodes")
def test_a_table_of_equal_latencies_keeps_the_budget() -> None:
    """Twelve times 0.1 ms exceeds the budget by a rounding error, in thousands of networks."""
    space = build_space(TRIPLE)
    entries = tuple(TableEntry(op=op, latency_ms=0.1) for op in space.specs())
    exact = header(space).model_copy(update={"scale": 1.0, "null_ms": 0.0})
    table = LatencyTable(header=exact, entries=entries)
    found = decode(space, hungry_scores(space, table), table, Limits(budget_ms=1.2))
    assert 0.99 < found.latency_ms <= 1.2
    assert found.gap == 0.0


STAGE: dict[str, Any] = {
    "entry": {"kind": "downsample", "kernel_size": 2, "stride": 2},
    "depth": [1, 3],
    "slots": [
        {"kind": "quadratic_depthwise", "kernel_size": [3, 5, 7]},
        {"kind": "feed_forward", "expand_ratio": [2, 3, 4]},
    ],
}
TRIPLE = SpaceFile.model_validate(
    {
        "name": "triple",
        "resolution": 32,
        "num_classes": 10,
        "widths": [8, 8, 8],
        "stages": [{**STAGE, "entry": {**STAGE["entry"], "kind": "patch_stem"}}, STAGE, STAGE],
        "head": "norm_head",
    }
)
"""Of 27 million networks, most have the latency of many others if all operations are alike."""


def hungry_scores(space: SearchSpace, table: LatencyTable) -> GateScores:
    """The slower, the more probable."""
    blocks = {}
    for block in space.blocks:
        if not block.is_fixed:
            slots = (tuple(table.op_ms(op) for op in slot.candidates) for slot in block.slots)
            skip = -9.0 if block.optional else None
            blocks[block.name] = BlockScores(skip=skip, slots=tuple(slots))
    return GateScores(space=space.name, space_digest=space.digest, blocks=blocks)


def test_ties_are_broken_the_same_way_every_time() -> None:
    space = load_space("toy")
    table = find_table(space, "vpu")
    results: list[Decoded] = [
        decode(space, equal_scores(space), table, Limits(budget_ms=1.1)) for _ in range(3)
    ]
    assert results[0] == results[1] == results[2]


@settings(max_examples=25)
@given(st.data())
def test_without_a_bound_every_gate_has_its_preference(data: st.DataObject) -> None:
    """The architecture of ProxylessNAS: the argmax of every gate."""
    space = load_space("toy")
    table = find_table(space, "vpu")
    scores = random_scores(data.draw, space)
    _, high = reachable_ms(space, table)
    limits = Limits(budget_ms=high, min_use=data.draw(st.sampled_from([0.0, 0.9])))
    found = decode(space, scores, table, limits)
    for name, block in scores.blocks.items():
        choice = found.choices[name]
        if choice is SKIPPED:
            assert block.skip == max(block.keep, block.skip or 0.0)
            continue
        assert block.skip is None or block.keep == max(block.keep, block.skip)
        for index, candidates in zip(choice, block.slots, strict=True):
            assert candidates[index] == max(candidates)


def test_a_block_is_not_charged_for_inner_gates_that_are_undecided() -> None:
    """Kept with 58 %: an architecture's probability is still higher without the block."""
    space = load_space("toy")
    table = find_table(space, "vpu")
    undecided = equal_scores(space)
    kept = {
        name: block.model_copy(update={"keep": math.log(0.58), "skip": math.log(0.42)})
        if block.skip is not None
        else block
        for name, block in undecided.blocks.items()
    }
    scores = undecided.model_copy(update={"blocks": kept})
    found = decode(space, scores, table, Limits(budget_ms=reachable_ms(space, table)[1]))
    assert SKIPPED not in found.choices.values()
    without = found.choices | {name: SKIPPED for name, b in kept.items() if b.skip is not None}
    assert scores.log_probability(without) > scores.log_probability(found.choices)


@settings(max_examples=40)
@given(problems(), st.integers(2, 6))
def test_the_best_distinct_networks_are_found(
    problem: tuple[SearchSpace, GateScores, LatencyTable, Limits], number: int
) -> None:
    space, scores, table, limits = problem
    limits = replace(limits, min_use=0.0)
    best: dict[tuple[OpSpec, ...], float] = {}
    for choices in all_choices(space):
        network = space.architecture(choices)
        is_within = table.predict_ms(network) <= limits.budget_ms
        is_within &= limits.max_params is None or count_params(network) <= limits.max_params
        is_within &= limits.max_macs is None or count_macs(network) <= limits.max_macs
        if is_within:
            key, score = tuple(network.ops()), score_of(scores, choices)
            best[key] = max(score, best.get(key, score))
    if not best:
        with pytest.raises(BudgetError):
            decode_best(space, scores, table, limits, number)
        return
    found = decode_best(space, scores, table, limits, number)
    keys = [tuple(space.architecture(one.choices).ops()) for one in found]
    assert len(set(keys)) == len(keys) <= number
    scored = [one.score for one in found]
    assert scored == pytest.approx(sorted(best.values(), reverse=True)[: len(found)], abs=1e-6)
    tries = exact.TRIES_PER_NETWORK * (number - 1)
    if len(all_choices(space)) <= tries:  # every network is seen
        assert len(found) == min(number, len(best))


def test_a_space_without_choices_is_its_only_network() -> None:
    stage = {
        "entry": {"kind": "patch_stem", "kernel_size": 4, "stride": 4},
        "depth": [1, 1],
        "slots": [{"kind": "feed_forward", "expand_ratio": [2]}],
    }
    content = {"name": "one", "resolution": 16, "widths": [4], "head": "norm_head"}
    space = build_space(SpaceFile.model_validate(content | {"stages": [stage]}))
    entries = tuple(TableEntry(op=op, latency_ms=0.5) for op in space.specs())
    table = LatencyTable(header=header(space), entries=entries)
    low, high = reachable_ms(space, table)
    assert low == high
    scores = GateScores(space="one", space_digest=space.digest, blocks={})
    for budget_ms in (low, 5 * low):
        assert decode(space, scores, table, Limits(budget_ms=budget_ms)).latency_ms == low
    with pytest.raises(BudgetError, match="at most 1 parameters"):
        decode(space, scores, table, Limits(budget_ms=low, max_params=1))


def test_the_solver_leaves_stdout_to_results(capfd: pytest.CaptureFixture[str]) -> None:
    """Without a guard, HiGHS prints a debugging line for this problem."""
    space = load_space("quadranet-tiny")
    limits = Limits(budget_ms=350.0, max_macs=1_800_000_000)
    check_limits(space, find_table(space, "cpu"), limits)
    assert capfd.readouterr().out == ""
