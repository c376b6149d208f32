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
from quadranas.training.curves import open_curves, write_curves, write_histograms


class Phase(Protocol):
    """A stretch of training that `run_phase` drives, one step at a time.

    A step must be a function of the phase's state and the step's number alone, so that continuing
    from a checkpoint repeats what would have happened.
    """

    name: str
    num_steps: int
    steps_per_epoch: int

    def step(self, number: int) -> Mapping[str, float]:
        """Do one step; what it returns is averaged over the epoch."""

    def epoch_metrics(self, epoch: int) -> Metrics:
        """What an epoch's line of metrics holds besides the averages; epochs count from 0."""

    def inspection(self) -> StepRecord | None:
        """What was recorded of the layers in the epoch's last step, where that was asked for."""

    def alarms(self, metrics: Metrics) -> Iterable[str]:
        """What is wrong with an epoch, in words; nothing usually."""

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
) -> int:
    """Run a phase from its start or from a checkpoint of it; it ends with a checkpoint.

    Args:
        num_metrics: lines in `metrics.jsonl` when the phase began.

    Returns: lines in `metrics.jsonl` now.
    """
    first, sums = 0, _Means()
    if checkpoint is not None:
        phase.restore(checkpoint["state"])
        first, num_metrics = checkpoint["step"], checkpoint["num_metrics"]
        sums = _Means(dict(checkpoint["sums"]), dict(checkpoint["counts"]))
    folder.keep_metrics(num_metrics)
    folder.keep_inspections(first // phase.steps_per_epoch)
    handle = reporter.phase(phase.name, phase.num_steps, first)
    saved_at = started_at = time.monotonic()
    with open_curves(folder, num_metrics) as writer:
        for number in range(first, phase.num_steps):
            sums.add(phase.step(number))
            done = number + 1
            reporter.advance(handle, done)
            if done % phase.steps_per_epoch == 0:
                epoch = number // phase.steps_per_epoch
                metrics = {**phase.epoch_metrics(epoch), "step": done, **sums.take()}
                folder.append_metrics(metrics)
                num_metrics += 1
                write_curves(writer, metrics, num_metrics)
                record = phase.inspection()
                if record is not None:
                    folder.append_inspection(record)
                    write_histograms(writer, record, num_metrics)
                pace = (time.monotonic() - started_at) / (done - first)
                reporter.epoch(handle, metrics, pace * (phase.num_steps - done))
                for text in phase.alarms(metrics):
                    reporter.warning(text)
            if done == phase.num_steps or time.monotonic() - saved_at >= checkpoint_seconds:
                folder.save_checkpoint(
                    {
                        "phase": phase.name,
                        "step": done,
                        "num_metrics": num_metrics,
                        "sums": sums.sums,
                        "counts": sums.counts,
                        "state": phase.state(),
                    },
                )
                saved_at = time.monotonic()
    return num_metrics


class _Means:
    """Averages of what the steps of the current epoch returned."""

    def __init__(
        self, sums: dict[str, float] | None = None, counts: dict[str, int] | None = None
    ) -> None:
        self.sums, self.counts = sums or {}, counts or {}

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
