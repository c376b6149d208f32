"""Fronts and carried networks, against brute force."""

import math
from collections.abc import Sequence
from itertools import pairwise

import pytest

from quadranas.errors import BudgetError
from quadranas.latency.table_files import find_table
from quadranas.space.cost import count_params
from quadranas.space.search_space import Choices
from quadranas.space.space_file import load_space
from quadranas.strategies.exact import decode_best
from quadranas.strategies.interface import RememberingJudge
from quadranas.strategies.limits import Limits, reachable_ms
from quadranas.strategies.pareto import (
    Judged,
    budget_at,
    carrying,
    front,
    judged,
    plan_networks,
    relative_budgets,
)
from tests.strategies.made_up import equal_scores

SPACE = load_space("toy")
TABLES = [find_table(SPACE, device) for device in ("cpu", "vpu")]
SCORES = equal_scores(SPACE)
FREE = Limits(budget_ms=math.inf)


def networks(points: int = 6, candidates: int = 3) -> list[Judged]:
    planned = plan_networks(SPACE, SCORES, TABLES, FREE, points=points, candidates=candidates)
    return list(
        judged(SPACE, TABLES, planned, lambda c: count_params(SPACE.architecture(c)) / 1e5)
    )


def test_budgets_go_from_the_fastest_network_to_the_slowest_in_equal_factors() -> None:
    for table in TABLES:
        budgets = [budget_at(SPACE, table, relative) for relative in relative_budgets(5)]
        assert (budgets[0], budgets[-1]) == reachable_ms(SPACE, table)
        factors = [b / a for a, b in pairwise(budgets)]
        assert factors == pytest.approx(4 * [factors[0]])


def test_the_networks_are_those_that_are_decoded_for_every_budget() -> None:
    planned = plan_networks(SPACE, SCORES, TABLES, FREE, points=4, candidates=2)
    by_key = {tuple(SPACE.architecture(p.choices).ops()): p for p in planned}
    assert len(by_key) == len(planned)
    expected: dict[object, set[tuple[str, float]]] = {}
    for table in TABLES:
        for relative in relative_budgets(4):
            limits = Limits(budget_ms=budget_at(SPACE, table, relative), min_use=0.9)
            for decoded in decode_best(SPACE, SCORES, table, limits, 2):
                key = tuple(SPACE.architecture(decoded.choices).ops())
                expected.setdefault(key, set()).add((table.header.device, relative))
        slowest = tuple(SPACE.extreme(table.op_ms, largest=True).ops())
        expected.setdefault(slowest, set()).add((table.header.device, 1.0))
    assert {key: set(p.found) for key, p in by_key.items()} == expected


def test_the_front_is_what_no_faster_network_surpasses() -> None:
    found = networks()
    for table in TABLES:
        device = table.header.device
        on_front = {
            i
            for i, one in enumerate(found)
            if not any(
                other.latencies_ms[device] <= one.latencies_ms[device]
                and other.accuracy >= one.accuracy
                and (other.latencies_ms[device], other.accuracy)
                != (one.latencies_ms[device], one.accuracy)
                for other in found
            )
        }
        chosen = front(found, device)
        assert set(chosen) == on_front
        assert chosen == sorted(chosen, key=lambda i: found[i].latencies_ms[device])


def test_carried_networks_against_brute_force() -> None:
    found, points = networks(), 6
    losses = list(carrying(SPACE, TABLES, found, points))
    assert len(losses) == 2 * points
    by_name = {table.header.device: table for table in TABLES}
    for one in losses:
        budget_ms = budget_at(SPACE, by_name[one.target], one.relative)
        assert one.budget_ms == budget_ms
        best = {"own": 0.0, "carried": -1.0}
        for network in found:
            if network.latencies_ms[one.target] > budget_ms:
                continue
            for name, relative in network.found:
                if relative <= one.relative:
                    kind = "own" if name == one.target else "carried"
                    best[kind] = max(best[kind], network.accuracy)
        assert one.own_accuracy == best["own"]
        assert one.accuracy == (None if best["carried"] < 0 else best["carried"])
        same = [n for n in found if (one.source, one.relative) in n.found]
        largest = max(same, key=lambda n: n.accuracy)
        assert one.excess == pytest.approx(largest.latencies_ms[one.target] / budget_ms - 1)


def test_limits_leave_out_budgets_and_may_leave_none() -> None:
    typical = count_params(SPACE.extreme(count_params, largest=False)) + 300
    limits = Limits(budget_ms=math.inf, max_params=typical)
    planned = plan_networks(SPACE, SCORES, TABLES, limits, points=4)
    assert all(count_params(SPACE.architecture(p.choices)) <= typical for p in planned)
    with pytest.raises(BudgetError, match="at most 10 parameters"):
        plan_networks(SPACE, SCORES, TABLES, Limits(budget_ms=1.0, max_params=10), points=3)


def test_a_network_is_judged_once() -> None:
    calls: list[Choices] = []

    def judge(many: Sequence[Choices]) -> list[float]:
        calls.extend(many)
        return [0.5] * len(many)

    remembering = RememberingJudge(SPACE, judge)
    planned = plan_networks(SPACE, SCORES, TABLES, FREE, points=3)
    for _ in range(2):
        list(judged(SPACE, TABLES, planned, remembering))
    assert len(calls) == len(planned)
