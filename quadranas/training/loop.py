"""The resumable training loop: steps, epochs, metrics, checkpoints."""

import math
import time
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from quadranas.acceleration.accelerator import widest
from quadranas.acceleration.engine import Engine
from quadranas.acceleration.processes import Processes
from quadranas.errors import QuadranasError
from quadranas.inspection.records import StepRecord
from quadranas.reporter import Reporter
from quadranas.runs.records import Metrics
from quadranas.runs.run_folder import RunFolder
from quadranas.training.curves import Curves
from quadranas.training.tracking import Tracker


class Phase(Protocol):
    """A part of a training that `run_phase` drives, one step at a time.

    A step must depend only on the phase's state and the step's number, so that a resumed run is
    bit-identical to an uninterrupted one. With several processes, each runs the phase, and all
    have the same state.
    """

    engine: Engine
    name: str
    num_steps: int
    steps_per_epoch: int
    is_inspected: bool

    def step(self, number: int) -> Mapping[str, Tensor]:
        """Do one step.

        Returns: scalars on the accelerator, to average over the epoch; with several processes,
        the parts that this one contributes.
        """

    def epoch_metrics(self, epoch: int) -> Metrics:
        """The other values of an epoch's line of metrics; epochs count from 0."""

    def validation(self) -> Mapping[str, float]:
        """At the end of an epoch, loss and accuracy on held-out images; empty without any."""

    @property
    def is_over(self) -> bool:
        """Whether the phase ends after this epoch, before its last step."""

    def finish(self) -> None:
        """At the end of the phase, put the final weights into the network."""

    def inspection(self) -> StepRecord | None:
        """The record of the layers in the epoch's last step; None without an inspection."""

    def alarms(self, metrics: Metrics) -> Iterable[str]:
        """Warnings about an epoch; usually empty."""

    def fingerprint(self) -> bytes:
        """What has to be the same in every process."""

    def state(self) -> dict[str, Any]:
        """Tensors and plain values for a checkpoint."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """The reverse of `state`."""


def run_phase(
    phase: Phase,
    folder: RunFolder | None,
    reporter: Reporter,
    checkpoint: Mapping[str, Any] | None,
    *,
    checkpoint_seconds: float,
    num_metrics: int = 0,
    later_steps: int = 0,
    tracker: Tracker | None = None,
) -> int:
    """Run a phase from its start or from one of its checkpoints; write a checkpoint at the end.

    Nothing waits for the accelerator between two epochs or checkpoints.

    Args:
        folder: the run folder; None in a process that does not write.
        num_metrics: number of lines in `metrics.jsonl` when the phase began.
        later_steps: number of steps of the phases that follow.
        tracker: receives the metrics too.

    Returns: the number of lines in `metrics.jsonl` at the end.
    """
    first, sums, processes = 0, _Means(phase.engine.processes), phase.engine.processes
    if checkpoint is not None:
        first, num_metrics = _restored(phase, sums, folder, checkpoint)
    handle = reporter.phase(phase.name, phase.num_steps, first, later_steps)
    saved_at = time.monotonic()
    done = first
    with _Records(phase, folder, first, num_metrics) as records:
        while done < phase.num_steps and not phase.is_over:
            done += 1
            sums.add(phase.step(done - 1))
            reporter.advance(handle, done)
            if done % phase.steps_per_epoch == 0:
                num_metrics += 1
                metrics = records.end_epoch(done, sums.take(), num_metrics)
                reporter.epoch(handle, metrics)
                if tracker is not None:
                    tracker.add_metrics(metrics, num_metrics)
                _warn(reporter, phase.alarms(metrics))
            is_last = done == phase.num_steps or phase.is_over
            if is_last or processes.decided(time.monotonic() - saved_at >= checkpoint_seconds):
                records.save({"step": done, "num_metrics": num_metrics, **sums.content()})
                saved_at = time.monotonic()
    if done < phase.num_steps:
        epoch, epochs = (steps // phase.steps_per_epoch for steps in (done, phase.num_steps))
        reporter.message(f"{phase.name}: stopped after epoch {epoch} of {epochs}")
    phase.finish()
    return num_metrics


def _warn(reporter: Reporter, texts: Iterable[str]) -> None:
    for text in texts:
        reporter.warning(text)


def _restored(
    phase: Phase, sums: "_Means", folder: RunFolder | None, checkpoint: Mapping[str, Any]
) -> tuple[int, int]:
    """Put a phase in the state of a checkpoint.

    Args:
        sums: receives the sums of the epoch that the checkpoint interrupts.

    Returns: the number of steps done, and that of lines in `metrics.jsonl`.

    Raises:
        QuadranasError: it is the checkpoint of another network or another version.
    """
    try:
        phase.restore(checkpoint["state"])
        sums.restore(dict(checkpoint["sums"]), dict(checkpoint["counts"]))
        return int(checkpoint["step"]), int(checkpoint["num_metrics"])
    except (LookupError, RuntimeError, TypeError, ValueError, AttributeError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise QuadranasError(
            f"the newest checkpoint{_in(folder)} does not fit the run: {reason[0]}",
            "Delete it to continue from the one before, or start a new run with another --output.",
        ) from error


def _in(folder: RunFolder | None) -> str:
    return f" in {folder.checkpoints}" if folder else ""


class _Records:
    """What a phase writes into the run folder: metrics, curves, inspections and checkpoints.

    Args:
        folder: None to write nothing.
        first: number of steps done before.
        num_metrics: number of lines in `metrics.jsonl`; later ones belong to steps that are
            repeated, and are dropped.
    """

    def __init__(
        self, phase: Phase, folder: RunFolder | None, first: int, num_metrics: int
    ) -> None:
        self.phase, self.folder = phase, folder
        self._open = ExitStack()
        if folder is not None:
            folder.keep_metrics(num_metrics)
            if phase.is_inspected:
                folder.keep_inspections(first // phase.steps_per_epoch)
            self.curves = self._open.enter_context(Curves(folder, num_metrics))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        self._open.__exit__(*error)

    def end_epoch(self, done: int, means: Mapping[str, float], number: int) -> Metrics:
        """Write the metrics and the inspection of an epoch; `number` is that of its line.

        Raises:
            QuadranasError: the processes no longer hold the same network.
        """
        phase, processes = self.phase, self.phase.engine.processes
        if not processes.is_alone:
            processes.require_equal(
                f"the state of the phase {phase.name}",
                phase.fingerprint(),
                "This is a fault of the hardware or of quadranas; continue from the last "
                "checkpoint with --resume.",
            )
        epoch = done // phase.steps_per_epoch - 1
        metrics: Metrics = {**phase.epoch_metrics(epoch), "step": done, **means}
        metrics |= phase.validation()
        record = phase.inspection()
        if self.folder is not None:
            self.folder.append_metrics(metrics)
            self.curves.add_metrics(metrics, number)
            if record is not None:
                self.folder.append_inspection(record)
                self.curves.add_record(record, number)
        return metrics

    def save(self, counted: Mapping[str, Any]) -> None:
        """Write a checkpoint."""
        if self.folder is not None:
            state = {"phase": self.phase.name, **counted, "state": self.phase.state()}
            self.folder.save_checkpoint(_on_processor(state))


def _on_processor(value: Any) -> Any:
    """The content of a checkpoint with its tensors on the processor, for any machine."""
    if isinstance(value, Tensor):
        return value.cpu()
    if isinstance(value, Mapping):
        return {key: _on_processor(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_on_processor, value))
    return value


class _Means:
    """Averages of the values that the steps of the current epoch returned.

    They are summed on the accelerator, and read at the end of an epoch and for a checkpoint.
    """

    def __init__(self, processes: Processes) -> None:
        self.processes = processes
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    def restore(self, sums: Mapping[str, float], counts: Mapping[str, int]) -> None:
        """Continue in the middle of an epoch; the main process holds the sums of all."""
        share = float(self.processes.is_main)
        self.sums = {
            key: torch.tensor(value * share, dtype=torch.float64) for key, value in sums.items()
        }
        self.counts = dict(counts)

    def content(self) -> dict[str, Any]:
        """The sums for a checkpoint in the middle of an epoch."""
        return {"sums": self._read(), "counts": dict(self.counts)}

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Add the values of a step."""
        for key, value in values.items():
            value = value.to(widest(value.device))
            self.sums[key] = value + self.sums[key].to(value) if key in self.sums else value
            self.counts[key] = self.counts.get(key, 0) + 1

    def take(self) -> dict[str, float]:
        """The averages of the epoch that ends."""
        means = {key: total / self.counts[key] for key, total in self._read().items()}
        self.sums, self.counts = {}, {}
        return means

    def _read(self) -> dict[str, float]:
        """The sums over all processes.

        Raises:
            QuadranasError: one of them is not finite.
        """
        if not self.sums:
            return {}
        totals = torch.stack(list(self.sums.values()))
        self.processes.add_up([totals])
        found = dict(zip(self.sums, totals.cpu().tolist(), strict=True))
        for key, value in found.items():
            if not math.isfinite(value):
                raise QuadranasError(
                    f"training diverged: {key} is {value}",
                    "Lower weights.learning_rate in a --config file, and start a new run.",
                )
        return found
