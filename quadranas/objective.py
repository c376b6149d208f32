"""Latency in the loss: the expectation, and the controller that holds it at the budget."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from quadranas.gates import KEEP, Gates
from quadranas.latency.table import LatencyTable
from quadranas.space import SearchSpace


class ExpectedLatency:
    """Expected latency of a supernet under its gates, differentiable in their probabilities.

    `E = fixed + sum over gates of p_on * sum_j p_j t_j`, where p_on is the probability that the
    gate's block is kept (DARTS-style expectation of ProxylessNAS, arXiv:1812.00332, Eq. (6), with
    the depth gate factored out).

    Args:
        table: prices every candidate of the space, in milliseconds at batch 1.
    """

    def __init__(self, space: SearchSpace, gates: Gates, table: LatencyTable) -> None:
        table.require(space.specs())
        rows = {(info.block, info.slot): row for row, info in enumerate(gates.infos)}
        self.costs_ms = torch.zeros_like(gates.alpha, requires_grad=False)
        self.depth_row = torch.full((len(gates.infos),), -1)
        fixed = table.header.null_ms
        for block in space.blocks:
            depth = rows.get((block.name, None))
            for index, slot in enumerate(block.slots):
                costs = [table.op_ms(candidate) for candidate in slot.candidates]
                row = rows.get((block.name, index))
                if row is not None:
                    self.costs_ms[row, : len(costs)] = torch.tensor(costs, dtype=torch.float64)
                    self.depth_row[row] = -1 if depth is None else depth
                elif depth is not None:
                    self.costs_ms[depth, KEEP] += costs[0]
                else:
                    fixed += costs[0]
        self.fixed_ms = fixed

    def __call__(self, probabilities: Tensor) -> Tensor:
        """Milliseconds, a scalar.

        Args:
            probabilities: shape (num_gates, width), rows summing to 1.
        """
        per_gate = (probabilities * self.costs_ms).sum(1)
        kept = probabilities[self.depth_row.clamp(min=0), KEEP] if len(per_gate) else per_gate
        return self.fixed_ms + (torch.where(self.depth_row >= 0, kept, 1.0) * per_gate).sum()


@dataclass
class BudgetController:
    """Dual ascent on `log(E[latency] / budget)`: the weight of the latency term.

    The term's gradient is brought to the size of the task gradient (a running mean of it), so a
    weight of 1 means equal say, whatever the loss, the batch and the unit of the budget. The
    multiplier integrates the violation; the proportional part damps it (an augmented Lagrangian).
    Negative weights pull a too fast supernet up to its budget.

    Args:
        rate: of the multiplier, per step and unit of violation.
        damping: of the proportional part.
    """

    budget_ms: float
    rate: float = 0.2
    damping: float = 10.0
    multiplier: float = 0.0
    task_size: float = 0.0

    def violation(self, expected_ms: float) -> float:
        """`log(E/budget)`: positive above the budget."""
        return math.log(expected_ms / self.budget_ms)

    def weight(self, expected_ms: float) -> float:
        """The weight of the latency term at an expected latency."""
        return self.multiplier + self.damping * self.violation(expected_ms)

    def combine(self, task: Tensor, latency: Tensor, expected_ms: float) -> Tensor:
        """The gradient of the whole loss in alpha; advances the multiplier by one step.

        Args:
            task: gradient of the cross-entropy, (num_gates, width).
            latency: gradient of `log(E/budget)`, the same shape.
        """
        size = float(task.norm())
        self.task_size = 0.9 * self.task_size + 0.1 * size if self.task_size else size
        latency_size = float(latency.norm())
        weight = self.weight(expected_ms)
        self.multiplier += self.rate * self.violation(expected_ms)
        if latency_size == 0.0:
            return task
        return task + weight * (max(self.task_size, 1e-12) / latency_size) * latency
