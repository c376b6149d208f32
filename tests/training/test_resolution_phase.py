"""The last phase of a training, at growing resolutions."""

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from quadranas.cli.console import accuracy_text
from quadranas.commands.evaluate import evaluate
from quadranas.commands.export import export
from quadranas.commands.train import train
from quadranas.data.augmentation import AugmentConfig, Augmenter
from quadranas.data.dataset import load_dataset
from quadranas.data.image_set import ImageSet
from quadranas.errors import QuadranasError, RunInterruptedError
from quadranas.network.skeleton import build_subnet
from quadranas.reporter import Reporter
from quadranas.runs.config import WeightConfig
from quadranas.runs.results import TrainResult
from quadranas.runs.run_folder import RunFolder
from quadranas.space.architecture import Architecture, load_architecture
from quadranas.training.network_phase import NetworkTraining
from quadranas.training.resolution_phase import (
    MIN_BATCH,
    WARMUP_FRACTION,
    Stage,
    images_per_stage,
    plan_stages,
    rate_at,
)


@pytest.mark.parametrize(
    ("trained", "deployed", "sizes"),
    [
        (32, 224, [64, 128, 224]),
        (64, 224, [128, 224]),
        (128, 224, [224]),
        (224, 224, []),
        (256, 224, [224]),
        (32, 1024, [64, 128, 256, 512, 1024]),
    ],
)
def test_resolutions_grow_to_that_of_deployment(
    trained: int, deployed: int, sizes: list[int]
) -> None:
    stages = plan_stages(trained, deployed, stride=32, batch_size=64, num_images=1000)
    assert [stage.resolution for stage in stages] == sizes


def test_a_step_costs_about_as_much_at_every_resolution() -> None:
    stages = plan_stages(32, 224, stride=32, batch_size=256, num_images=1000)
    assert [stage.batch_size for stage in stages] == [64, 16, 5]
    assert [stage.num_steps for stage in stages] == [15, 62, 200]
    (small,) = plan_stages(128, 224, stride=32, batch_size=2, num_images=3)
    assert small == Stage(224, MIN_BATCH, 1)
    assert plan_stages(32, 224, stride=32, batch_size=64, num_images=0) == ()


@pytest.mark.parametrize(
    ("wanted", "available", "used"),
    [(5000, 1438, 1438), (5000, 9000, 5000), (5000, 240, 1000), (300, 240, 300), (0, 240, 0)],
)
def test_few_images_are_used_several_times(wanted: int, available: int, used: int) -> None:
    assert images_per_stage(wanted, available) == used


def test_several_passes_use_every_image_about_as_often(larger: Architecture) -> None:
    dataset = load_dataset(None, resolution=32)
    few = replace(dataset, train=ImageSet(dataset.train.labels[:10], dataset.train.batch))
    training = NetworkTraining(
        *("resolution-64", build_subnet(larger), few, Augmenter.of(few, AugmentConfig())),
        WeightConfig(),
        num_epochs=1,
        num_images=24,
        batch_size=4,
        seed=0,
    )
    assert training.num_steps == 6
    seen = torch.cat([training.batches._part(number)[0] for number in range(6)]).bincount()
    assert seen.tolist() == [3] * 4 + [2] * 6


def test_the_learning_rate_rises_once_and_falls_to_zero_over_all_stages() -> None:
    stages = plan_stages(32, 224, stride=32, batch_size=64, num_images=1000)
    rates = [
        rate_at(stages, index, step)
        for index, stage in enumerate(stages)
        for step in range(stage.num_steps)
    ]
    peak = rates.index(max(rates))
    assert 0 < rates[0] < rates[peak] == pytest.approx(1, abs=0.01)
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert 0 < rates[-1] < 1e-3
    # At the first step of 224 pixels, the share of all pixels that was seen decides.
    pixels = [stage.num_steps * stage.pixels_per_step for stage in stages]
    progress = (sum(pixels[:2]) / sum(pixels) - WARMUP_FRACTION) / (1 - WARMUP_FRACTION)
    assert rate_at(stages, 2, 0) == pytest.approx((1 + math.cos(math.pi * progress)) / 2)


@pytest.fixture(scope="module")
def larger(finished_run: Path) -> Architecture:
    """The toy network for images of twice the size."""
    return load_architecture(finished_run / "architecture.json").adapted(resolution=64)


def run(
    network: Architecture | None, folder: Path, pictures: Path, resume: bool = False
) -> TrainResult:
    given: dict[str, Any] = {
        "data": str(pictures),
        "epochs": 1,
        "batch_size": 8,
        "resolution_images": 16,
        "checkpoint_seconds": 0.0,
    }
    return train(network, output=folder, resume=resume, **given)


