"""Exact decoding: the most probable architecture under a latency budget.

Departure from ProxylessNAS (arXiv:1812.00332), which takes every gate's argmax and hopes: the
choice is the optimum of an integer programme, solved by HiGHS, so that the budget is a constraint.
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

from quadranas.latency.table import LatencyTable
from quadranas.space.cost import count_macs, count_params
from quadranas.space.operation import OpSpec
from quadranas.space.search_space import SKIPPED, SearchSpace
from quadranas.strategies.limits import Limits, check_budget, reachable_ms, too_tight
from quadranas.strategies.scores import GateScores

MAX_REPAIRS = 200
SLOWEST_GAP = 1e-3

MAX_NODES = 2000
"""Of the branch and bound. Trained gates need hundreds; a score linear in latency, that knows
nothing else, can need millions, to close the gap of 1e-4 that is left after seconds."""

OBJECTIVE_SIZE, ROW_SIZE = 100.0, 1000.0
"""The objective's largest coefficient and the budget for HiGHS, whose tolerances are 1e-6."""

INFEASIBLE = 2
"""HiGHS' verdict in the words of `scipy.optimize.milp`."""

Vector = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """A decoded architecture as choices, its log-probability and its predicted latency.

    Args:
        gap: 0 where the score is proven to be the best. Otherwise HiGHS stopped after `MAX_NODES`
            nodes, and no network's score is better by more than this share.
    """

    choices: dict[str, tuple[int, ...] | None]
    score: float
    latency_ms: float
    gap: float = 0.0


