"""The resumable loop by itself, with a phase of a few numbers in place of a network."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from quadranas.acceleration.engine import Engine
from quadranas.errors import QuadranasError
from quadranas.reporter import Reporter
from quadranas.runs.records import Metrics
from quadranas.runs.run_folder import RunFolder
from quadranas.training.loop import run_phase

NUM_STEPS, STEPS_PER_EPOCH = 6, 3


class Told(Reporter):
    """Keeps the warnings and the numbers of finished steps."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.warnings: list[str] = []
        self.messages: list[str] = []
        self.done: list[int] = []

    def warning(self, text: str) -> None:
        self.warnings.append(text)

    def message(self, text: str) -> None:
        self.messages.append(text)

    def advance(self, phase: int, done: int) -> None:
        self.done.append(done)


class CountingPhase:
    """Its state is a sum of the steps' numbers; it can be stopped before a step, or diverge."""

    engine = Engine()
    name = "count"
    num_steps = NUM_STEPS
    steps_per_epoch = STEPS_PER_EPOCH
    is_inspected = False

    def __init__(
        self, *, stop: int | None = None, diverge: int | None = None, patience: int | None = None
    ) -> None:
        self.total = torch.zeros(())
        self.num_validations, self.patience, self.num_finished = 0, patience, 0
        self.stop, self.diverge = stop, diverge
        self.steps: list[int] = []

    def step(self, number: int) -> Mapping[str, Tensor]:
        if number == self.stop:
            raise KeyboardInterrupt
        self.steps.append(number)
        self.total = self.total + number
        means = {"loss": self.total}
        if number == self.diverge:
            means["loss"] = torch.tensor(float("inf"))
        return means | ({"gate_loss": torch.tensor(number)} if number % 2 else {})

    def epoch_metrics(self, epoch: int) -> Metrics:
        return {"phase": self.name, "epoch": epoch + 1}

    @property
    def is_over(self) -> bool:
        return self.num_validations == self.patience

    def validation(self) -> Mapping[str, float]:
        self.num_validations += 1
        return {"val_loss": float(self.total)}

    def finish(self) -> None:
        self.num_finished += 1

    def inspection(self) -> None:
        return None

    def alarms(self, metrics: Metrics) -> Iterable[str]:
        if metrics["epoch"] == 2:
            yield f"loss is {metrics['loss']}"

    def fingerprint(self) -> bytes:
        return str(float(self.total)).encode()

    def state(self) -> dict[str, Any]:
        return {"total": self.total, "validations": self.num_validations}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.total = state["total"]
        self.num_validations = state["validations"]


def run(
    folder: RunFolder, phase: CountingPhase, reporter: Reporter, *, seconds: float = 0.0
) -> int:
    checkpoint = folder.latest_checkpoint(reporter)
    return run_phase(phase, folder, reporter, checkpoint, checkpoint_seconds=seconds)


def lines(folder: RunFolder) -> list[dict[str, Any]]:
    return [json.loads(line) for line in folder.metrics.read_text("utf-8").splitlines()]


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    made = RunFolder(tmp_path / "run")
    made.create(0, {})
    return made


def test_every_step_is_done_once_and_every_epoch_is_averaged(folder: RunFolder) -> None:
    phase, reporter = CountingPhase(), Told()
    assert run(folder, phase, reporter) == 2
    assert phase.steps == list(range(NUM_STEPS))
    assert reporter.done == list(range(1, NUM_STEPS + 1))
    assert reporter.warnings == [f"loss is {(6 + 10 + 15) / 3}"]
    assert lines(folder) == [
        {
            **{"phase": "count", "epoch": 1, "step": 3, "loss": (0 + 1 + 3) / 3},
            **{"gate_loss": 1.0, "val_loss": 3.0},
        },
        {
            **{"phase": "count", "epoch": 2, "step": 6, "loss": (6 + 10 + 15) / 3},
            **{"gate_loss": 4.0, "val_loss": 15.0},
        },
    ]
    assert phase.num_finished == 1


def test_the_last_checkpoint_holds_the_end(folder: RunFolder) -> None:
    run(folder, CountingPhase(), Told(), seconds=1000)
    (path,) = folder.checkpoints.iterdir()
    checkpoint = torch.load(path, weights_only=True)
    assert checkpoint["phase"] == "count"
    assert (checkpoint["step"], checkpoint["num_metrics"]) == (NUM_STEPS, 2)
    assert (checkpoint["sums"], checkpoint["counts"]) == ({}, {})
    assert float(checkpoint["state"]["total"]) == 15.0


@pytest.mark.parametrize("stop", range(NUM_STEPS))
@pytest.mark.parametrize("seconds", [0.0, 1000.0])
def test_resumed_anywhere_it_ends_like_an_uninterrupted_one(
    folder: RunFolder, tmp_path: Path, stop: int, seconds: float
) -> None:
    whole = RunFolder(tmp_path / "whole")
    whole.create(0, {})
    run(whole, CountingPhase(), Told())
    with pytest.raises(KeyboardInterrupt):
        run(folder, CountingPhase(stop=stop), Told(), seconds=seconds)
    resumed = CountingPhase()
    assert run(folder, resumed, Told(), seconds=seconds) == 2
    # Without a checkpoint all steps are repeated, and the lines of metrics written before go.
    assert resumed.steps == list(range(stop if seconds == 0 else 0, NUM_STEPS))
    assert float(resumed.total) == 15.0
    assert folder.metrics.read_bytes() == whole.metrics.read_bytes()


def test_a_finished_phase_does_nothing_more(folder: RunFolder) -> None:
    run(folder, CountingPhase(), Told())
    before = folder.metrics.read_bytes()
    again = CountingPhase()
    assert run(folder, again, Told()) == 2
    assert again.steps == []
    assert folder.metrics.read_bytes() == before


def test_a_second_phase_appends_its_lines(folder: RunFolder) -> None:
    first = run(folder, CountingPhase(), Told())
    total = run_phase(
        *(CountingPhase(), folder, Told(), None), checkpoint_seconds=0, num_metrics=first
    )
    assert total == 4
    assert [line["epoch"] for line in lines(folder)] == [1, 2, 1, 2]


def test_a_value_that_is_not_finite_stops_the_run(folder: RunFolder) -> None:
    with pytest.raises(QuadranasError, match="training diverged: loss is inf") as caught:
        run(folder, CountingPhase(diverge=4), Told())
    assert "weights.learning_rate" in caught.value.hint
    checkpoint = folder.latest_checkpoint(Told())
    assert checkpoint is not None
    assert checkpoint["step"] == 4
    assert [line["epoch"] for line in lines(folder)] == [1]


def test_a_phase_that_stops_early_ends_with_a_checkpoint_and_stays_ended(
    folder: RunFolder,
) -> None:
    phase, reporter = CountingPhase(patience=1), Told()
    assert run(folder, phase, reporter, seconds=1e9) == 1
    assert (phase.steps, phase.num_finished) == ([0, 1, 2], 1)
    assert reporter.messages[1:] == ["count: stopped after epoch 1 of 2"]
    again = CountingPhase(patience=1)
    assert run(folder, again, reporter) == 1
    assert (again.steps, again.num_finished, again.total) == ([], 1, phase.total)
    assert len(lines(folder)) == 1
