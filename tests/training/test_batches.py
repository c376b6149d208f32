"""Training on images that are decoded by workers: the same results, also when it is resumed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from quadranas.acceleration.engine import Engine
from quadranas.commands.search import search
from quadranas.commands.train import train
from quadranas.data.augmentation import AugmentConfig, Augmenter
from quadranas.data.dataset import load_dataset
from quadranas.runs.config import TrainConfig
from quadranas.runs.run_folder import RunFolder
from quadranas.training.batches import Batches
from tests.command_line import contents

RESULT = ("subnet.safetensors", "metrics.jsonl")


@pytest.fixture(autouse=True)
def no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """No images are kept in memory."""
    monkeypatch.setattr("quadranas.data.dataset.MEMORY_LIMIT_BYTES", 100)


class PowerCutError(Exception):
    """Stops a training after a checkpoint."""


def cut_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    real = RunFolder.save_checkpoint
    left = steps

    def save_checkpoint(self: RunFolder, state: Mapping[str, Any]) -> None:
        nonlocal left
        real(self, state)
        left -= 1
        if left == 0:
            raise PowerCutError

    monkeypatch.setattr(RunFolder, "save_checkpoint", save_checkpoint)


def trained(folder: Path, model: Path, workers: int, *, resume: bool = False, **keys: Any) -> None:
    config = TrainConfig(
        epochs=2,
        batch_size=4,
        resolution_images=8,
        checkpoint_seconds=0,
        augment=AugmentConfig(resized_crop=0.3, flip=True),
        workers=workers,
    )
    train(model, config, output=folder, resume=resume, **keys)


def test_a_training_with_workers_resumes_in_the_middle_of_an_epoch(
    tmp_path: Path, finished_run: Path, pictures: Path
) -> None:
    model, data = finished_run / "architecture.json", str(pictures)
    trained(tmp_path / "whole", model, 0, data=data)
    with pytest.MonkeyPatch.context() as patch:
        cut_after(patch, 6)  # of 8 steps in two epochs
        with pytest.raises(PowerCutError):
            trained(tmp_path / "cut", model, 1, data=data)
    trained(tmp_path / "cut", model, 0, resume=True, data=data)
    assert contents(tmp_path / "cut", RESULT) == contents(tmp_path / "whole", RESULT)


@pytest.mark.slow
def test_a_search_with_workers_finds_the_same(tmp_path: Path, pictures: Path) -> None:
    for workers in (0, 1):
        search(
            output=tmp_path / str(workers),
            device="cpu",
            budget="0.8ms",
            space="toy",
            data=str(pictures),
            batch_size=4,
            schedule={"warmup_epochs": 1, "search_epochs": 1, "finetune_epochs": 1},
            workers=workers,
        )
    names = (*RESULT, "gates.json", "supernet.safetensors")
    assert contents(tmp_path / "0", names) == contents(tmp_path / "1", names)


def test_weight_steps_are_cropped_and_architecture_steps_are_not(pictures: Path) -> None:
    dataset = load_dataset(str(pictures), resolution=32)
    plain = Augmenter.of(dataset)
    crops = Augmenter.of(dataset, AugmentConfig(resized_crop=0.1))
    whole, cropped = (
        Batches(
            *(dataset, augmenter, Engine(), torch.arange(8)), batch_size=4, seed_of=lambda e: e
        )
        for augmenter in (plain, crops)
    )
    assert torch.equal(whole.augmented(1, seed=3).images, whole.plain(1).images)
    assert torch.equal(cropped.plain(1).images, whole.plain(1).images)
    assert not torch.equal(cropped.augmented(1, seed=3).images, whole.plain(1).images)
    again = cropped.augmented(1, seed=3).images
    cropped.augmented(0, seed=3)
    assert torch.equal(cropped.augmented(1, seed=3).images, again)
    assert torch.equal(cropped.plain(1).targets, whole.plain(1).targets)
