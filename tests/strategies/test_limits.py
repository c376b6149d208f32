"""Limits that no network keeps: what is said, and which budget is suggested."""

import math
from dataclasses import replace

import pytest

from quadranas.errors import BudgetError, QuadranasError
from quadranas.latency.budget import format_ms, parse_budget
from quadranas.latency.table import LatencyTable, TableEntry
from quadranas.latency.table_files import find_table
from quadranas.space.footprint import parse_bytes
from quadranas.space.operation import OpSpec
from quadranas.space.search_space import SearchSpace
from quadranas.space.space_file import SpaceFile, build_space, load_space
from quadranas.strategies.derivation import check_candidates, decode_candidates
from quadranas.strategies.exact import decode
from quadranas.strategies.limits import (
    DeviceBudget,
    Limits,
    check_budget,
    reachable_ms,
    round_up,
)
from tests.strategies.made_up import all_choices, equal_scores, header


@pytest.mark.parametrize("digits", [1, 2, 3])
@pytest.mark.parametrize("error_ms", [-math.ulp(0.01), 0.0, math.ulp(0.01)])
def test_the_suggested_budget_is_feasible_to_the_last_digit(digits: int, error_ms: float) -> None:
    space = load_space("toy")
    plain = find_table(space, "gpu")
    free = header(space).model_copy(update={"scale": 1.0, "null_ms": 0.0})
    for factor in range(1, 60):
        latency_ms = round(0.0107 * factor, digits + 1) + error_ms
        entries = tuple(e.model_copy(update={"latency_ms": latency_ms}) for e in plain.entries)
        table = LatencyTable(header=free, entries=entries)
        low, _ = reachable_ms(space, table)
        with pytest.raises(BudgetError) as caught:
            check_budget(space, table, 0.5 * low)
        nearest = parse_budget(caught.value.hint.split("budget is ")[1].split(";")[0])
        assert low <= nearest <= 1.011 * low
        check_budget(space, table, nearest)


@pytest.mark.parametrize("name", ["toy", "quadranet-mobile"])
def test_an_infeasible_budget_names_the_range_and_a_feasible_budget(name: str) -> None:
    space = load_space(name)
    table = find_table(space, "gpu")
    low, _ = reachable_ms(space, table)
    with pytest.raises(BudgetError, match=r"its reachable range is .* to ") as caught:
        decode(space, equal_scores(space), table, Limits(budget_ms=0.99 * low))
    nearest = caught.value.hint.split("budget is ")[1].split(";")[0]
    assert low <= parse_budget(nearest) <= 1.02 * low
    check_budget(space, table, parse_budget(nearest))


def contrary(space: SearchSpace, table: LatencyTable) -> LatencyTable:
    """A device on which the operations of a block that are fast elsewhere are slow."""
    latencies: dict[OpSpec, float] = {}
    for block in space.blocks:
        for slot in block.slots:
            costs = [table.latencies_ms[op] for op in slot.candidates]
            total = max(costs) + min(costs)
            latencies |= {op: total - ms for op, ms in zip(slot.candidates, costs, strict=True)}
    made = header(space).model_copy(update={"device": "contrary", "scale": 1.0, "null_ms": 0.0})
    entries = tuple(TableEntry(op=op, latency_ms=ms) for op, ms in latencies.items())
    return LatencyTable(header=made, entries=entries)


def test_a_pair_that_excludes_each_other_is_named_with_the_nearest_feasible_budgets() -> None:
    space = load_space("toy")
    table = find_table(space, "vpu")
    other = contrary(space, table)
    networks = [space.architecture(choices) for choices in all_choices(space)]
    (low, high), (other_low, other_high) = reachable_ms(space, table), reachable_ms(space, other)
    budget_ms, other_ms = low + 0.002 * (high - low), other_low + 0.002 * (other_high - other_low)
    also = (DeviceBudget(table=other, budget_ms=other_ms),)
    limits = Limits(budget_ms=budget_ms, also=also, max_params=10**9, min_use=0.9)
    with pytest.raises(BudgetError) as caught:
        decode(space, equal_scores(space), table, limits)
    nearest = min(table.predict_ms(n) for n in networks if other.predict_ms(n) <= other_ms)
    nearest_other = min(other.predict_ms(n) for n in networks if table.predict_ms(n) <= budget_ms)
    assert nearest > budget_ms
    assert caught.value.message == (
        f"no network of space 'toy' keeps both {format_ms(budget_ms)} on vpu and "
        f"{format_ms(other_ms)} on contrary: within {format_ms(other_ms)} on contrary it needs "
        f"{format_ms(nearest)} on vpu, and within {format_ms(budget_ms)} on vpu it needs "
        f"{format_ms(nearest_other)} on contrary, at least"
    )
    feasible, feasible_other = round_up(nearest), round_up(nearest_other)
    assert caught.value.hint == (
        f"Nearest feasible, the other limits unchanged: --budget {feasible} or "
        f"--also contrary={feasible_other}."
    )
    for changed in (
        replace(limits, budget_ms=parse_budget(feasible)),
        replace(limits, also=(replace(also[0], budget_ms=parse_budget(feasible_other)),)),
    ):
        found = space.architecture(decode(space, equal_scores(space), table, changed).choices)
        assert all(bound.holds(found) for bound in changed.bounds(table))


