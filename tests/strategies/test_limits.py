"""Limits that no network keeps: what is said, and which budget is suggested."""

import math

import pytest

from quadranas.errors import BudgetError
from quadranas.latency.budget import parse_budget
from quadranas.latency.table import LatencyTable
from quadranas.latency.table_files import find_table
from quadranas.space.space_file import load_space
from quadranas.strategies.exact import decode
from quadranas.strategies.limits import Limits, check_budget, reachable_ms
from tests.strategies.made_up import equal_scores, header


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


def test_ceilings_nothing_is_under_are_named() -> None:
    space = load_space("toy")
    table = find_table(space, "vpu")
    with pytest.raises(BudgetError, match="at most 10 parameters") as caught:
        decode(space, equal_scores(space), table, Limits(budget_ms=1.0, max_params=10))
    assert "--max-params" in caught.value.hint
