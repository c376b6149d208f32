"""Exact decoding: the most probable architecture under a latency budget.

Departure from ProxylessNAS (arXiv:1812.00332), which takes every gate's argmax and hopes: the
choice is the optimum of an integer programme, solved by HiGHS, so that the budget is a constraint.
"""

import ctypes
import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.optimize import Bounds, LinearConstraint, milp

from quadranas.errors import BudgetError, QuadranasError
from quadranas.files import read_json, validate, write_json
from quadranas.latency.budget import format_ms, parse_budget
from quadranas.latency.table import LatencyTable
from quadranas.space.architecture import Frozen, OpSpec
from quadranas.space.cost import count_macs, count_params
from quadranas.space.search_space import SKIPPED, Choices, SearchSpace

MIN_USE = 0.9
"""The share of the budget that a decoded network uses, where the space allows it."""

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


class BlockScores(Frozen):
    """Log-probabilities of one block's gates.

    Args:
        keep, skip: of the depth gate; 0 and none for a block that is always there.
        slots: per slot, per candidate.
    """

    keep: float = 0.0
    skip: float | None = None
    slots: tuple[tuple[float, ...], ...]


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
        total = 0.0
        for name, block in self.blocks.items():
            choice = choices[name]
            if choice is SKIPPED:
                assert block.skip is not None, name
                total += block.skip
            else:
                picked = zip(block.slots, choice, strict=True)
                total += block.keep + sum(scores[index] for scores, index in picked)
        return total


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
        gap: 0 where the score is proven to be the best. Otherwise HiGHS stopped after `MAX_NODES`
            nodes, and no network's score is better by more than this share.
    """

    choices: dict[str, tuple[int, ...] | None]
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
        raise _too_tight(space, limits)
    best = programme.solve(programme.scores, limits.min_use * slowest)
    assert best is not None, "the slowest network is within the bounds"
    return best


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