def test_three_limits_that_exclude_each_other_only_together() -> None:
    """One of three candidates is best on each device, and the third is bad on all."""
    space, entries = one_slot()
    tables = [
        LatencyTable(
            header=header(space).model_copy(
                update={"device": f"d{number}", "scale": 1.0, "null_ms": 0.0}
            ),
            entries=tuple(
                TableEntry(op=op, latency_ms=9.0 if op == entries[number] else 1.0)
                for op in space.specs()
            ),
        )
        for number in range(3)
    ]
    budgets = [DeviceBudget(table=table, budget_ms=5.0) for table in tables]
    limits = Limits(budget_ms=5.0, also=tuple(budgets[1:]))
    with pytest.raises(BudgetError, match="although every pair of these limits can be") as caught:
        decode(space, equal_scores(space), tables[0], limits)
    assert caught.value.hint == (
        "Nearest feasible, the other limits unchanged: --budget 11ms or --also d1=11ms or "
        "--also d2=11ms."
    )
    assert decode(space, equal_scores(space), tables[0], replace(limits, budget_ms=11.0))


def one_slot() -> tuple[SearchSpace, list[OpSpec]]:
    """A space with a single choice among three kernels."""
    stage = {
        "entry": {"kind": "conv_bn", "kernel_size": 3, "stride": 2},
        "depth": [1, 1],
        "slots": [{"kind": "mbconv", "kernel_size": [3, 5, 7]}],
    }
    content = {"name": "one", "resolution": 16, "widths": [4], "head": "linear_head"}
    space = build_space(SpaceFile.model_validate(content | {"stages": [stage]}))
    (choice,) = (b for b in space.blocks if not b.is_fixed)
    return space, list(choice.slots[0].candidates)


@pytest.mark.parametrize(
    ("limit", "words", "argument"),
    [
        ({"max_params": 10}, "at most 10 parameters", "--max-params 3"),
        ({"max_macs": 10}, "at most 10 MACs", "--max-macs "),
        ({"max_size": 1000}, "at most 1 KB of weights", "--max-size 1"),
        ({"max_memory": 1000}, "at most 1 KB of activations", "--max-memory "),
    ],
)
def test_a_limit_below_every_network_names_the_smallest(
    limit: dict[str, int], words: str, argument: str
) -> None:
    space = load_space("toy")
    table = find_table(space, "vpu")
    with pytest.raises(BudgetError, match=words) as caught:
        decode(space, equal_scores(space), table, Limits(budget_ms=9.0, **limit))  # type: ignore[arg-type]
    proposed = caught.value.hint.split("limit is ")[1].split(";")[0]
    assert proposed.startswith(argument)
    (name,) = limit
    least = parse_bytes(proposed.split()[1])
    for number, is_feasible in ((least, True), (least - 1, False)):
        limits = Limits(budget_ms=9.0, **{name: number})  # type: ignore[arg-type]
        if is_feasible:
            decode(space, equal_scores(space), table, limits)
        else:
            with pytest.raises(BudgetError):
                decode(space, equal_scores(space), table, limits)


def test_more_candidates_than_networks_are_refused() -> None:
    space = load_space("toy")
    table = find_table(space, "vpu")
    scores = equal_scores(space)
    with pytest.raises(QuadranasError, match=r"are more than the \d+ networks of space 'toy'"):
        check_candidates(space, space.num_architectures + 1)
    check_candidates(space, space.num_architectures)
    low, high = reachable_ms(space, table)
    limits = Limits(budget_ms=low + 0.03 * (high - low), min_use=0.9)
    networks = {tuple(space.architecture(choices).ops()) for choices in all_choices(space)}
    number = sum(
        0.9 * limits.budget_ms <= table.predict_ms(space.architecture(choices)) <= limits.budget_ms
        for choices in {tuple(space.architecture(c).ops()): c for c in all_choices(space)}.values()
    )
    assert 1 <= number < len(networks) / 4
    assert len(decode_candidates(space, scores, table, limits, number)) == number
    with pytest.raises(QuadranasError, match=f"more than the {number} network") as caught:
        decode_candidates(space, scores, table, limits, number + 1)
    assert f"--candidates {number}," in caught.value.hint


def test_ceilings_nothing_is_under_are_named() -> None:
    space = load_space("toy")
    table = find_table(space, "vpu")
    with pytest.raises(BudgetError, match="at most 10 parameters") as caught:
        decode(space, equal_scores(space), table, Limits(budget_ms=1.0, max_params=10))
    assert "--max-params" in caught.value.hint
