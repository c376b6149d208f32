"""Exact decoding: the architecture that the gates prefer under a latency budget.

ProxylessNAS (arXiv:1812.00332) takes the argmax of every gate without a bound on the latency. That
is the result here too if every network keeps the limits; otherwise the choice is the optimum of an
integer programme with the limits as constraints (`programme.py`).
"""

from dataclasses import dataclass
from typing import NamedTuple

from quadranas.latency.table import LatencyTable
from quadranas.space.search_space import Choices, SearchSpace
from quadranas.strategies.feasibility import check_alone, exclusion
from quadranas.strategies.limits import Limits
from quadranas.strategies.programme import Programme, Solution
from quadranas.strategies.scores import GateScores

TRIES_PER_NETWORK = 10
"""Number of solutions for every further network, most of which can be networks known already, with
other blocks skipped."""

SLOWEST_GAP = 1e-3
"""Relative gap to which the latency of the slowest network is computed."""


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """A decoded architecture as choices, its score and its predicted latency.

    Args:
        score: `GateScores.score`, 0 or negative.
        gap: see `Solution`.
    """

    choices: dict[str, tuple[int, ...] | None]
    score: float
    latency_ms: float
    gap: float = 0.0


class Preferred(NamedTuple):
    """The networks that gates prefer, the best one first.

    Args:
        are_all: whether it is proven that no further network is within the limits.
    """

    networks: list[Decoded]
    are_all: bool


def decode(space: SearchSpace, scores: GateScores, table: LatencyTable, limits: Limits) -> Decoded:
    """The architecture with the best score within the limits, exactly.

    The score (`GateScores.score`) charges every gate for the distance from its own preference. If
    every network is within the limits, the result is the preference of every gate.

    Gates are biased towards the budget that they were trained under, and undecided ones may prefer
    a fast network. The latency must therefore be at least `limits.min_use` of the budget, or of
    the slowest network within the limits if no network reaches that.

    If very many networks violate a bound by less than `programme.MARGIN`, networks within that
    margin of a bound are considered only if there are no others.

    Raises:
        BudgetError: no network of the space is within the limits; says which of them exclude each
            other.
        QuadranasError: the solver found neither a network nor a proof that there is none.
    """
    return decode_best(space, scores, table, limits, 1)[0]


def decode_best(
    space: SearchSpace, scores: GateScores, table: LatencyTable, limits: Limits, number: int
) -> list[Decoded]:
    """The architectures with the best scores within the limits, the best one first.

    Networks that differ only in which blocks of a stage are skipped are the same, and occur once.

    Args:
        number: how many to find at most; there may be fewer within the limits, or within
            `TRIES_PER_NETWORK` solutions for each.

    Raises:
        BudgetError, QuadranasError: as `decode`.
    """
    return decode_preferred(space, scores, table, limits, number).networks


def decode_preferred(
    space: SearchSpace, scores: GateScores, table: LatencyTable, limits: Limits, number: int
) -> Preferred:
    """As `decode_best`, and whether there are more networks."""
    bounds = limits.bounds(table)
    check_alone(space, table, limits)
    programme = Programme(space, bounds)
    objective = programme.scores(scores)

    def described(found: Solution) -> Decoded:
        network = space.architecture(found.choices)
        return Decoded(
            choices=found.choices,
            score=scores.score(found.choices),
            latency_ms=table.predict_ms(network),
            gap=found.gap,
        )

    lower_ms = limits.min_use * limits.budget_ms
    best: Solution | None
    if all(bound.extreme(space, largest=True) <= bound.most for bound in bounds):
        lower_ms, best = 0.0, Solution(scores.preferred(space))  # the solver rounds
    else:
        best = programme.solve(objective, lower_ms)
    if best is None and lower_ms:
        lower_ms = limits.min_use * _slowest_ms(programme)
        best = programme.solve(objective, lower_ms) if lower_ms else None
    best = best or programme.smallest()
    if best is None:
        raise exclusion(space, bounds)
    found = {_network(space, best.choices): described(best)}
    last: Solution | None = best
    for _ in range(TRIES_PER_NETWORK * (number - 1)):
        if last is None or len(found) == number:
            break
        programme.exclude(last.choices)
        last = programme.solve(objective, lower_ms)
        if last is not None:
            found.setdefault(_network(space, last.choices), described(last))
    return Preferred(list(found.values()), last is None)


def _network(space: SearchSpace, choices: Choices) -> tuple[object, ...]:
    return tuple(space.architecture(choices).ops())


def _slowest_ms(programme: Programme) -> float:
    """Latency of the slowest network within the limits, or 0 if there is no such network.

    Needed only if no network reaches `min_use` of the budget. Maximising the latency under a
    latency bound is a subset-sum problem, the hardest case of this programme, so it is solved
    to a gap of `SLOWEST_GAP`.
    """
    latency = programme.bounds[0]
    found = programme.solve(programme.contributions(latency), gap=SLOWEST_GAP)
    return 0.0 if found is None else latency.of(programme.space.architecture(found.choices))
