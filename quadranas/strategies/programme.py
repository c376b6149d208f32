"""The networks of a space within bounds as an integer programme, solved by HiGHS."""

import ctypes
import math
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import Bounds, LinearConstraint, milp

from quadranas.errors import QuadranasError
from quadranas.space.search_space import SKIPPED, Choices, SearchSpace
from quadranas.strategies.limits import Bound
from quadranas.strategies.scores import GateScores

MAX_REPAIRS = 100
"""Maximum number of solutions to exclude one by one because they violate an upper bound within
HiGHS' tolerance, in at most `MAX_NODES` nodes; then all networks within `MARGIN` of it are."""

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


@dataclass(frozen=True)
class Solution:
    """A network within all bounds as choices.

    Args:
        gap: 0 if it is proven optimal. Otherwise HiGHS stopped after `MAX_NODES` nodes, and the
            optimum is better by at most this fraction.
    """

    choices: dict[str, tuple[int, ...] | None]
    gap: float = 0.0


@dataclass(frozen=True)
class _Found:
    """A binary per column, the relative gap that remains, and the number of nodes."""

    chosen: Vector
    gap: float
    num_nodes: int


class Programme:
    """A binary per candidate and per optional block, and a row per bound on a sum.

    A bound on a peak is no row: it excludes the candidates that exceed it by themselves.

    Attributes:
        columns: block, slot (-1: whether the block is kept) and candidate of every variable.
    """

    def __init__(self, space: SearchSpace, bounds: Sequence[Bound]) -> None:
        self.space, self.bounds = space, bounds
        self.columns: list[tuple[str, int, int]] = []
        for block in space.blocks:
            if block.is_fixed:
                continue
            if block.optional:
                self.columns.append((block.name, -1, 0))
            for number, slot in enumerate(block.slots):
                self.columns += [(block.name, number, i) for i in range(len(slot.candidates))]
        self.rules = self._choose_one()
        self._rows = [self._row(bound) for bound in bounds if not bound.is_peak]
        self._upper = np.ones(len(self.columns))
        for bound in bounds:
            if bound.is_peak:
                self._upper[self.contributions(bound) > bound.most] = 0.0

    def contributions(self, bound: Bound) -> Vector:
        """What every column adds to the measure of a bound."""
        slots = {block.name: block.slots for block in self.space.blocks}
        return np.array(
            [
                bound.of_op(slots[block][slot].candidates[index]) if slot >= 0 else 0.0
                for block, slot, index in self.columns
            ]
        )

    def scores(self, scores: GateScores) -> Vector:
        """What every column adds to the score of a network, up to a constant.

        Every optional block starts as skipped; the variable "kept" adds the difference.
        """
        values = []
        for name, slot, index in self.columns:
            block = scores.blocks[name]
            if slot < 0:
                assert block.skip is not None, name
                values.append(block.keep - block.skip)
            else:
                values.append(block.slots[slot][index] - max(block.slots[slot]))
        return np.array(values)

    def agreement(self, choices: Choices) -> Vector:
        """1 for every column that given choices choose, -1 for a block that they skip."""
        values = []
        for name, slot, index in self.columns:
            choice = choices[name]
            if slot < 0:
                values.append(-1.0 if choice is SKIPPED else 1.0)
            else:
                values.append(float(choice is not SKIPPED and choice[slot] == index))
        return np.array(values)

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

    def _row(self, bound: Bound) -> tuple[Vector, float, float]:
        """The contributions to a bound's measure, what every network has of it, and the bound."""
        fixed = math.fsum(
            bound.of_op(slot.candidates[0])
            for block in self.space.blocks
            if block.is_fixed
            for slot in block.slots
        )
        # A bound far above the largest network would scale the values below the tolerances.
        most = min(bound.most, 2 * bound.extreme(self.space, largest=True))
        return self.contributions(bound), fixed + bound.base, most

    def _limits(self, lower: float, margin: float = 0.0) -> list[LinearConstraint]:
        """The bounds as rows of size `ROW_SIZE`.

        Args:
            lower: lower bound on the first measure; 0 for none.
            margin: relative distance to keep from the upper bounds.
        """
        found, slack = [], margin * ROW_SIZE
        for number, (values, base, most) in enumerate(self._rows):
            scale = ROW_SIZE / most
            low = -np.inf
            if number == 0 and lower > 0:
                low = scale * (lower - base) + slack
            found.append(LinearConstraint(scale * values, low, scale * (most - base) - slack))
        return found

    def exclude(self, choices: Choices) -> None:
        """Have later solutions differ from a network."""
        chosen = np.zeros(len(self.columns))
        for index, (block, slot, candidate) in enumerate(self.columns):
            choice = choices[block]
            if choice is not SKIPPED:
                chosen[index] = slot < 0 or choice[slot] == candidate
        self.rules = [*self.rules, _other_than(chosen)]

    def solve(self, objective: Vector, lower: float = 0.0, gap: float = 0.0) -> Solution | None:
        """The maximiser of an objective within the bounds; None if there is no such network.

        HiGHS satisfies a row of size `ROW_SIZE` to 1e-6 only. A solution that violates an upper
        bound is excluded, and the programme is solved again; after `MAX_REPAIRS` solutions, all
        networks within `MARGIN` of an upper bound are.

        Args:
            lower: lower bound on the first measure, which is kept up to `MARGIN`; 0 for none.
            gap: relative distance from the optimum that is enough.

        Raises:
            QuadranasError: HiGHS found neither a solution nor a proof that there is none.
        """
        if not self.columns:
            return self._within(np.zeros(0), lower)
        rows = self.rules + self._limits(lower)
        num_nodes = 0
        for _ in range(MAX_REPAIRS):
            found = self._optimum(objective, rows, gap)
            if found is None:
                return None
            solution = self._within(found.chosen, lower, found.gap)
            if solution is not None:
                return solution
            num_nodes += found.num_nodes
            if num_nodes > MAX_NODES:
                break
            rows.append(_other_than(found.chosen))
        found = self._optimum(objective, self.rules + self._limits(lower, MARGIN), gap)
        return None if found is None else self._within(found.chosen, lower, found.gap)

    def smallest(self) -> Solution | None:
        """A network at the minimum of one measure that is within all bounds: the last resort.

        It is needed if every network within the bounds is nearer to one than `MARGIN`.
        """
        for bound in self.bounds:
            network = self.space.extreme(bound.of_op, largest=False)
            if all(bound.holds(network) for bound in self.bounds):
                return Solution(self.space.choices_of(network))
        return None

    def _optimum(
        self, objective: Vector, constraints: list[LinearConstraint], gap: float
    ) -> _Found | None:
        """The solution of HiGHS; None if infeasible; errors as `solve`."""
        scale = OBJECTIVE_SIZE / max(float(np.abs(objective).max()), 1e-9)
        num_nodes = MAX_NODES
        # A first solution may take more nodes than the limit; only then is the limit raised.
        while num_nodes <= MAX_NODES * 4**6:
            with _quiet_stdout():
                result = milp(
                    -scale * objective,
                    integrality=np.ones(len(self.columns)),
                    bounds=Bounds(0, self._upper),
                    constraints=constraints,
                    options={"mip_rel_gap": gap, "node_limit": num_nodes},
                )
            if result.x is not None:
                # HiGHS rounds: the gap of a proven optimum can be 1e-11.
                left = float(result.mip_gap) if result.mip_gap > 1e-9 else 0.0
                return _Found(np.round(result.x), left, int(result.mip_node_count))
            if result.status == INFEASIBLE:
                return None
            num_nodes *= 4
        limits = ", ".join(bound.text(bound.most) for bound in self.bounds)
        raise QuadranasError(
            f"the solver found no network of space {self.space.name!r} within {limits}, and no "
            f"proof that there is none, in {num_nodes // 4:,} nodes",
            "Choose a slightly different budget.",
        )

    def _within(self, chosen: Vector, lower: float, gap: float = 0.0) -> Solution | None:
        """A solution as a network; None if it violates a bound; a lower one, by `MARGIN`."""
        solution = Solution(self._choices(chosen), gap)
        network = self.space.architecture(solution.choices)
        # The measures are summed in the order of a network's operations, not the programme's.
        within = all(bound.holds(network) for bound in self.bounds)
        if within and lower > 0:
            within = self.bounds[0].of(network) >= lower - MARGIN * self._rows[0][2]
        return solution if within else None

    def _choices(self, chosen: Vector) -> dict[str, tuple[int, ...] | None]:
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
        return choices


def _other_than(chosen: Vector) -> LinearConstraint:
    """Excludes exactly one binary vector: it alone reaches its sum on the left."""
    return LinearConstraint(2 * chosen - 1, -np.inf, chosen.sum() - 1)


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
