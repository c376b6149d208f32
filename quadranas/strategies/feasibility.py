"""Limits that no network keeps: which of them exclude each other, and what is feasible instead."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations

from quadranas.errors import BudgetError
from quadranas.latency.table import LatencyTable
from quadranas.space.search_space import SearchSpace
from quadranas.strategies.limits import Bound, Limits, check_budget
from quadranas.strategies.programme import Programme


def check_alone(space: SearchSpace, table: LatencyTable, limits: Limits) -> None:
    """Check that every limit by itself is kept by some network.

    Raises:
        BudgetError: names the first that is not, and the nearest feasible value.
    """
    check_budget(space, table, limits.budget_ms)
    for budget in limits.also:
        check_budget(space, budget.table, budget.budget_ms)
    for bound in limits.bounds(table)[1 + len(limits.also) :]:
        least = bound.extreme(space, largest=False)
        if least > bound.most:
            raise BudgetError(
                f"no network of space {space.name!r} has at most {bound.text(bound.most)}; the "
                f"smallest has {bound.text(least)}",
                f"The nearest feasible limit is {bound.argument(least)}; or choose a smaller "
                "space.",
            )


def exclusion(space: SearchSpace, bounds: Sequence[Bound]) -> BudgetError:
    """The error for limits that no network keeps, although each is feasible by itself.

    It names a pair that excludes each other if there is one, otherwise all limits, and per limit
    the nearest value with which some network keeps all the others.
    """
    for one, other in combinations(bounds, 2):
        with_other = _least(space, one, [other])
        if with_other is None or with_other <= one.most:
            continue
        with_one = _least(space, other, [one])
        needs = [f"within {other.text(other.most)} it needs {one.text(with_other)}"]
        if with_one is not None:
            needs.append(f"within {one.text(one.most)} it needs {other.text(with_one)}")
        return BudgetError(
            f"no network of space {space.name!r} keeps both {one.text(one.most)} and "
            f"{other.text(other.most)}: {', and '.join(needs)}, at least",
            _nearest(space, bounds, (one, other)),
        )
    limits = ", ".join(bound.text(bound.most) for bound in bounds)
    pairs = ", although every pair of these limits can be kept" if len(bounds) > 2 else ""
    return BudgetError(
        f"no network of space {space.name!r} keeps all of {limits}{pairs}",
        _nearest(space, bounds, bounds),
    )


def _nearest(space: SearchSpace, bounds: Sequence[Bound], changed: Sequence[Bound]) -> str:
    """The nearest feasible value of each of some limits, the other limits unchanged."""
    found = []
    for bound in changed:
        least = _least(space, bound, [other for other in bounds if other is not bound])
        if least is not None:
            found.append(bound.argument(least))
    if not found:
        return "Raise several of the limits, or choose a smaller space."
    return f"Nearest feasible, the other limits unchanged: {' or '.join(found)}."


def _least(space: SearchSpace, measured: Bound, bounds: Sequence[Bound]) -> float | None:
    """The smallest measure of a network within bounds; None if there is no such network."""
    if measured.is_peak:
        return _least_peak(space, measured, bounds)
    programme = Programme(space, bounds)
    found = programme.solve(-programme.contributions(measured))
    return None if found is None else measured.of(space.architecture(found.choices))


def _least_peak(space: SearchSpace, measured: Bound, bounds: Sequence[Bound]) -> float | None:
    """As `_least`, for a peak: by bisection over the peaks of the operations of the space."""
    peaks = sorted({measured.of_op(op) + measured.base for op in space.specs()})
    low, high = 0, len(peaks)
    while low < high:
        middle = (low + high) // 2
        if _is_feasible(space, [replace(measured, most=peaks[middle]), *bounds]):
            high = middle
        else:
            low = middle + 1
    return peaks[low] if low < len(peaks) else None


def _is_feasible(space: SearchSpace, bounds: Sequence[Bound]) -> bool:
    programme = Programme(space, bounds)
    return programme.solve(0 * programme.contributions(bounds[0])) is not None
