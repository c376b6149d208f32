"""Decoding against brute force: the best score within the budget, always, on every small space."""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quadranas.cost import count_macs, count_params
from quadranas.decode import (
    SLOWEST_GAP,
    BlockScores,
    Decoded,
    GateScores,
    Limits,
    check_budget,
    decode,
    load_scores,
    reachable_ms,
)
from quadranas.errors import BudgetError, QuadranasError
from quadranas.latency.budget import parse_budget
from quadranas.latency.table import LatencyTable, TableEntry, TableHeader, find_table
from quadranas.space import SKIPPED, Choices, SearchSpace, SpaceFile, build_space, load_space

TOLERANCE = 1e-6


@dataclass(frozen=True)
class Candidate:
    """One architecture of a space, with all that decoding looks at."""

    score: float
    latency_ms: float
    params: int
    macs: int


def header(space: SearchSpace) -> TableHeader:
    return TableHeader(
        device="test",
        title="a device that was made up",
        space=space.name,
        space_digest=space.digest,
        resolution=space.resolution,
        method="analytic",
        backend="analytic",
        runtime="none",
        precision="fp32",
        statistic="model",
        expected_error="none",
        scale=1.25,
        null_ms=0.001,
        quadranas="0",
        command="",
        date="2026-01-01",
        commit="",
    )


def all_choices(space: SearchSpace) -> list[dict[str, tuple[int, ...] | None]]:
    """Every configuration of the gates."""
    options: list[list[tuple[int, ...] | None]] = []
    for block in space.blocks:
        kept: list[tuple[int, ...] | None] = list(
            itertools.product(*(range(len(slot.candidates)) for slot in block.slots))
        )
        options.append([*kept, SKIPPED] if block.optional else kept)
    names = [block.name for block in space.blocks]
    return [dict(zip(names, picked, strict=True)) for picked in itertools.product(*options)]


def log_probability(scores: GateScores, choices: Choices) -> float:
    """The definition, written out again."""
    total = 0.0
    for name, block in scores.blocks.items():
        choice = choices[name]
        if choice is None:
            assert block.skip is not None
            total += block.skip
        else:
            total += block.keep + math.fsum(
                block.slots[slot][index] for slot, index in enumerate(choice)
            )
    return total


def price(space: SearchSpace, scores: GateScores, table: LatencyTable) -> list[Candidate]:
    candidates = []
    for choices in all_choices(space):
        architecture = space.architecture(choices)
        latency_ms = table.predict_ms(architecture)
        candidates.append(
            Candidate(
                log_probability(scores, choices),
                latency_ms,
                count_params(architecture),
                count_macs(architecture),
            )
        )
    return candidates


def within(candidates: list[Candidate], limits: Limits) -> list[Candidate]:
    return [
        c
        for c in candidates
        if c.latency_ms <= limits.budget_ms
        and (limits.max_params is None or c.params <= limits.max_params)
        and (limits.max_macs is None or c.macs <= limits.max_macs)
    ]


def check_against_brute_force(
    space: SearchSpace, scores: GateScores, table: LatencyTable, limits: Limits
) -> None:
    feasible = within(price(space, scores, table), limits)
    if not feasible:
        with pytest.raises(BudgetError):
            decode(space, scores, table, limits)
        return
    found = decode(space, scores, table, limits)
    assert found.gap == 0.0
    architecture = space.architecture(found.choices)
    assert found.latency_ms == table.predict_ms(architecture)
    assert found.latency_ms <= limits.budget_ms
    assert limits.max_params is None or count_params(architecture) <= limits.max_params
    assert limits.max_macs is None or count_macs(architecture) <= limits.max_macs
    assert found.score == pytest.approx(log_probability(scores, found.choices))
    floor = limits.min_use * limits.budget_ms
    slowest = max(c.latency_ms for c in feasible)
    if slowest >= floor:
        assert found.latency_ms >= floor
        best = max(c.score for c in feasible if c.latency_ms >= floor)
        assert found.score == pytest.approx(best, abs=TOLERANCE)
    else:  # the bound is a share of the slowest network, which is known to a gap
        assert found.latency_ms >= limits.min_use * slowest * (1 - SLOWEST_GAP)
        best = max(c.score for c in feasible if c.latency_ms >= limits.min_use * slowest)
        assert found.score >= best - TOLERANCE


