"""The records of a run: one line of metrics per epoch."""

from typing import Literal

from pydantic import Field, FiniteFloat

from quadranas.validation import Strict


class Epoch(Strict):
    """One line of `metrics.jsonl`; values that a phase does not measure are None.

    Args:
        phase: phase of the run.
        epoch: index of the epoch in the phase, from 1.
        step: number of weight steps of the phase that are done.
        learning_rate: learning rate of the weights in the last step.
        loss: mean loss on the images of the weight steps.
        accuracy: accuracy on these images, from 0 to 1.
        gate_loss: mean loss on the images of the architecture steps.
        gate_accuracy: accuracy on these images, from 0 to 1.
        expected_ms: expected latency of the supernet under its gates.
        budget_ms: the latency budget.
        entropy: mean entropy of the gates, as a fraction of the maximum.
        skip_rate: mean probability that an optional block is skipped, from 0 to 1.
        latency_weight: weight of the latency term in the loss.
    """

    phase: Literal["warmup", "search", "finetune", "train"]
    epoch: int = Field(ge=1)
    step: int | None = None
    learning_rate: float | None = None
    loss: float | None = None
    accuracy: float | None = None
    gate_loss: float | None = None
    gate_accuracy: float | None = None
    expected_ms: float | None = None
    budget_ms: FiniteFloat | None = Field(default=None, gt=0)
    entropy: float | None = None
    skip_rate: float | None = None
    latency_weight: float | None = None


Metrics = dict[str, float | str | int | None]
