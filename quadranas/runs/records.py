"""The records of a run: one line of metrics per epoch."""

from typing import Literal

from pydantic import Field, FiniteFloat

from quadranas.validation import Strict


class Epoch(Strict):
    """One line of `metrics.jsonl`; values that a phase does not measure are None."""

    phase: Literal["warmup", "search", "finetune", "train"]
    epoch: int = Field(ge=1)
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
