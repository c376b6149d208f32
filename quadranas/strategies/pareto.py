"""Fronts of accuracy against latency, and what is lost by carrying a network to another device."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from quadranas.errors import BudgetError
from quadranas.latency.table import LatencyTable
from quadranas.space.operation import OpSpec
from quadranas.space.search_space import Choices, SearchSpace
from quadranas.strategies.exact import decode_best
from quadranas.strategies.limits import MIN_USE, Limits, reachable_ms
from quadranas.strategies.scores import GateScores

DEFAULT_POINTS = 10
"""Number of budgets per device."""

Found = tuple[str, float]
"""The device that a network was found for, and the relative budget, from 0 to 1."""


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A network to judge.

    Args:
        found: the devices and relative budgets that it was found for.
    """

    choices: dict[str, tuple[int, ...] | None]
    found: tuple[Found, ...]


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A network that was judged.

    Args:
        accuracy: from 0 to 1.
        latencies_ms: predicted latency per device.
    """

    choices: dict[str, tuple[int, ...] | None]
    found: tuple[Found, ...]
    accuracy: float
    latencies_ms: Mapping[str, float]


def budget_at(space: SearchSpace, table: LatencyTable, relative: float) -> float:
    """The budget at a place between the fastest network (0) and the slowest (1), in milliseconds.

    Equal steps are equal factors.
    """
    low, high = reachable_ms(space, table)
    if relative in (0.0, 1.0):  # to the last bit, so that these networks keep it
        return high if relative else low
    return float(low * (high / low) ** relative)


def relative_budgets(points: int) -> list[float]:
    """Relative budgets in equal steps from 0 to 1."""
    return [float(relative) for relative in np.linspace(0.0, 1.0, points)]


def plan_networks(
    space: SearchSpace,
    scores: GateScores,
    tables: Sequence[LatencyTable],
    limits: Limits,
    *,
    points: int = DEFAULT_POINTS,
    candidates: int = 1,
) -> list[Planned]:
    """The networks that the gates prefer for budgets over the reachable range of every device.

    Where every network is within the budget, the gates may prefer a fast one; the slowest network
    is therefore added there, as the upper end of the front.

    Args:
        limits: the limits on other measures than the latency hold for all networks; budgets at
            which they exclude every network are left out.
        candidates: number of networks per budget.

    Raises:
        BudgetError: the limits exclude every network at all budgets.
    """
    found: dict[tuple[OpSpec, ...], Planned] = {}
    failure: BudgetError | None = None
    for table in tables:
        for relative in relative_budgets(points):
            budget_ms = budget_at(space, table, relative)
            within = replace(limits, budget_ms=budget_ms, also=(), min_use=MIN_USE)
            try:
                preferred = decode_best(space, scores, table, within, candidates)
            except BudgetError as error:
                failure = error
                continue
            all_choices = [decoded.choices for decoded in preferred]
            if relative == 1.0:
                all_choices += _slowest(space, table, within)
            here = (table.header.device, relative)
            for choices in all_choices:
                key = tuple(space.architecture(choices).ops())
                before = found[key].found if key in found else ()
                if here not in before:
                    found[key] = Planned(choices=choices, found=(*before, here))
    if failure is not None and not found:
        raise failure
    return list(found.values())


def _slowest(
    space: SearchSpace, table: LatencyTable, limits: Limits
) -> list[dict[str, tuple[int, ...] | None]]:
    """The slowest network of a space, if it is within limits."""
    slowest = space.extreme(table.op_ms, largest=True)
    is_within = all(bound.holds(slowest) for bound in limits.bounds(table))
    return [space.choices_of(slowest)] if is_within else []


def judged(
    space: SearchSpace,
    tables: Sequence[LatencyTable],
    planned: Sequence[Planned],
    judge: Callable[[Choices], float],
) -> Iterator[Judged]:
    """Judge networks, one after the other."""
    for one in planned:
        network = space.architecture(one.choices)
        yield Judged(
            choices=one.choices,
            found=one.found,
            accuracy=judge(one.choices),
            latencies_ms={table.header.device: table.predict_ms(network) for table in tables},
        )


def front(networks: Sequence[Judged], device: str) -> list[int]:
    """Indices of the networks that no faster or equally fast one surpasses, fastest first.

    Of networks with equal accuracy and latency the first counts.
    """
    order = sorted(
        range(len(networks)),
        key=lambda i: (networks[i].latencies_ms[device], -networks[i].accuracy, i),
    )
    kept: list[int] = []
    for index in order:
        if not kept or networks[index].accuracy > networks[kept[-1]].accuracy:
            kept.append(index)
    return kept


@dataclass(frozen=True, kw_only=True)
class Carrying:
    """What a device loses at a budget with networks that were found for another one.

    Args:
        source, target: the other device, and the device that loses.
        relative: the relative budget, from 0 to 1.
        budget_ms: the budget on the target.
        excess: by how much the network found for the source at the same relative budget exceeds
            the budget on the target, as a fraction of it; negative if it keeps it. None if no
            network was found there.
        own_accuracy: the best accuracy of a network found for the target that keeps the budget.
        accuracy: the best accuracy of a network found for the source, at the same relative budget
            or a lower one, that keeps the budget on the target; None if none does.
    """

    source: str
    target: str
    relative: float
    budget_ms: float
    excess: float | None
    own_accuracy: float
    accuracy: float | None


def carrying(
    space: SearchSpace, tables: Sequence[LatencyTable], networks: Sequence[Judged], points: int
) -> Iterator[Carrying]:
    """The losses between all pairs of devices at all relative budgets."""
    for source in tables:
        for target in tables:
            if source is target:
                continue
            for relative in relative_budgets(points):
                found = _carried(space, source, target, networks, relative)
                if found is not None:
                    yield found


def _carried(
    space: SearchSpace,
    source: LatencyTable,
    target: LatencyTable,
    networks: Sequence[Judged],
    relative: float,
) -> Carrying | None:
    """The loss at one budget; None if no network found for the target keeps it."""
    there, here = source.header.device, target.header.device
    budget_ms = budget_at(space, target, relative)
    within = [one for one in networks if one.latencies_ms[here] <= budget_ms]
    own = [one.accuracy for one in within if _is_found_for(one, here, relative)]
    if not own:
        return None
    carried = [one.accuracy for one in within if _is_found_for(one, there, relative)]
    same = [one for one in networks if (there, relative) in one.found]
    best = max(same, key=lambda one: one.accuracy, default=None)
    return Carrying(
        source=there,
        target=here,
        relative=relative,
        budget_ms=budget_ms,
        excess=None if best is None else best.latencies_ms[here] / budget_ms - 1,
        own_accuracy=max(own),
        accuracy=max(carried, default=None),
    )


def _is_found_for(network: Judged, device: str, relative: float) -> bool:
    """Whether a network was found for a device at a relative budget or a lower one."""
    return any(name == device and at <= relative for name, at in network.found)