@st.composite
def small_spaces(draw: st.DrawFn) -> SearchSpace:
    """Spaces of one or two stages with at most a few hundred gate configurations."""
    stages = []
    for index in range(draw(st.integers(1, 2))):
        fewest = draw(st.integers(0, 1))
        slots: list[dict[str, Any]] = [
            {"kind": "quadratic_depthwise", "kernel_size": draw(st.sampled_from([[3], [3, 5]]))},
            {
                "kind": "feed_forward",
                "expand_ratio": draw(st.sampled_from([[2], [1, 2], [1, 2, 3]])),
            },
        ]
        kind, patch = ("patch_stem", 4) if index == 0 else ("downsample", 2)
        stages.append(
            {
                "entry": {"kind": kind, "kernel_size": patch, "stride": patch},
                "depth": [fewest, fewest + draw(st.integers(0, 1)) if fewest else 1],
                "slots": slots,
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
    logit = st.floats(-5, 5)

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
    latency = st.floats(0.01, 10).map(lambda ms: round(ms, 3))
    entries = tuple(TableEntry(op=op, latency_ms=draw(latency)) for op in space.specs())
    table = LatencyTable(header=header(space), entries=entries)
    low, high = reachable_ms(space, table)
    budget_ms = low + draw(st.floats(-0.05, 1.3)) * max(high - low, 0.1 * low)
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


@settings(max_examples=60, deadline=None)
@given(problems())
def test_the_best_of_all_architectures_is_found(
    problem: tuple[SearchSpace, GateScores, LatencyTable, Limits],
) -> None:
    check_against_brute_force(*problem)


@settings(max_examples=8, deadline=None)
@given(st.data(), st.floats(0, 1.2))
def test_the_best_of_the_toy_space_is_found(data: st.DataObject, share: float) -> None:
    space = load_space("toy")
    table = find_table(space, "vpu")
    scores = random_scores(data.draw, space)
    low, high = reachable_ms(space, table)
    limits = Limits(budget_ms=low + share * (high - low))
    check_against_brute_force(space, scores, table, limits)


def equal_scores(space: SearchSpace) -> GateScores:
    blocks = {
        block.name: BlockScores(
            keep=math.log(0.5) if block.optional else 0.0,
            skip=math.log(0.5) if block.optional else None,
            slots=tuple(
                (-math.log(len(slot.candidates)),) * len(slot.candidates) for slot in block.slots
            ),
        )
        for block in space.blocks
        if not block.is_fixed
    }
    return GateScores(space=space.name, space_digest=space.digest, blocks=blocks)


@pytest.mark.parametrize("device", ["cpu", "vpu", "gpu"])
@pytest.mark.parametrize("name", ["quadranet-mobile", "quadranet-tiny", "mbconv-mobile"])
def test_shipped_spaces_keep_the_budget_and_use_it(name: str, device: str) -> None:
    space = load_space(name)
    table = find_table(space, device)
    low, high = reachable_ms(space, table)
    for share in (0.02, 0.3, 0.8):
        budget_ms = low + share * (high - low)
        found = decode(space, equal_scores(space), table, Limits(budget_ms=budget_ms))
        assert 0.9 * budget_ms <= found.latency_ms <= budget_ms
        depths = [b for b in space.blocks if found.choices[b.name] is SKIPPED]
        assert all(block.optional for block in depths)


def test_ties_are_broken_the_same_way_every_time() -> None:
    space = load_space("toy")
    table = find_table(space, "vpu")
    results: list[Decoded] = [
        decode(space, equal_scores(space), table, Limits(budget_ms=1.1)) for _ in range(3)
    ]
    assert results[0] == results[1] == results[2]


def test_a_larger_budget_than_the_space_needs_takes_most_of_what_there_is() -> None:
    space = load_space("toy")
    table = find_table(space, "vpu")
    _, high = reachable_ms(space, table)
    found = decode(space, equal_scores(space), table, Limits(budget_ms=100 * high))
    assert found.latency_ms >= 0.9 * high


@pytest.mark.parametrize("name", ["toy", "quadranet-mobile"])
def test_an_infeasible_budget_names_the_range_and_a_feasible_budget(name: str) -> None:
    space = load_space(name)
    table = find_table(space, "gpu")
    low, _ = reachable_ms(space, table)
    with pytest.raises(BudgetError, match=r"reachable are .* to ") as caught:
        decode(space, equal_scores(space), table, Limits(budget_ms=0.99 * low))
    nearest = caught.value.hint.split("budget is ")[1].split(";")[0]
    assert low <= parse_budget(nearest) <= 1.02 * low
    check_budget(space, table, parse_budget(nearest))


def test_ceilings_nothing_is_under_are_named() -> None:
    space = load_space("toy")
    table = find_table(space, "vpu")
    with pytest.raises(BudgetError, match="at most 10 parameters") as caught:
        decode(space, equal_scores(space), table, Limits(budget_ms=1.0, max_params=10))
    assert "--max-params" in caught.value.hint


def test_scores_survive_a_file(tmp_path: Path) -> None:
    space = load_space("toy")
    scores = equal_scores(space)
    scores.save(tmp_path / "gates.json")
    assert load_scores(tmp_path / "gates.json", space) == scores
    with pytest.raises(QuadranasError, match="belongs to space 'toy', not to 'quadranet-mobile'"):
        load_scores(tmp_path / "gates.json", load_space("quadranet-mobile"))
