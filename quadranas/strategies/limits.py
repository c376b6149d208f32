"""Limits of a chosen network, and checks that a space can satisfy them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from quadranas.errors import BudgetError
from quadranas.latency.budget import format_ms, parse_budget
from quadranas.latency.goal import Goal
from quadranas.latency.table import LatencyTable
from quadranas.space.architecture import Architecture
from quadranas.space.cost import count_macs, count_params
from quadranas.space.footprint import format_bytes, peak_bytes, weight_bytes
from quadranas.space.operation import OpSpec
from quadranas.space.search_space import SearchSpace

MIN_USE = 0.9
"""Minimum fraction of the budget that a decoded network uses, if the space allows it. Gates that
are undecided, or were trained for a smaller budget, would leave more of it unused."""


@dataclass(frozen=True, kw_only=True)
class Bound:
    """An upper bound on a measure of a network.

    Args:
        most: the bound.
        of_op: what an operation contributes, at least 0.
        base: what every network has besides its operations.
        is_peak: whether the largest operation counts; otherwise their sum does.
        text: a value of the measure in words, such as `30.0 ms on vpu`.
        argument: a value as a command-line option, rounded up.
    """

    most: float
    of_op: Callable[[OpSpec], float]
    base: float = 0.0
    is_peak: bool = False
    text: Callable[[float], str]
    argument: Callable[[float], str]

    def of(self, network: Architecture) -> float:
        """The measure of a network."""
        # Rounded once, as in `LatencyTable.predict_ms`.
        values = map(self.of_op, network.ops())
        return (max(values) if self.is_peak else math.fsum(values)) + self.base

    def extreme(self, space: SearchSpace, *, largest: bool) -> float:
        """The smallest or the largest measure of a network of a space."""
        return self.of(space.extreme(self.of_op, largest=largest))

    def holds(self, network: Architecture) -> bool:
        """Whether a network is within the bound."""
        return self.of(network) <= self.most


@dataclass(frozen=True, kw_only=True)
class DeviceBudget:
    """A budget for the latency that a table predicts, in milliseconds."""

    table: LatencyTable
    budget_ms: float

    @property
    def device(self) -> str:
        """Name of the device."""
        return self.table.header.device

    def bound(self, argument: Callable[[str], str]) -> Bound:
        """The bound on the latency.

        Args:
            argument: a budget as a command-line option.
        """
        return Bound(
            most=self.budget_ms,
            of_op=self.table.op_ms,
            base=self.table.header.null_ms,
            text=lambda ms: f"{format_ms(ms)} on {self.device}",
            argument=lambda ms: argument(round_up(ms)),
        )


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Upper bounds on a network.

    Args:
        budget_ms: the budget on the main device.
        max_params, max_macs: number of parameters, and of multiply-accumulates.
        max_size: bytes of the weights in an exported fp32 file (`weight_bytes`).
        max_memory: peak bytes of activations at inference (`peak_bytes`), in the precision of the
            main device.
        also: the budgets on further devices.
        min_use: minimum fraction of the budget on the main device to use, if the space allows it.
    """

    budget_ms: float
    max_params: int | None = None
    max_macs: int | None = None
    max_size: int | None = None
    max_memory: int | None = None
    also: tuple[DeviceBudget, ...] = ()
    min_use: float = 0.0

    def bounds(self, table: LatencyTable) -> tuple[Bound, ...]:
        """All bounds, that on the main device's latency first.

        Args:
            table: that of the main device.
        """
        main = DeviceBudget(table=table, budget_ms=self.budget_ms)
        further = (
            budget.bound(lambda text, name=budget.device: f"--also {name}={text}")  # type: ignore[misc]
            for budget in self.also
        )
        memory = partial(peak_bytes, precision=table.header.precision)
        counts = (
            _count(self.max_params, count_params, "--max-params", "parameters"),
            _count(self.max_macs, count_macs, "--max-macs", "MACs"),
            _bytes(self.max_size, weight_bytes, "--max-size", "of weights"),
            _bytes(self.max_memory, memory, "--max-memory", "of activations", is_peak=True),
        )
        return (
            main.bound(lambda text: f"--budget {text}"),
            *further,
            *(bound for bound in counts if bound is not None),
        )


def _count(
    most: int | None, of_op: Callable[[OpSpec], int], option: str, unit: str
) -> Bound | None:
    if most is None:
        return None
    return Bound(
        most=most,
        of_op=of_op,
        text=lambda number: f"{number:,.0f} {unit}",
        argument=lambda number: f"{option} {number:.0f}",
    )


def _bytes(
    most: int | None,
    of_op: Callable[[OpSpec], int],
    option: str,
    unit: str,
    *,
    is_peak: bool = False,
) -> Bound | None:
    if most is None:
        return None
    return Bound(
        most=most,
        of_op=of_op,
        is_peak=is_peak,
        text=lambda number: f"{format_bytes(number)} {unit}",
        argument=lambda number: f"{option} {number:.0f}B",
    )


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
            f"The nearest feasible budget is {round_up(low)}; or choose a smaller space.",
        )


def round_up(latency_ms: float) -> str:
    """A latency rounded up to three digits, in the notation of `--budget`."""
    unit, factor = ("us", 1e3) if latency_ms < 1 else ("ms", 1.0)
    value = latency_ms * factor
    step = 10.0 ** (math.floor(math.log10(value)) - 2)
    steps = math.ceil(value / step)
    # Formatting and parsing round too, and may give a budget just below the latency.
    while parse_budget(f"{steps * step:g}{unit}") < latency_ms:
        steps += 1
    return f"{steps * step:g}{unit}"


def feasibility(space: SearchSpace, goals: Sequence[Goal]) -> str:
    """The first message of a search: per device budget, reachable range, source of the table."""
    return "\n".join(_feasibility(space, goal) for goal in goals)


def _feasibility(space: SearchSpace, goal: Goal) -> str:
    priced, contract = goal.priced, goal.contract
    low, high = reachable_ms(space, priced.table)
    budget_ms = goal.decoding_ms
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