@pytest.fixture(scope="module")
def trained(
    larger: Architecture, pictures: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "trained"
    run(larger, folder, pictures)
    return folder


def metrics_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_the_network_is_tested_at_its_deployment_resolution(trained: Path, pictures: Path) -> None:
    result = json.loads((trained / "result.json").read_text())
    assert [line["phase"] for line in metrics_of(trained)] == ["train", "resolution"]
    assert metrics_of(trained)[1]["resolution"] == result["resolution"] == 64
    assert result["trained_resolution"] == 32
    assert result["chance"] == 0.5
    assert evaluate(trained).accuracy == result["accuracy"]
    as_trained = evaluate(trained, resolution=32)
    assert (as_trained.accuracy, as_trained.resolution) == (result["accuracy_as_trained"], 32)
    # By the architecture file, the weights bring their preprocessing along.
    named: dict[str, Any] = {"weights": trained / "subnet.safetensors", "data": pictures}
    assert evaluate(trained / "architecture.json", **named).accuracy == result["accuracy"]
    with pytest.raises(QuadranasError, match="resolution 65"):
        evaluate(trained, resolution=65)


def test_the_accuracy_of_the_training_is_told_if_it_is_higher(trained: Path) -> None:
    result = TrainResult.model_validate_json((trained / "result.json").read_text("utf-8"))
    better = result.model_copy(update={"accuracy": 0.9, "accuracy_as_trained": 0.8})
    assert accuracy_text(better) == "test accuracy 90.00% at 64 pixels"
    worse = result.model_copy(update={"accuracy": 0.7, "accuracy_as_trained": 0.8})
    assert accuracy_text(worse).endswith(
        "70.00% at 64 pixels (80.00% at 32 pixels, the resolution of the training)"
    )


def test_smaller_batches_have_a_lower_rate(trained: Path) -> None:
    line = metrics_of(trained)[1]
    stage = Stage(resolution=64, batch_size=MIN_BATCH, num_steps=line["step"])
    config = yaml.safe_load((trained / "config.yaml").read_text("utf-8"))
    highest = config["weights"]["learning_rate"] * math.sqrt(MIN_BATCH / 8)
    assert line["learning_rate"] == pytest.approx(
        highest * rate_at([stage], 0, stage.num_steps - 1), rel=1e-6
    )


@pytest.mark.usefixtures("exports")
def test_the_exported_file_has_the_accuracy_that_was_printed(
    trained: Path, tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime")
    exported = export(trained, device="host", output=tmp_path / "bundle")
    result = json.loads((trained / "result.json").read_text())
    assert exported.accuracy == exported.accuracy_pytorch == result["accuracy"]
    assert exported.accuracy_as_trained == result["accuracy_as_trained"]
    assert (exported.resolution, exported.trained_resolution) == (64, 32)


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_an_interrupted_training_resumes_bit_identical_in_every_phase(
    larger: Architecture,
    pictures: Path,
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    steps: int,
) -> None:
    """Two steps at 32 pixels, and four at 64."""
    taken = iter(range(steps))
    step = NetworkTraining.step

    def stopping(training: NetworkTraining, number: int) -> Mapping[str, Tensor]:
        if next(taken, None) is None:
            raise KeyboardInterrupt
        return step(training, number)

    with monkeypatch.context() as patch:
        patch.setattr(NetworkTraining, "step", stopping)
        with pytest.raises(RunInterruptedError):
            run(larger, tmp_path / "run", pictures)
    run(None, tmp_path / "run", pictures, resume=True)
    for name in ("subnet.safetensors", "metrics.jsonl"):
        assert (tmp_path / "run" / name).read_bytes() == (trained / name).read_bytes(), name


def test_a_checkpoint_of_another_phase_is_refused(
    larger: Architecture, pictures: Path, trained: Path
) -> None:
    newest = RunFolder(trained).latest_checkpoint(Reporter(quiet=True))
    assert newest is not None
    RunFolder(trained).save_checkpoint({**newest, "phase": "resolution-96"})
    (trained / "result.json").unlink()
    with pytest.raises(
        QuadranasError, match="phase 'resolution-96', which this run does not have"
    ):
        run(None, trained, pictures, resume=True)


def test_images_are_the_same_at_another_resolution(pictures: Path) -> None:
    for data in (pictures, None):
        small = load_dataset(data, resolution=32)
        large = small.at(160)  # five times the size of the files
        assert small.at(32) is small
        assert (large.mean, large.std) == (small.mean, small.std)
        assert torch.equal(large.train.labels, small.train.labels)
        images = large.test.batch(torch.arange(2))
        assert images.shape == (2, 3, 160, 160)
