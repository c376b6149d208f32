"""The records of a run: one line of metrics per epoch."""

from pathlib import Path
from typing import Literal, get_args

from pydantic import Field, FiniteFloat

from quadranas.errors import QuadranasError
from quadranas.files import parse_json
from quadranas.validation import Strict

PhaseName = Literal["warmup", "search", "finetune", "train", "resolution"]
PHASES: tuple[str, ...] = get_args(PhaseName)
"""The phases of a run, in their order."""


class Epoch(Strict):
    """One line of `metrics.jsonl`; values that a phase does not measure are None.

    Args:
        phase: phase of the run.
        epoch: index of the epoch in the phase, from 1; of the stage in the phase `resolution`.
        step: number of weight steps of the phase that are done.
        learning_rate: learning rate of the weights in the last step.
        loss: mean loss on the images of the weight steps.
        accuracy: accuracy on these images, from 0 to 1.
        val_loss: mean loss on the held-out training images, at the end of the epoch.
        val_accuracy: accuracy on these images, from 0 to 1.
        gate_loss: mean loss on the images of the architecture steps.
        gate_accuracy: accuracy on these images, from 0 to 1.
        expected_ms: expected latency of the supernet under its gates.
        budget_ms: the latency budget.
        budget_use: the largest expected latency on any device as a fraction of the budget there;
            recorded if there are budgets on several devices.
        entropy: mean entropy of the gates, as a fraction of the maximum.
        skip_rate: mean probability that an optional block is skipped, from 0 to 1.
        latency_weight: weight of the latency term in the loss.
        resolution: image size in pixels, in the phase `resolution`.
    """

    phase: PhaseName
    epoch: int = Field(ge=1)
    step: int | None = None
    learning_rate: float | None = None
    loss: float | None = None
    accuracy: float | None = None
    val_loss: float | None = None
    val_accuracy: float | None = None
    gate_loss: float | None = None
    gate_accuracy: float | None = None
    expected_ms: float | None = None
    budget_ms: FiniteFloat | None = Field(default=None, gt=0)
    budget_use: float | None = None
    entropy: float | None = None
    skip_rate: float | None = None
    latency_weight: float | None = None
    resolution: int | None = Field(default=None, ge=1)


Metrics = dict[str, float | str | int | None]


def read_epochs(path: Path) -> tuple[tuple[Epoch, ...], int]:
    """The epochs in order, and the number of other lines; the last line of an epoch counts.

    Raises:
        QuadranasError: the file cannot be read.
    """
    try:
        text = path.read_bytes().decode("utf-8", "replace")
    except OSError as error:
        raise QuadranasError(f"cannot read {path}: {error.strerror or error}") from error
    epochs: dict[tuple[str, int], Epoch] = {}
    dropped = 0
    for line in filter(str.strip, text.split("\n")):
        try:
            epoch = Epoch.model_validate(parse_json(line))
        except ValueError:
            dropped += 1
        else:
            epochs[epoch.phase, epoch.epoch] = epoch
    ordered = sorted(epochs.values(), key=lambda e: (PHASES.index(e.phase), e.epoch))
    return tuple(ordered), dropped
