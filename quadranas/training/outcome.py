"""The outcome of a training: the accuracy at both resolutions, and signs that it failed."""

import math
from collections.abc import Iterator, Sequence
from statistics import fmean
from typing import Any

import torch

from quadranas.acceleration.engine import Engine
from quadranas.data.augmentation import Augmenter
from quadranas.data.dataset import Dataset
from quadranas.data.image_set import ImageSet
from quadranas.data.task import evaluate
from quadranas.network.skeleton import Network
from quadranas.reporter import Reporter
from quadranas.runs.records import Epoch, read_epochs
from quadranas.runs.run_folder import RunFolder

UNDECIDED = 0.9
"""Entropy of the gates, from 0 to 1, above which they count as undecided."""

MUCH_LOWER = 0.05
"""Difference in accuracy between two resolutions that deserves a warning."""


def outcome(
    network: Network,
    dataset: Dataset,
    augmenter: Augmenter,
    folder: RunFolder | None,
    reporter: Reporter,
    engine: Engine,
    keep: str | None = "last",
) -> dict[str, Any]:
    """Test a trained network, and look for signs that its training failed; warns about them.

    Args:
        folder: the run folder; None in a process that does not write.
        engine: the hardware that has trained.
        keep: which epoch's weights are tested, the `best` or the `last`.

    Returns: the fields of a `TrainedResult` that describe the training and its accuracy, and its
    warnings.
    """
    assert network.architecture is not None
    deployed = dataset.at(network.architecture.resolution)

    def accuracy_at(tested: Dataset) -> float:
        reporter.message(f"testing {len(tested.test)} images at {tested.resolution} pixels")
        return evaluate(network, tested.test, augmenter, engine)

    accuracy = accuracy_at(deployed)
    as_trained = accuracy if deployed is dataset else accuracy_at(dataset)
    if folder is None:
        return {}
    epochs, _ = read_epochs(folder.metrics)
    found: dict[str, Any] = {
        "accuracy": accuracy,
        "resolution": deployed.resolution,
        "trained_resolution": dataset.resolution,
        "accuracy_as_trained": as_trained,
        "chance": chance_of(dataset.test),
    }
    found |= _chosen(epochs, keep)
    warnings = (
        *learning_warnings(epochs, chance_of(dataset.train), len(dataset.train)),
        *_test_warnings(
            accuracy=accuracy,
            resolution=deployed.resolution,
            trained_resolution=dataset.resolution,
            accuracy_as_trained=as_trained,
            chance=found["chance"],
            num_images=len(dataset.test),
        ),
    )
    for text in warnings:
        reporter.warning(text)
    return {**found, **_hardware(engine), "warnings": warnings}


def _hardware(engine: Engine) -> dict[str, Any]:
    """The fields of a `TrainedResult` that describe what has trained."""
    return {
        "accelerator": engine.accelerator.name,
        "precision": engine.accelerator.precision,
        "processes": engine.processes.count,
    }


def _chosen(epochs: Sequence[Epoch], keep: str | None) -> dict[str, Any]:
    """The epoch whose weights are used, and its accuracy on the held-out images."""
    validated = [
        (epoch.val_accuracy, -(epoch.val_loss or 0.0), epoch.epoch)
        for epoch in epochs
        if epoch.phase in ("finetune", "train") and epoch.val_accuracy is not None
    ]
    if not validated:
        return {}
    # The first of several equal ones, as `EpochChoice` keeps it.
    best = max(validated, key=lambda found: found[:2]) if keep == "best" else validated[-1]
    return {"val_accuracy": best[0], "kept_epoch": best[2]}


def chance_of(images: ImageSet) -> float:
    """The share of the most frequent class: the accuracy of a network that learned nothing."""
    return int(torch.bincount(images.labels).max()) / len(images)


def is_chance(accuracy: float, chance: float, num_images: int) -> bool:
    """Whether an accuracy is no better than chance.

    It has to exceed chance by a quarter of it or of the rest, the smaller one, and by four
    standard deviations of the accuracy that guessing has on as many images. With so few images
    that hardly any accuracy could, half of what chance leaves is enough.
    """
    deviation = math.sqrt(chance * (1 - chance) / num_images)
    needed = chance + min(chance, 1 - chance) / 4 + 4 * deviation
    return accuracy <= min(needed, (1 + chance) / 2)


def learning_warnings(epochs: Sequence[Epoch], chance: float, num_images: int) -> Iterator[str]:
    """Signs in a run's metrics that it did not learn.

    Args:
        chance: accuracy of guessing on the training images.
        num_images: number of training images.
    """
    search = [epoch for epoch in epochs if epoch.phase == "search"]
    last = search[-max(1, len(search) // 4) :]
    held_out = [epoch.gate_accuracy for epoch in last if epoch.gate_accuracy is not None]
    if held_out and is_chance(fmean(held_out), chance, num_images // 2):
        yield (
            f"the supernet did not learn: its held-out accuracy was {fmean(held_out):.1%} in the "
            f"last {len(held_out)} epochs of the search, and guessing reaches {chance:.1%}; use a "
            "smaller batch_size or more schedule.warmup_epochs and schedule.search_epochs, so "
            "that there are more steps, or a lower weights.learning_rate"
        )
    entropy = search[-1].entropy if search else None
    if entropy is not None and entropy > UNDECIDED:
        yield (
            f"the gates are undecided: their entropy is {entropy:.2f} of at most 1, so the choice "
            "of the network is nearly random within the budget; raise schedule.search_epochs or "
            "gates.learning_rate"
        )
    first = next((epoch for epoch in epochs if epoch.phase == "finetune"), None)
    if first and first.accuracy is not None and is_chance(first.accuracy, chance, num_images):
        yield (
            f"the fine-tuning started from nothing: {first.accuracy:.1%} in its first epoch, and "
            f"guessing reaches {chance:.1%}; the weights of the supernet did not help, and its "
            "gates have compared networks that had learned nothing"
        )


def _test_warnings(
    *,
    accuracy: float,
    resolution: int,
    trained_resolution: int,
    accuracy_as_trained: float,
    chance: float,
    num_images: int,
) -> Iterator[str]:
    if is_chance(max(accuracy, accuracy_as_trained), chance, num_images):
        yield (
            f"the network did not learn: its test accuracy is {accuracy:.1%}, and guessing "
            f"reaches {chance:.1%}; train it for more epochs or with another learning rate"
        )
    elif accuracy < accuracy_as_trained - MUCH_LOWER:
        yield (
            f"the accuracy is {accuracy:.1%} at the deployment resolution of {resolution} pixels, "
            f"and {accuracy_as_trained:.1%} at the {trained_resolution} pixels of the training; "
            "train at a resolution nearer to that of deployment (--train-resolution), or with "
            "more images in the last phase (key resolution_images in a file for --config)"
        )
