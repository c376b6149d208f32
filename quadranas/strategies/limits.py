"""Limits: the bounds that a chosen network keeps, and which of them can be kept."""

import math
from dataclasses import dataclass

from quadranas.errors import BudgetError
from quadranas.latency.budget import format_ms, parse_budget
from quadranas.latency.contract import Contract
from quadranas.latency.table import LatencyTable
from quadranas.latency.table_files import PricedTable
from quadranas.space.cost import count_macs, count_params
from quadranas.space.search_space import SearchSpace

MIN_USE = 0.9
"""The share of the budget that a decoded network uses, where the space allows it."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Upper bounds on a network; `min_use` is the share of the budget to use, if possible."""

    budget_ms: float
    max_params: int | None = None
    max_macs: int | None = None
    min_use: float = MIN_USE


def reachable_ms(space: SearchSpace, table: LatencyTable) -> tuple[float, float]:
    """Predicted latency of the fastest and of the slowest network of a space."""
    fastest, slowest = (space.extreme(table.op_ms, largest=largest) for largest in (False, True))
    return table.predict_ms(fastest), table.predict_ms(slowest)


def check_budget(space: SearchSpace, table: LatencyTable, budget_ms: float) -> None:
    """Refuse a budget that no network of the space keeps.

    Raises:
        BudgetError: gives the reachable range and the nearest feasible budget.
    """
    low, high = reachable_ms(space, table)
    if budget_ms < low:
        raise BudgetError(
            f"no network of space {space.name!r} keeps {format_ms(budget_ms)} on device "
            f"{table.header.device!r}: reachable are {format_ms(low)} to {format_ms(high)}",
            f"The nearest feasible budget is {_round_up(low)}; or choose a smaller space.",
        )


def _round_up(latency_ms: float) -> str:
    """A budget with three digits that is not below a latency, as it would be typed."""
    unit, factor = ("us", 1e3) if latency_ms < 1 else ("ms", 1.0)
    value = latency_ms * factor
    step = 10.0 ** (math.floor(math.log10(value)) - 2)
    steps = math.ceil(value / step)
    while parse_budget(f"{steps * step:g}{unit}") < latency_ms:  # by a rounding error
        steps += 1
    return f"{steps * step:g}{unit}"


def too_tight(space: SearchSpace, limits: Limits) -> BudgetError:
    """The error for ceilings that no network within the budget is under."""
    ceilings, options, least = [], [], []
    for most, unit, option, count in (
        (limits.max_params, "parameters", "--max-params", count_params),
        (limits.max_macs, "MACs", "--max-macs", count_macs),
    ):
        if most is not None:
            ceilings.append(f"{most:,} {unit}")
            options.append(option)
            least.append(f"{count(space.extreme(count, largest=False)):,} {unit}")
    return BudgetError(
        f"no network of space {space.name!r} keeps {format_ms(limits.budget_ms)} with at most "
        f"{' and '.join(ceilings)}; the least, each by itself: {', '.join(least)}",
        f"Raise {' or '.join(options)}.",
    )


def feasibility(space: SearchSpace, priced: PricedTable, contract: Contract) -> str:
    """The line a search begins with: budget, reachable range, provenance."""
    low, high = reachable_ms(space, priced.table)
    budget_ms = contract.decoding_ms(priced.table)
    tightened = ""
    if contract.confidence is not None:
        tightened = (
            f", as {format_ms(budget_ms)} predicted for a confidence of {contract.confidence:.0%}"
        )
    return (
        f"budget {format_ms(contract.budget_ms)} on {priced.table.header.device}{tightened}; "
        f"reachable with space {space.name}: {format_ms(low)} to {format_ms(high)}"
        f"{', every network keeps it' if budget_ms >= high else ''}\n"
        f"latency table {priced.path}: {priced.table.header.summary()}"
    )
