"""Exact decoding: the architecture that the gates prefer under a latency budget.

ProxylessNAS (arXiv:1812.00332) takes the argmax of every gate without a bound on the latency. That
is the result here too if every network keeps the budget; otherwise the choice is the optimum of an
integer programme with the budget as a constraint, solved by HiGHS.
"""

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy.optimize import Bounds, LinearConstraint, milp

from quadranas.errors import QuadranasError
from quadranas.latency.budget import format_ms
from quadranas.latency.table import LatencyTable
from quadranas.space.cost import count_macs, count_params
from quadranas.space.operation import OpSpec
from quadranas.space.search_space import SKIPPED, SearchSpace
from quadranas.strategies.limits import Limits, check_budget, reachable_ms, too_tight
from quadranas.strategies.scores import GateScores

MAX_REPAIRS = 100
"""Maximum number of solutions to exclude one by one because they violate an upper bound within
HiGHS' tolerance, in at most `MAX_NODES` nodes; then all networks within `MARGIN` of it are."""

TRIES_PER_NETWORK = 10
"""Number of solutions for every further network, most of which can be networks known already, with
other blocks skipped."""

SLOWEST_GAP = 1e-3
"""Relative gap to which the latency of the slowest network is computed."""

MAX_NODES = 2000
"""Node limit of the branch and bound. Trained gates need hundreds of nodes; a score that is linear
in the latency can need millions, to close a gap of 1e-4 that is reached within seconds."""

OBJECTIVE_SIZE, ROW_SIZE = 100.0, 1000.0
"""Largest objective coefficient and bound after scaling, far above HiGHS' absolute tolerances of
1e-6."""

MARGIN = 2e-6 / ROW_SIZE
"""Relative distance from a bound that HiGHS' tolerances cannot bridge."""

INFEASIBLE = 2
"""Status of `scipy.optimize.milp` for an infeasible programme."""

Vector = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """A decoded architecture as choices, its score and its predicted latency.

    Args:
        score: `GateScores.score`, 0 or negative.
        gap: 0 if the score is proven optimal. Otherwise HiGHS stopped after `MAX_NODES` nodes,
            and the optimum is better by at most this fraction.
    """

    choices: dict[str, tuple[int, ...] | None]
    score: float
    latency_ms: float
    gap: float = 0.0


def decode(space: SearchSpace, scores: GateScores, table: LatencyTable, limits: Limits) -> Decoded:
    """The architecture with the best score within the limits, exactly.

    The score (`GateScores.score`) charges every gate for the distance from its own preference. If
    every network is within the limits, the result is the preference of every gate.

    Gates are biased towards the budget that they were trained under, and undecided ones may prefer
    a fast network. The latency must therefore be at least `limits.min_use` of the budget, or of
    the slowest network within the limits if no network reaches that.

    If very many networks violate a bound by less than `MARGIN`, networks within `MARGIN` of a
    bound are considered only if there are no others.

    Raises:
        BudgetError: no network of the space is within the limits.
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
        BudgetError: no network of the space is within the limits.
        QuadranasError: the solver found neither a network nor a proof that there is none.
    """
    check_budget(space, table, limits.budget_ms)
    programme = _Programme(space, scores, table, limits)
    best, lower_ms = programme.first()
    best = best or programme.fastest()
    if best is None:
        raise too_tight(space, limits)
    found = {tuple(space.architecture(best.choices).ops()): best}
    last: Decoded | None = best
    for _ in range(TRIES_PER_NETWORK * (number - 1)):
        if last is None or len(found) == number:
            break
        programme.exclude(last)
        last = programme.solve(programme.scores, lower_ms)
        if last is not None:
            found.setdefault(tuple(space.architecture(last.choices).ops()), last)
    return list(found.values())


@dataclass(frozen=True)
class _Solution:
    """A binary per column, the relative gap that remains, and the number of nodes."""

    chosen: Vector
    gap: float
    num_nodes: int


