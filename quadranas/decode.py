"""Exact decoding: the most probable architecture under a latency budget.

Departure from ProxylessNAS (arXiv:1812.00332), which takes every gate's argmax and hopes: the
choice is the optimum of an integer programme, so that the budget is a constraint.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain, product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog
from scipy.sparse import block_diag

from quadranas.architecture import Frozen
from quadranas.cost import count_macs, count_params
from quadranas.errors import BudgetError, QuadranasError
from quadranas.files import read_json, validate, write_json
from quadranas.latency.budget import format_ms, parse_budget
from quadranas.latency.table import LatencyTable
from quadranas.space import SKIPPED, Choices, SearchSpace, SpaceBlock

MIN_USE = 0.9
"""The share of the budget that a decoded network uses, where the space allows it."""

SCORE_GAP = 1e-6
"""Networks whose log-probabilities differ by no more are equally good; the slower is preferred."""

SLOWEST_GAP = 1e-3
"""How exactly the slowest network within the limits is found, as a share of the budget."""

FEW_STATES, MANY_STATES = 1_000, 20_000
"""Partial networks remembered at a time: at first, and where those leave the optimum open."""

MAX_EXPANSIONS = 2_000_000
"""Partial networks looked at, some 0.3 us each, before `FEW_STATES` must do."""

QUANTA = 2.0**40
"""Resources are counted in this part of their ceiling, so that equal needs are found equal."""

ROUNDING = 1e-9
"""More than what sums of losses, a few nats at most, are off by."""

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Choice = tuple[int, ...] | None


class BlockScores(Frozen):
    """Log-probabilities of one block's gates.

    Args:
        keep, skip: of the depth gate; 0 and none for a block that is always there.
        slots: per slot, per candidate.
    """

    keep: float = 0.0
    skip: float | None = None
    slots: tuple[tuple[float, ...], ...]

    def of(self, choice: Choice) -> float:
        """Log-probability of a choice for the block."""
        if choice is SKIPPED:
            assert self.skip is not None
            return self.skip
        return self.keep + sum(s[index] for s, index in zip(self.slots, choice, strict=True))


class GateScores(Frozen):
    """Log-probabilities of every gate of a trained supernet, and the space they belong to."""

    space: str
    space_digest: str
    blocks: dict[str, BlockScores]

    def save(self, path: Path) -> None:
        """Write the scores as JSON."""
        write_json(path, self.model_dump(mode="json"))

    def log_probability(self, choices: Choices) -> float:
        """Logarithm of the probability that the gates draw this architecture."""
        return sum(block.of(choices[name]) for name, block in self.blocks.items())


def load_scores(path: Path, space: SearchSpace) -> GateScores:
    """Read gate scores.

    Raises:
        QuadranasError: unreadable, of another space, or not a number for every gate of it.
    """
    scores = validate(GateScores, read_json(path, "gate scores"), path)
    if scores.space_digest != space.digest:
        raise QuadranasError(
            f"{path} belongs to space {scores.space!r}, not to {space.name!r} as it is now"
        )
    for name in dict.fromkeys([*(block.name for block in space.blocks), *scores.blocks]):
        if not _fits(scores.blocks.get(name), space, name):
            raise QuadranasError(f"{path}: blocks.{name}: not the gates of that block")
    return scores


def _fits(scores: BlockScores | None, space: SearchSpace, name: str) -> bool:
    """Whether scores have a finite number for every gate of a block; fixed ones need none."""
    block = next((block for block in space.blocks if block.name == name), None)
    if block is None or scores is None:
        return block is not None and block.is_fixed
    numbers = [scores.keep, scores.skip or 0.0, *chain(*scores.slots)]
    return (
        [len(slot) for slot in scores.slots] == [len(slot.candidates) for slot in block.slots]
        and (scores.skip is not None or not block.optional)
        and all(map(math.isfinite, numbers))
    )


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Upper bounds on a network; `min_use` is the share of the budget to use, if possible."""

    budget_ms: float
    max_params: int | None = None
    max_macs: int | None = None
    min_use: float = MIN_USE


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """A decoded architecture as choices, its log-probability and its predicted latency.

    Args:
        gap: 0 where the score is proven to be the best. Otherwise the search stopped early, and
            no network's score is better by more than this share.
    """

    choices: dict[str, Choice]
    score: float
    latency_ms: float
    gap: float = 0.0


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