def decode(space: SearchSpace, scores: GateScores, table: LatencyTable, limits: Limits) -> Decoded:
    """The most probable architecture within the limits, exactly.

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
    best = programme.solve(programme.scores, limits.min_use * limits.budget_ms)
    if best is not None:
        return best
    slowest = programme.slowest_ms()
    if slowest is None:
        raise too_tight(space, limits)
    best = programme.solve(programme.scores, limits.min_use * slowest)
    assert best is not None, "the slowest network is within the bounds"
    return best


class _Programme:
    """The integer programme of one decoding: a binary per candidate and per optional block."""

    def __init__(
        self, space: SearchSpace, scores: GateScores, table: LatencyTable, limits: Limits
    ) -> None:
        self.space, self.gate_scores, self.table, self.limits = space, scores, table, limits
        self.columns: list[tuple[str, int, int]] = []  # block, slot (-1: kept), candidate
        columns: list[tuple[float, float, float, float]] = []  # score, ms, params, MACs
        self.fixed = np.zeros(4)
        for block in space.blocks:
            if block.is_fixed:
                for slot in block.slots:
                    self.fixed += _costs(slot.candidates[0], table)
                continue
            block_scores = scores.blocks[block.name]
            if block.optional:
                assert block_scores.skip is not None, block.name
                self.fixed[0] += block_scores.skip
                self.columns.append((block.name, -1, 0))
                columns.append((block_scores.keep - block_scores.skip, 0.0, 0.0, 0.0))
            for number, slot in enumerate(block.slots):
                for index, candidate in enumerate(slot.candidates):
                    _, *costs = _costs(candidate, table)
                    self.columns.append((block.name, number, index))
                    columns.append((block_scores.slots[number][index], *costs))
        matrix = np.array(columns).reshape(-1, 4)
        self.scores, self.latencies, self.params, self.macs = matrix.T
        self.constraints = self._choose_one() + self._ceilings()

    def _choose_one(self) -> list[LinearConstraint]:
        """One candidate per slot of a kept block, none of a skipped one."""
        where = {column: index for index, column in enumerate(self.columns)}
        rows, sides = [], []
        for block in self.space.blocks:
            if block.is_fixed:
                continue
            for number, slot in enumerate(block.slots):
                row = np.zeros(len(self.columns))
                row[[where[block.name, number, i] for i in range(len(slot.candidates))]] = 1
                if block.optional:
                    row[where[block.name, -1, 0]] = -1
                rows.append(row)
                sides.append(0.0 if block.optional else 1.0)
        if not rows:
            return []
        return [LinearConstraint(np.array(rows), sides, sides)]

    def _ceilings(self) -> list[LinearConstraint]:
        """The bounds on parameters and MACs, scaled to about 1."""
        ceilings = []
        pairs = ((self.params, 2, self.limits.max_params), (self.macs, 3, self.limits.max_macs))
        for values, number, most in pairs:
            if most is not None:
                room = (most - self.fixed[number]) / most
                ceilings.append(LinearConstraint(values / most, -np.inf, room))
        return ceilings

    def slowest_ms(self) -> float | None:
        """Latency of the slowest network within the limits, to `SLOWEST_GAP`, or none.

        Asked only when `min_use` of the budget is out of reach. Filling a budget to the last
        microsecond is the hard case of this programme (a subset sum), hence the gap.
        """
        _, slowest = reachable_ms(self.space, self.table)
        if slowest <= self.limits.budget_ms and not self._ceilings():
            return slowest
        found = self.solve(self.latencies, 0.0, gap=SLOWEST_GAP)
        return None if found is None else found.latency_ms

    def solve(self, objective: Vector, lower_ms: float, gap: float = 0.0) -> Decoded | None:
        """The maximiser of an objective with latency in [lower_ms, budget], or none.

        HiGHS keeps a row of size `ROW_SIZE` to 1e-6 only; a solution that is truly outside is cut
        off and the programme solved again.
        """
        if not self.columns:
            decoded = self._decoded(np.zeros(0))
            return decoded if self._within(decoded, np.zeros(0), lower_ms) else None
        highest = min(self.limits.budget_ms, 2 * reachable_ms(self.space, self.table)[1])
        scale = ROW_SIZE / highest
        offset = self.fixed[1] + self.table.header.null_ms
        window = LinearConstraint(
            scale * self.latencies, scale * (lower_ms - offset), scale * (highest - offset)
        )
        cuts: list[LinearConstraint] = []
        for _ in range(MAX_REPAIRS):
            chosen, left = self._optimum(objective, [*self.constraints, window, *cuts], gap)
            if chosen is None:
                return None
            decoded = replace(self._decoded(chosen), gap=left)
            if self._within(decoded, chosen, lower_ms):
                return decoded
            cuts.append(LinearConstraint(2 * chosen - 1, -np.inf, chosen.sum() - 1))
        raise AssertionError("the solver keeps leaving the bounds")

    def _optimum(
        self, objective: Vector, constraints: list[LinearConstraint], gap: float
    ) -> tuple[Vector | None, float]:
        """HiGHS' solution, or none if there is none, and the relative gap it left open."""
        scale = OBJECTIVE_SIZE / max(float(np.abs(objective).max()), 1e-9)
        num_nodes = MAX_NODES
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
                return np.round(result.x), float(result.mip_gap)
            if result.status == INFEASIBLE:
                return None, 0.0
            num_nodes *= 4
        raise AssertionError(f"HiGHS found no network and no proof that there is none: {result}")

    def _within(self, decoded: Decoded, chosen: Vector, lower_ms: float) -> bool:
        within = lower_ms <= decoded.latency_ms <= self.limits.budget_ms
        for values, number, most in (
            (self.params, 2, self.limits.max_params),
            (self.macs, 3, self.limits.max_macs),
        ):
            within &= most is None or self.fixed[number] + values @ chosen <= most
        return bool(within)

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
        return Decoded(
            choices=choices,
            score=self.gate_scores.log_probability(choices),
            latency_ms=self.table.predict_ms(self.space.architecture(choices)),
        )


def _costs(spec: OpSpec, table: LatencyTable) -> Vector:
    """Score 0, latency in ms, parameters and MACs of one operation."""
    return np.array([0.0, table.op_ms(spec), count_params(spec), count_macs(spec)])


@contextmanager
def _quiet_stdout() -> Iterator[None]:
    """HiGHS 1.12 (scipy 1.17) prints a debugging line to the process's stdout now and then.

    stdout belongs to the results of commands, so it goes nowhere while HiGHS runs.
    """
    sys.stdout.flush()
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    try:
        yield
    finally:
        ctypes.CDLL(None).fflush(None)  # what C still buffers must not surface later
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)
