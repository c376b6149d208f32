"""The controllers that hold the expected latencies at their budgets."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

MEMORY = 0.999
"""Decay per step of the recorded size of the task gradient: the beta2 of the gates' Adam."""

MAX_GROWTH = 1.5
"""Limit of a task gradient's size, as a multiple of the recorded one. Without it an outlier would
move the expected latency away from the budget."""

MIN_TASK_SIZE = 1e-5
"""Lower limit of the recorded size. It is far above the epsilon of the gates' Adam, so the latency
term can move the gates even without a task gradient."""


@dataclass
class BudgetController:
    """The weight of the latency term, by dual ascent on the violation `log(E[latency] / budget)`.

    The latency gradient is scaled to the size of the task gradient, so a weight of 1 means equal
    influence, independent of the loss, the batch and the unit of the budget. The multiplier
    integrates the violation; a proportional part damps it (an augmented Lagrangian). A supernet
    that is too fast gets a negative weight, which raises its latency to the budget.

    Adam divides by the size of past gradients, which requires four safeguards:

    - The sum of both gradients is divided by a weight above 1. Otherwise large gradients far from
      the budget would reduce the steps that follow.
    - The multiplier changes by at most `rate` per step and stays within `limit`.
    - The latency gradient is scaled to the largest task gradient within Adam's memory. Otherwise
      it would vanish together with the task gradient.
    - A task gradient above `MAX_GROWTH` times that size is scaled down.

    Args:
        budget_ms: the latency to hold, in milliseconds.
        rate: maximum change of the multiplier per step.
        damping: factor of the proportional part; 50 gives a weight of 1 at a violation of 2 %.
        limit: maximum magnitude of the multiplier.
        multiplier: the integrated violation.
        task_size: the recorded size (norm) of the task gradient.
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
        """The gradient for one budget alone; see `combine`."""
        return combine([self], task, [latency], [expected_ms])

    def advance(self, expected_ms: float, lowest: float) -> None:
        """One step of the multiplier, which stays between `lowest` and `limit`."""
        # Without the clipping, the violations on a long way to the budget would add up to a
        # multiplier that overshoots it (integral wind-up).
        step = self.rate * _clipped(self.damping * self.violation(expected_ms), -1.0, 1.0)
        self.multiplier = _clipped(self.multiplier + step, lowest, self.limit)

    def limited(self, task: Tensor) -> Tensor:
        """The task gradient, scaled down if it is an outlier; updates the recorded size."""
        size = float(task.norm())
        if self.task_size and size > MAX_GROWTH * self.task_size:
            task = task * (MAX_GROWTH * self.task_size / size)
            size = MAX_GROWTH * self.task_size
        self.task_size = max(size, MEMORY * self.task_size, MIN_TASK_SIZE)
        return task


def latency_weights(
    controllers: Sequence[BudgetController], expected_ms: Sequence[float]
) -> list[float]:
    """The weights of the latency terms.

    Several budgets cannot all be met exactly. The tightest, whose expected latency is largest
    relative to it, is held from both sides as a single one is. The others only push towards faster
    networks: their weights are at least 0, and vanish if they are kept anyway (complementary
    slackness).
    """
    tightest = _tightest(controllers, expected_ms)
    return [
        controller.weight(ms)
        if number == tightest
        else max(controller.weight(ms) - min(controller.multiplier, 0.0), 0.0)
        for number, (controller, ms) in enumerate(zip(controllers, expected_ms, strict=True))
    ]


def combine(
    controllers: Sequence[BudgetController],
    task: Tensor,
    latencies: Sequence[Tensor],
    expected_ms: Sequence[float],
) -> Tensor:
    """The gradient of the whole loss in alpha, up to scale; advances the multipliers.

    Args:
        controllers: one per budget; the first records the size of the task gradient.
        task: gradient of the cross-entropy, (num_gates, width).
        latencies: per budget the gradient of `log(E/budget)`, the same shape.
        expected_ms: per budget E, in milliseconds.
    """
    weights = latency_weights(controllers, expected_ms)
    tightest = _tightest(controllers, expected_ms)
    for number, (controller, ms) in enumerate(zip(controllers, expected_ms, strict=True)):
        controller.advance(ms, -controller.limit if number == tightest else 0.0)
    total = task = controllers[0].limited(task)
    size = 0.0
    for weight, latency in zip(weights, latencies, strict=True):
        latency_size = float(latency.norm())
        if latency_size > 0.0:  # otherwise no gate changes the latency
            total = total + weight * (latency * (controllers[0].task_size / latency_size))
            size += abs(weight)
    return total / max(1.0, size)


def _tightest(controllers: Sequence[BudgetController], expected_ms: Sequence[float]) -> int:
    violations = [c.violation(ms) for c, ms in zip(controllers, expected_ms, strict=True)]
    return violations.index(max(violations))


def _clipped(value: float, lowest: float, highest: float) -> float:
    return max(lowest, min(highest, value))