def decode(space: SearchSpace, scores: GateScores, table: LatencyTable, limits: Limits) -> Decoded:
    """The most probable architecture within the limits, to `SCORE_GAP`.

    The score is the log-probability under the gates as trained, also for another budget or device:
    it is the only quality estimate the search has earned. Such gates fear the latency of
    their own budget, so at least `limits.min_use` of the budget is demanded (of the slowest
    network within the limits, where that uses less), which leaves the score to rank networks
    of nearly equal latency.

    Raises:
        BudgetError: no network of the space is within the limits.
    """
    check_budget(space, table, limits.budget_ms)
    programme = _Programme(space, scores, table, limits)
    best = programme.most_probable(limits.min_use * limits.budget_ms)
    if best is not None:
        return best
    slowest = programme.slowest()
    if slowest is None:
        raise _too_tight(space, limits)
    return programme.most_probable(limits.min_use * slowest.latency_ms) or slowest


def _too_tight(space: SearchSpace, limits: Limits) -> BudgetError:
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


@dataclass(frozen=True)
class _Bound:
    """What no network of one depth exceeds, and how far each falls short of it.

    The value of a network is `value` minus the losses of its options, minus its slack to each
    limit times that limit's price. None of these is negative.
    """

    value: float
    losses: list[Floats]
    low: Floats
    high: Floats
    low_prices: Floats
    high_prices: Floats


class _Programme:
    """The choice of one option for every searched block: a multiple-choice knapsack.

    An option is a candidate for each slot, or to skip the block. Networks of each depth are
    searched by themselves, for it is the choice between one block more or less that makes the
    linear relaxation loose. At a depth, the relaxation's prices give a bound from which every
    option loses something (Lagrange); blocks are decided one after the other, and of the partial
    networks those are dropped that lose more than the best known network, or as much as another
    for the same needs. Where too many remain, the best of each neighbourhood is kept: what is
    found then is next to the bound, but not proven to be best.

    HiGHS (1.12), given the whole programme, took up to minutes for gates that fear latency in
    blocks nearly alike, and keeps limits to 1e-6 only.

    Resources are the latency, parameters and MACs if their ceiling matters (all as shares of the
    ceiling), and last the depth, in blocks.
    """

    def __init__(
        self, space: SearchSpace, scores: GateScores, table: LatencyTable, limits: Limits
    ) -> None:
        self.space, self.gate_scores, self.table, self.limits = space, scores, table, limits
        self.blocks = [block for block in space.blocks if not block.is_fixed]
        self.options = [_options(block) for block in self.blocks]
        self.top_ms = min(limits.budget_ms, reachable_ms(space, table)[1])
        self._measure()
        self._drop_hopeless()
        self.scores = [
            np.array([scores.blocks[block.name].of(option) for option in options])
            for block, options in zip(self.blocks, self.options, strict=True)
        ]

    def _measure(self) -> None:
        """What every option uses, and the room that the fixed blocks leave, per resource."""
        costs = [
            _option_costs(block, options, self.table)
            for block, options in zip(self.blocks, self.options, strict=True)
        ]
        fixed = np.array([self.table.header.null_ms, 0.0, 0.0])
        for block in self.space.blocks:
            if block.is_fixed:
                fixed += _option_costs(block, _options(block), self.table)[0]
        most = fixed + sum(cost.max(0) for cost in costs)
        ceilings = np.array(
            [self.top_ms, *(np.inf if c is None else c for c in self._count_limits)]
        )
        matters = np.flatnonzero((ceilings < most) | [True, False, False])
        unit = np.where(ceilings > 0, ceilings, 1)[matters]
        self.fixed_ms = float(fixed[0])
        self.room = (ceilings - fixed)[matters] / unit
        self.uses = [
            np.column_stack((cost[:, matters] / unit, [o is not SKIPPED for o in options]))
            for cost, options in zip(costs, self.options, strict=True)
        ]

    @property
    def _count_limits(self) -> tuple[int | None, int | None]:
        return self.limits.max_params, self.limits.max_macs

    def _drop_hopeless(self) -> None:
        """Leave out options that break a ceiling even with the least of everything else."""
        least = [use.min(0)[:-1] for use in self.uses]
        for index, use in enumerate(self.uses):
            total = use[:, :-1] + (sum(least) - least[index])
            fits = np.flatnonzero((total <= self.room + ROUNDING).all(1))
            self.uses[index] = use[fits]
            self.options[index] = [self.options[index][i] for i in fits]

    def most_probable(self, lower_ms: float) -> Decoded | None:
        """The most probable network that takes at least so long, or none."""
        pairs = zip(self.scores, self.uses, strict=True)
        values = [scores + SCORE_GAP * use[:, 0] for scores, use in pairs]
        return self._solve(values, lower_ms, SCORE_GAP)

    def slowest(self) -> Decoded | None:
        """The slowest network within the limits, to `SLOWEST_GAP`, or none.

        Asked only when `min_use` of the budget is out of reach. Filling a budget to the last
        microsecond is the hard case of this programme (a subset sum), hence the gap.
        """
        return self._solve([use[:, 0] for use in self.uses], 0.0, SLOWEST_GAP)

    def _solve(self, values: list[Floats], lower_ms: float, gap: float) -> Decoded | None:
        """The network of the largest value with latency in [lower_ms, budget], or none."""
        if not self.blocks:
            return self._decoded([], lower_ms)
        if lower_ms > self.top_ms or not all(self.options):
            return None
        low = np.zeros(len(self.room) + 1)
        low[0] = (lower_ms - self.fixed_ms) / self.top_ms
        high = np.append(self.room, 0.0)
        low[-1], high[-1] = (sum(f(use[:, -1]) for use in self.uses) for f in (min, max))
        search = _Search(self.uses, values, lambda picks: self._decoded(picks, lower_ms), gap)
        relaxed = search.relax(low, high)
        if relaxed is None:
            return None
        middle = math.floor(np.concatenate(self.uses)[:, -1] @ relaxed.x + ROUNDING)
        downward = range(middle, int(low[-1]) - 1, -1)
        upward = range(middle + 1, int(high[-1]) + 1)
        # The bound is concave in the depth: away from the relaxed optimum it only gets worse.
        for depths in (downward, upward):
            for depth in depths:
                low[-1] = high[-1] = depth
                bound = search.bound(low, high)
                if bound is None or search.proves(bound):
                    break
                search.run(bound)
        return search.result()

    def _decoded(self, picks: Sequence[int], lower_ms: float) -> Decoded | None:
        """A network by the numbers of its options, or none if it is outside the limits."""
        choices: dict[str, Choice] = {b.name: (0,) * len(b.slots) for b in self.space.blocks}
        for block, options, pick in zip(self.blocks, self.options, picks, strict=True):
            choices[block.name] = options[pick]
        architecture = self.space.architecture(choices)
        latency_ms = self.table.predict_ms(architecture)
        counts = count_params(architecture), count_macs(architecture)
        if not lower_ms <= latency_ms <= self.limits.budget_ms or any(
            most is not None and count > most
            for count, most in zip(counts, self._count_limits, strict=True)
        ):
            return None
        score = self.gate_scores.log_probability(choices)
        return Decoded(choices=choices, score=score, latency_ms=latency_ms)


