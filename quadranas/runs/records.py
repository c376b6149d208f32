"""The records of a run: lines of metrics, and its result."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat


class Epoch(BaseModel):
    """One line of `metrics.jsonl`; null is what a phase does not measure."""

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


class Result(BaseModel):
    """What is shown of `result.json`."""

    device: str | None = None
    budget_ms: FiniteFloat | None = Field(default=None, gt=0)
    predicted_ms: FiniteFloat | None = None
    measured_ms: FiniteFloat | None = None
    accuracy: FiniteFloat | None = None
    params: int | None = None
    macs: int | None = None

    model_config = ConfigDict(extra="allow")


Metrics = dict[str, float | str | int | None]