class _Programme:
    """The integer programme of one decoding: a binary per candidate and per optional block."""

    def __init__(
        self, space: SearchSpace, scores: GateScores, table: LatencyTable, limits: Limits
    ) -> None:
        self.space, self.gate_scores, self.table, self.limits = space, scores, table, limits
        self.columns: list[tuple[str, int, int]] = []  # block, slot (-1: kept), candidate
        columns: list[tuple[float, float, float, float]] = []  # score, ms, params, MACs
        self.fixed = np.zeros(4)  # the same four sums over everything that is not a variable
        for block in space.blocks:
            if block.is_fixed:
                for slot in block.slots:
                    self.fixed += _costs(slot.candidates[0], table)
                continue
            block_scores = scores.blocks[block.name]
            if block.optional:
                # Every optional block starts as skipped; the variable "kept" adds the difference.
                assert block_scores.skip is not None, block.name
                self.columns.append((block.name, -1, 0))
                columns.append((block_scores.keep - block_scores.skip, 0.0, 0.0, 0.0))
            for number, slot in enumerate(block.slots):
                slot_scores = block_scores.slots[number]
                for index, candidate in enumerate(slot.candidates):
                    _, *costs = _costs(candidate, table)
                    self.columns.append((block.name, number, index))
                    columns.append((slot_scores[index] - max(slot_scores), *costs))
        matrix = np.array(columns).reshape(-1, 4)
        self.scores, self.latencies, self.params, self.macs = matrix.T
        self.rules = self._choose_one()
        _, self.most_ms = reachable_ms(space, table)
        # A budget far above the slowest network would scale the latencies below the tolerances.
        self.highest_ms = min(limits.budget_ms, 2 * self.most_ms)

    def _choose_one(self) -> list[LinearConstraint]:
        """Exactly one candidate per slot of a kept block, none for a skipped block.

        For a slot of an optional block: sum of the candidates - kept = 0.
        """
        where = {column: index for index, column in enumerate(self.columns)}
        rows, right_sides = [], []
        for block in self.space.blocks:
            if block.is_fixed:
                continue
            for number, slot in enumerate(block.slots):
                row = np.zeros(len(self.columns))
                row[[where[block.name, number, i] for i in range(len(slot.candidates))]] = 1
                if block.optional:
                    row[where[block.name, -1, 0]] = -1
                rows.append(row)
                right_sides.append(0.0 if block.optional else 1.0)
        if not rows:
            return []
        return [LinearConstraint(np.array(rows), right_sides, right_sides)]

    def _bounds(self, lower_ms: float, margin: float = 0.0) -> list[LinearConstraint]:
        """The bounds on latency, parameters and MACs as rows of size `ROW_SIZE`.

        Args:
            margin: relative distance to keep from the upper bounds.
        """
        offset = self.fixed[1] + self.table.header.null_ms
        scale, slack = ROW_SIZE / self.highest_ms, margin * ROW_SIZE
        low, high = scale * (lower_ms - offset), scale * (self.highest_ms - offset)
        rows = [
            LinearConstraint(scale * self.latencies, low + slack * (lower_ms > 0), high - slack)
        ]
        pairs = ((self.params, 2, self.limits.max_params), (self.macs, 3, self.limits.max_macs))
        for values, number, most in pairs:
            if most is not None:
                scale = ROW_SIZE / most
                room = scale * (most - self.fixed[number])
                rows.append(LinearConstraint(scale * values, -np.inf, room - slack))
        return rows

    def first(self) -> tuple[Decoded | None, float]:
        """The network with the best score, and the lower bound on the latency from `min_use`."""
        use = self.limits.min_use
        if self.most_ms <= self.limits.budget_ms and self._is_bounded_by_latency_only:
            use = 0.0
        lower_ms = use * self.limits.budget_ms
        best = self.solve(self.scores, lower_ms)
        if best is None and use:
            lower_ms = use * self._slowest_ms()
            best = self.solve(self.scores, lower_ms) if lower_ms else None
        return best, lower_ms

    def _slowest_ms(self) -> float:
        """Latency of the slowest network within the limits, or 0 if there is no such network.

        Needed only if no network reaches `min_use` of the budget. Maximising the latency under a
        latency bound is a subset-sum problem, the hardest case of this programme, so it is solved
        to a gap of `SLOWEST_GAP`.
        """
        decoded = self.solve(self.latencies, 0.0, gap=SLOWEST_GAP)
        return 0.0 if decoded is None else decoded.latency_ms

    def exclude(self, known: Decoded) -> None:
        """Have later solutions differ from a network."""
        chosen = np.zeros(len(self.columns))
        for index, (block, slot, candidate) in enumerate(self.columns):
            choice = known.choices[block]
            if choice is not SKIPPED:
                chosen[index] = slot < 0 or choice[slot] == candidate
        self.rules = [*self.rules, _other_than(chosen)]

    @property
    def _is_bounded_by_latency_only(self) -> bool:
        return self.limits.max_params is None and self.limits.max_macs is None

    def fastest(self) -> Decoded | None:
        """The fastest network, if only the latency is bounded: the last resort.

        It is needed if every network within the budget is nearer to it than `MARGIN`.
        """
        if not self._is_bounded_by_latency_only:
            return None
        architecture = self.space.extreme(self.table.op_ms, largest=False)
        return self._described(self.space.choices_of(architecture))

    def solve(self, objective: Vector, lower_ms: float, gap: float = 0.0) -> Decoded | None:
        """The maximiser of an objective with latency in [lower_ms, budget]; None if infeasible.

        HiGHS satisfies a row of size `ROW_SIZE` to 1e-6 only. A solution that violates an upper
        bound is excluded, and the programme is solved again; after `MAX_REPAIRS` solutions, all
        networks within `MARGIN` of an upper bound are.
        """
        if not self.columns:
            return self._within(np.zeros(0), lower_ms)
        rows = self.rules + self._bounds(lower_ms)
        num_nodes = 0
        for _ in range(MAX_REPAIRS):
            found = self._optimum(objective, rows, gap)
            if found is None:
                return None
            decoded = self._within(found.chosen, lower_ms, found.gap)
            if decoded is not None:
                return decoded
            num_nodes += found.num_nodes
            if num_nodes > MAX_NODES:
                break
            rows.append(_other_than(found.chosen))
        found = self._optimum(objective, self.rules + self._bounds(lower_ms, MARGIN), gap)
        return None if found is None else self._within(found.chosen, lower_ms, found.gap)

    def _optimum(
        self, objective: Vector, constraints: list[LinearConstraint], gap: float
    ) -> _Solution | None:
        """The solution of HiGHS; None if infeasible.

        Raises:
            QuadranasError: HiGHS found neither a solution nor a proof that there is none.
        """
        scale = OBJECTIVE_SIZE / max(float(np.abs(objective).max()), 1e-9)
        num_nodes = MAX_NODES
        # A first solution may take more nodes than the limit; only then is the limit raised.
        while num_nodes <= MAX_NODES * 4**6:
            with _quiet_stdout():
                result = milp(
                    -scale * objective,
                    integrality=np.ones(len(self.columns)),
                    bounds=Bounds(0, 1),
                    constraints=constraints,
                    options={"mip_rel_gap": gap, "node_limit": num_nodes},
                )
            if result.x is not None:
                # HiGHS rounds: the gap of a proven optimum can be 1e-16.
                left = float(result.mip_gap) if result.mip_gap > 1e-12 else 0.0
                return _Solution(np.round(result.x), left, int(result.mip_node_count))
            if result.status == INFEASIBLE:
                return None
            num_nodes *= 4
        raise QuadranasError(
            f"the solver found no network of space {self.space.name!r} within "
            f"{format_ms(self.limits.budget_ms)}, and no proof that there is none, in "
            f"{num_nodes // 4:,} nodes",
            "Choose a slightly different budget.",
        )

    def _within(self, chosen: Vector, lower_ms: float, gap: float = 0.0) -> Decoded | None:
        """A solution as a network; None if it violates a bound; a lower one, by `MARGIN`."""
        decoded = replace(self._decoded(chosen), gap=gap)
        # The latency is the table's own prediction, summed in its order, and not the programme's.
        lower_ms -= MARGIN * self.highest_ms
        within = lower_ms <= decoded.latency_ms <= self.limits.budget_ms
        for values, number, most in (
            (self.params, 2, self.limits.max_params),
            (self.macs, 3, self.limits.max_macs),
        ):
            within &= most is None or self.fixed[number] + values @ chosen <= most
        return decoded if within else None

    def _decoded(self, chosen: Vector) -> Decoded:
        picked = [c for c, on in zip(self.columns, chosen, strict=True) if on]
        candidates = {(block, slot): index for block, slot, index in picked}
        choices: dict[str, tuple[int, ...] | None] = {}
        for block in self.space.blocks:
            if block.is_fixed:
                choices[block.name] = (0,) * len(block.slots)
            elif block.optional and (block.name, -1) not in candidates:
                choices[block.name] = SKIPPED
            else:
                choices[block.name] = tuple(
                    candidates[block.name, number] for number in range(len(block.slots))
                )
        return self._described(choices)

    def _described(self, choices: dict[str, tuple[int, ...] | None]) -> Decoded:
        return Decoded(
            choices=choices,
            score=self.gate_scores.score(choices),
            latency_ms=self.table.predict_ms(self.space.architecture(choices)),
        )


def _other_than(chosen: Vector) -> LinearConstraint:
    """Excludes exactly one binary vector: it alone reaches its sum on the left."""
    return LinearConstraint(2 * chosen - 1, -np.inf, chosen.sum() - 1)


def _costs(spec: OpSpec, table: LatencyTable) -> Vector:
    """Score 0, latency in ms, parameters and MACs of one operation."""
    return np.array([0.0, table.op_ms(spec), count_params(spec), count_macs(spec)])


@contextmanager
def _quiet_stdout() -> Iterator[None]:
    """Redirect the process's stdout to the null device while HiGHS runs.

    HiGHS 1.12 (scipy 1.17) sometimes prints a debugging line from C, which would corrupt the
    JSON that commands print. `contextlib.redirect_stdout` does not reach C, hence the descriptor.
    """
    sys.stdout.flush()
    stdout, null = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    try:
        yield
    finally:
        ctypes.CDLL(None).fflush(None)  # C's own buffer must be emptied before stdout is back
        os.dup2(stdout, 1)
        os.close(stdout)
        os.close(null)