class _Search:
    """The network of the largest value, looked for depth by depth.

    Args:
        uses, values: per block, of every option: resources, and what is to be maximised.
        accept: the network of an option per block, or none if it is outside the limits.
        gap: how much better than the result another network may be.
    """

    def __init__(
        self,
        uses: list[Floats],
        values: list[Floats],
        accept: Callable[[list[int]], Decoded | None],
        gap: float,
    ) -> None:
        self.uses, self.values, self.accept, self.gap = uses, values, accept, gap
        self.best: Decoded | None = None
        self.best_value = self.open_value = -math.inf
        self.expansions = 0

    def result(self) -> Decoded | None:
        """The best network found, and whether another depth may hold a better one."""
        if self.best is None or self.open_value <= self.best_value + self.gap:
            return self.best
        share = (self.open_value - self.best_value) / max(abs(self.best_value), ROUNDING)
        return replace(self.best, gap=share)

    def relax(self, low: Floats, high: Floats) -> Any:
        """The linear relaxation of the programme, or none if it is infeasible."""
        use = np.concatenate(self.uses).T
        result = linprog(
            -np.concatenate(self.values),
            A_ub=np.vstack((use, -use)),
            b_ub=np.append(high, -low),
            A_eq=block_diag([np.ones((1, len(options))) for options in self.uses]).tocsr(),
            b_eq=np.ones(len(self.uses)),
            bounds=(0, 1),
            method="highs",
        )
        assert result.status in (0, 2), result.message
        return result if result.status == 0 else None

    def bound(self, low: Floats, high: Floats) -> _Bound | None:
        """The bound from the relaxation's prices; any prices would give a valid one."""
        relaxed = self.relax(low, high)
        if relaxed is None:
            return None
        high_prices, low_prices = np.maximum(-relaxed.ineqlin.marginals, 0).reshape(2, -1)
        net = [
            value - use @ (high_prices - low_prices)
            for value, use in zip(self.values, self.uses, strict=True)
        ]
        total = sum(n.max() for n in net) + high_prices @ high - low_prices @ low
        losses = [n.max() - n for n in net]
        return _Bound(float(total), losses, low.copy(), high.copy(), low_prices, high_prices)

    def proves(self, bound: _Bound) -> bool:
        """Whether no network within a bound is better than the best so far."""
        return bound.value <= self.best_value + self.gap

    def run(self, bound: _Bound) -> None:
        """Look for a better network at the bound's depth."""
        for max_states in (FEW_STATES, MANY_STATES):
            complete = self._enumerate(bound, max_states)
            if complete or self.proves(bound):
                return
            if self.expansions > MAX_EXPANSIONS:
                break
        self.open_value = max(self.open_value, bound.value)

    def _enumerate(self, bound: _Bound, max_states: int) -> bool:
        """Keep the network of the bound's depth that loses least; whether all were looked at."""
        most_loss = bound.value - self.best_value + ROUNDING
        kept = [np.flatnonzero(loss <= most_loss) for loss in bound.losses]
        uses = [
            np.rint(use[options] * QUANTA).astype(np.int64)
            for use, options in zip(self.uses, kept, strict=True)
        ]
        # Wide blocks first: what is decided last fills the budget in small steps.
        order = sorted(range(len(uses)), key=lambda block: -np.ptp(uses[block][:, 0]))
        rounding = len(order) + 1  # in quanta; the limits proper are checked at the end
        most, least = (np.sum([f(use, 0) for use in uses], 0) for f in (np.max, np.min))
        losses, used = np.zeros(1), np.zeros((1, len(bound.high)), np.int64)
        trail: list[tuple[Integers, Integers]] = []
        complete = True
        for block in order:
            most, least = most - uses[block].max(0), least - uses[block].min(0)
            lost = np.add.outer(losses, bound.losses[block][kept[block]]).ravel()
            needs = (used[:, None] + uses[block]).reshape(len(lost), len(least))
            self.expansions += len(lost)
            fits = lost <= most_loss
            fits &= (needs + least <= bound.high * QUANTA + rounding).all(1)
            fits &= (needs + most >= bound.low * QUANTA - rounding).all(1)
            states = np.flatnonzero(fits)
            states = states[_best_of_each(needs[states], lost[states])]
            if len(states) > max_states:
                complete = False
                cells = _cells(needs[states], max_states)
                states = states[_best_of_each(cells, lost[states])]
            losses, used = lost[states], needs[states]
            trail.append(np.divmod(states, len(kept[block])))
        totals = losses + np.maximum(bound.high - used / QUANTA, 0) @ bound.high_prices
        totals += np.maximum(used / QUANTA - bound.low, 0) @ bound.low_prices
        for state in np.argsort(totals, kind="stable"):
            value = bound.value - float(totals[state])
            if value <= self.best_value:
                break
            picks = dict(zip(order, _retrace(trail, state), strict=True))
            found = self.accept([int(kept[block][picks[block]]) for block in range(len(order))])
            if found is not None:
                self.best, self.best_value = found, value
                break
        return complete


