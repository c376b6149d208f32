"""The resumable training loop: steps, epochs, metrics, checkpoints."""

import math
import time
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from quadranas.errors import QuadranasError
from quadranas.inspection.records import StepRecord
from quadranas.reporter import Reporter
from quadranas.runs.records import Metrics
from quadranas.runs.run_folder import RunFolder
from quadranas.training.curves import Curves


class Phase(Protocol):
    """A part of a training that `run_phase` drives, one step at a time.

    A step must depend only on the phase's state and the step's number, so that a resumed run is
    bit-identical to an uninterrupted one.
    """

    name: str
    num_steps: int
    steps_per_epoch: int
    is_inspected: bool

    def step(self, number: int) -> Mapping[str, float]:
        """Do one step; returns values to average over the epoch."""

    def epoch_metrics(self, epoch: int) -> Metrics:
        """The other values of an epoch's line of metrics; epochs count from 0."""

    def inspection(self) -> StepRecord | None:
        """The record of the layers in the epoch's last step; None without an inspection."""

    def alarms(self, metrics: Metrics) -> Iterable[str]:
        """Warnings about an epoch; usually empty."""

    def state(self) -> dict[str, Any]:
        """Tensors and plain values for a checkpoint."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """The reverse of `state`."""


def run_phase(
    phase: Phase,
    folder: RunFolder,
    reporter: Reporter,
    checkpoint: Mapping[str, Any] | None,
    *,
    checkpoint_seconds: float,
    num_metrics: int = 0,
    later_steps: int = 0,
) -> int:
    """Run a phase from its start or from one of its checkpoints; write a checkpoint at the end.

    Args:
        num_metrics: number of lines in `metrics.jsonl` when the phase began.
        later_steps: number of steps of the phases that follow.

    Returns: the number of lines in `metrics.jsonl` at the end.
    """
    first, sums = 0, _Means()
    if checkpoint is not None:
        first, num_metrics, sums = _restored(phase, folder, checkpoint)
    # Lines written after the checkpoint belong to steps that are repeated.
    folder.keep_metrics(num_metrics)
    if phase.is_inspected:
        folder.keep_inspections(first // phase.steps_per_epoch)
    handle = reporter.phase(phase.name, phase.num_steps, first, later_steps)
    saved_at = time.monotonic()
    with Curves(folder, num_metrics) as curves:
        for done in range(first + 1, phase.num_steps + 1):
            sums.add(phase.step(done - 1))
            reporter.advance(handle, done)
            if done % phase.steps_per_epoch == 0:
                num_metrics += 1
                metrics = _end_epoch(phase, folder, curves, done, sums.take(), num_metrics)
                reporter.epoch(handle, metrics)
                for text in phase.alarms(metrics):
                    reporter.warning(text)
            if done == phase.num_steps or time.monotonic() - saved_at >= checkpoint_seconds:
                counted = {"step": done, "num_metrics": num_metrics, **sums.content()}
                folder.save_checkpoint({"phase": phase.name, **counted, "state": phase.state()})
                saved_at = time.monotonic()
    return num_metrics


def _restored(
    phase: Phase, folder: RunFolder, checkpoint: Mapping[str, Any]
) -> "tuple[int, int, _Means]":
    """Put a phase in the state of a checkpoint.

    Returns: the number of steps done, that of lines in `metrics.jsonl`, and the current averages.

    Raises:
        QuadranasError: it is the checkpoint of another network or another version.
    """
    try:
        phase.restore(checkpoint["state"])
        sums = _Means(dict(checkpoint["sums"]), dict(checkpoint["counts"]))
        return int(checkpoint["step"]), int(checkpoint["num_metrics"]), sums
    except (LookupError, RuntimeError, TypeError, ValueError, AttributeError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise QuadranasError(
            f"the newest checkpoint in {folder.checkpoints} does not fit the run: {reason[0]}",
            "Delete it to continue from the one before, or start a new run with another --output.",
        ) from error


def _end_epoch(
    phase: Phase,
    folder: RunFolder,
    curves: Curves,
    done: int,
    means: Mapping[str, float],
    number: int,
) -> Metrics:
    """Write the metrics and the inspection of an epoch; `number` is that of its line."""
    epoch = done // phase.steps_per_epoch - 1
    metrics: Metrics = {**phase.epoch_metrics(epoch), "step": done, **means}
    folder.append_metrics(metrics)
    curves.add_metrics(metrics, number)
    record = phase.inspection()
    if record is not None:
        folder.append_inspection(record)
        curves.add_record(record, number)
    return metrics


class _Means:
    """Averages of the values that the steps of the current epoch returned."""

    def __init__(
        self, sums: dict[str, float] | None = None, counts: dict[str, int] | None = None
    ) -> None:
        self.sums, self.counts = sums or {}, counts or {}

    def content(self) -> dict[str, Any]:
        """The sums for a checkpoint in the middle of an epoch."""
        return {"sums": self.sums, "counts": self.counts}

    def add(self, values: Mapping[str, float]) -> None:
        for key, value in values.items():
            if not math.isfinite(value):
                raise QuadranasError(
                    f"training diverged: {key} is {value}",
                    "Lower weights.learning_rate in a --config file, and start a new run.",
                )
            self.sums[key] = self.sums.get(key, 0.0) + value
            self.counts[key] = self.counts.get(key, 0) + 1

    def take(self) -> dict[str, float]:
        means = {key: total / self.counts[key] for key, total in self.sums.items()}
        self.sums, self.counts = {}, {}
        return means
