"""Limits of a chosen network, and checks that a space can satisfy them."""

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
"""Minimum fraction of the budget that a decoded network uses, if the space allows it. Gates that
are undecided, or were trained for a smaller budget, would leave more of it unused."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Upper bounds on a network.

    Args:
        min_use: minimum fraction of the budget to use, if the space allows it.
    """

    budget_ms: float
    max_params: int | None = None
    max_macs: int | None = None
    min_use: float = 0.0


def reachable_ms(space: SearchSpace, table: LatencyTable) -> tuple[float, float]:
    """Predicted latency of the fastest and of the slowest network of a space, in milliseconds."""
    fastest, slowest = (space.extreme(table.op_ms, largest=largest) for largest in (False, True))
    return table.predict_ms(fastest), table.predict_ms(slowest)


def check_budget(space: SearchSpace, table: LatencyTable, budget_ms: float) -> None:
    """Check that some network of the space keeps a budget.

    Raises:
        BudgetError: none does; gives the reachable range and the nearest feasible budget.
    """
    low, high = reachable_ms(space, table)
    if budget_ms < low:
        raise BudgetError(
            f"no network of space {space.name!r} keeps {format_ms(budget_ms)} on device "
            f"{table.header.device!r}; its reachable range is {format_ms(low)} to "
            f"{format_ms(high)}",
            f"The nearest feasible budget is {_round_up(low)}; or choose a smaller space.",
        )


def _round_up(latency_ms: float) -> str:
    """A latency rounded up to three digits, in the notation of `--budget`."""
    unit, factor = ("us", 1e3) if latency_ms < 1 else ("ms", 1.0)
    value = latency_ms * factor
    step = 10.0 ** (math.floor(math.log10(value)) - 2)
    steps = math.ceil(value / step)
    # Formatting and parsing round too, and may give a budget just below the latency.
    while parse_budget(f"{steps * step:g}{unit}") < latency_ms:
        steps += 1
    return f"{steps * step:g}{unit}"


def too_tight(space: SearchSpace, limits: Limits) -> BudgetError:
    """The error if no network within the budget keeps the limits on parameters and MACs."""
    ceilings, options, minima = [], [], []
    for most, unit, option, count in (
        (limits.max_params, "parameters", "--max-params", count_params),
        (limits.max_macs, "MACs", "--max-macs", count_macs),
    ):
        if most is not None:
            ceilings.append(f"{most:,} {unit}")
            options.append(option)
            minima.append(f"{count(space.extreme(count, largest=False)):,} {unit}")
    return BudgetError(
        f"no network of space {space.name!r} keeps {format_ms(limits.budget_ms)} with at most "
        f"{' and '.join(ceilings)}; the smallest possible, each by itself: {', '.join(minima)}",
        f"Raise {' or '.join(options)}.",
    )


def feasibility(space: SearchSpace, priced: PricedTable, contract: Contract) -> str:
    """The first message of a search: budget, reachable range, provenance of the table."""
    low, high = reachable_ms(space, priced.table)
    budget_ms = contract.decoding_ms(priced.table)
    tightened = ""
    if contract.confidence is not None:
        tightened = (
            f" ({format_ms(budget_ms)} predicted, for a confidence of {contract.confidence:.0%})"
        )
    return (
        f"budget {format_ms(contract.budget_ms)} on {priced.table.header.device}{tightened}; "
        f"reachable with space {space.name}: {format_ms(low)} to {format_ms(high)}"
        f"{', every network keeps it' if budget_ms >= high else ''}\n"
        f"latency table {priced.path}: {priced.table.header.summary()}"
    )