def _options(block: SpaceBlock) -> list[Choice]:
    candidates = product(*(range(len(slot.candidates)) for slot in block.slots))
    return [*candidates, *([SKIPPED] if block.optional else [])]


def _option_costs(block: SpaceBlock, options: list[Choice], table: LatencyTable) -> Floats:
    """Latency in ms, parameters and MACs, shape (num_options, 3)."""
    costs = [
        np.array([(table.op_ms(op), count_params(op), count_macs(op)) for op in slot.candidates])
        for slot in block.slots
    ]
    used = np.zeros((len(options), 3))
    for row, option in zip(used, options, strict=True):
        for cost, index in zip(costs, option or (), strict=option is not SKIPPED):
            row += cost[index]
    return used


def _best_of_each(keys: Integers, losses: Floats) -> Integers:
    """Of rows with equal keys the one that loses least, in the order of the keys."""
    order = np.lexsort((losses, *keys.T))
    first = np.ones(len(order), bool)
    first[1:] = (keys[order[1:]] != keys[order[:-1]]).any(1)
    return order[first]


def _cells(needs: Integers, max_cells: int) -> Integers:
    """Neighbourhoods of similar needs, at most so many: equal depth, similar latency and so on."""
    *others, depth = needs.T
    coarse = [8] * (len(others) - 1)
    fine = max_cells // (math.prod(coarse) * len(np.unique(depth)))
    cells = [depth]
    for need, count in zip(others, (max(fine, 1), *coarse), strict=True):
        width = (need.max() - need.min()) // count + 1
        cells.append((need - need.min()) // width)
    return np.column_stack(cells)


def _retrace(trail: list[tuple[Integers, Integers]], state: int) -> list[int]:
    """The options that led to a state, in the order in which they were decided."""
    picks = []
    for parents, options in reversed(trail):
        picks.append(int(options[state]))
        state = parents[state]
    return picks[::-1]
