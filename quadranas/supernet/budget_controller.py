"""Latency in the loss: the expectation, and the controller that holds it at the budget."""

import math
from dataclasses import dataclass

from torch import Tensor

MEMORY = 0.999
"""Of the task gradient's size, per step: the beta2 of the gates' Adam."""

MAX_GROWTH = 1.5
"""Of the task gradient's size over its largest: an outlier would throw E off the budget."""

MIN_TASK_SIZE = 1e-5
"""Far above the epsilon of the gates' Adam: latency alone can still move them."""


@dataclass
class BudgetController:
    """Dual ascent on `log(E[latency] / budget)`: the weight of the latency term.

    The latency gradient is brought to the size of the task gradient, so a weight of 1 means equal
    say, whatever the loss, the batch and the unit of the budget. The multiplier integrates the
    violation; the proportional part damps it (an augmented Lagrangian). Negative weights pull a
    too fast supernet up to its budget.

    Four guards, because Adam divides by the size of past gradients: the sum of both gradients is
    divided by a weight above 1, so that a long way to the budget does not dampen what comes after;
    the multiplier moves by `rate` at most and stays within `limit`; the size to match is the
    largest task gradient within Adam's memory, so that one that fades does not take the
    latency term with it; and a task gradient beyond `MAX_GROWTH` of that is scaled down to it.

    Args:
        rate: of the multiplier per step, where the proportional part is 1 or more.
        damping: of the proportional part; 50 reaches a weight of 1 at a violation of 2 %.
        limit: of the multiplier, either way.
    """

    budget_ms: float
    rate: float = 0.025
    damping: float = 50.0
    limit: float = 4.0
    multiplier: float = 0.0
    task_size: float = 0.0

    def violation(self, expected_ms: float) -> float:
        """`log(E/budget)`: positive above the budget."""
        return math.log(expected_ms / self.budget_ms)

    def weight(self, expected_ms: float) -> float:
        """The weight of the latency term at an expected latency."""
        return self.multiplier + self.damping * self.violation(expected_ms)

    def combine(self, task: Tensor, latency: Tensor, expected_ms: float) -> Tensor:
        """The gradient of the whole loss in alpha, up to scale; advances the multiplier.

        Args:
            task: gradient of the cross-entropy, (num_gates, width).
            latency: gradient of `log(E/budget)`, the same shape.
        """
        weight = self.weight(expected_ms)
        step = self.rate * _clipped(self.damping * self.violation(expected_ms), 1.0)
        self.multiplier = _clipped(self.multiplier + step, self.limit)
        task = self._tamed(task)
        latency_size = float(latency.norm())
        if latency_size == 0.0:
            return task
        scaled = latency * (self.task_size / latency_size)
        return (task + weight * scaled) / max(1.0, abs(weight))

    def _tamed(self, task: Tensor) -> Tensor:
        """The task gradient without its outliers; keeps account of its size."""
        size = float(task.norm())
        if self.task_size and size > MAX_GROWTH * self.task_size:
            task = task * (MAX_GROWTH * self.task_size / size)
            size = MAX_GROWTH * self.task_size
        self.task_size = max(size, MEMORY * self.task_size, MIN_TASK_SIZE)
        return task


def _clipped(value: float, limit: float) -> float:
    return max(-limit, min(limit, value))
