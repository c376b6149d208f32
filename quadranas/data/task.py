"""The task: a classifier's result in a training step, and its accuracy on a split."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from quadranas.acceleration.accelerator import widest
from quadranas.acceleration.engine import Engine
from quadranas.data.augmentation import Augmenter
from quadranas.data.batch import Batch
from quadranas.data.image_set import ImageSet
from quadranas.errors import QuadranasError
from quadranas.network.modes import evaluating


@dataclass(frozen=True)
class StepResult:
    """Loss and top-1 accuracy of one step: scalars on the accelerator.

    With several processes, they are the parts that these images contribute.
    """

    loss: Tensor
    accuracy: Tensor


def step_result(loss: Tensor, logits: Tensor, batch: Batch) -> StepResult:
    """Loss and accuracy of a training step, from its logits, (B, num_classes).

    The label of a mixed image is the class with the larger share of it.
    """
    is_correct = logits.detach().argmax(1) == batch.targets.argmax(1)
    accuracy = is_correct.sum(dtype=widest(logits.device)) / len(is_correct)
    return StepResult(loss.detach() * batch.weight, accuracy * batch.weight)


def joined(results: Sequence[StepResult]) -> StepResult:
    """The result of a step from those of the parts of its batch."""
    first, *others = results
    for other in others:
        first = StepResult(first.loss + other.loss, first.accuracy + other.accuracy)
    return first


BATCH_SIZE = 128
"""Number of images per batch in an evaluation."""


def num_correct(logits: Tensor, labels: Tensor) -> int:
    """The number of images whose largest logit is that of their class.

    Args:
        logits: (B, num_classes).
        labels: class indices, (B,).
    """
    return int((logits.argmax(1) == labels).sum())


def top1_accuracy(logits: Tensor, labels: Tensor) -> float:
    """The share of images whose largest logit is that of their class, 0 to 1."""
    return num_correct(logits, labels) / len(labels)


@torch.no_grad()
def accuracy_on(network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Top-1 accuracy of a network in evaluation mode, on batches of inputs and labels.

    Raises:
        QuadranasError: the batches are empty.
    """
    correct = total = 0
    with evaluating(network):
        for inputs, labels in batches:
            correct += num_correct(network(inputs), labels)
            total += len(labels)
    if not total:
        raise QuadranasError("cannot compute an accuracy without images")
    return correct / total


def evaluate(
    network: nn.Module,
    images: ImageSet,
    augmenter: Augmenter,
    engine: Engine | None = None,
    *,
    indices: Tensor | None = None,
) -> float:
    """Top-1 accuracy of a network on one split of a data set, without augmentation.

    Args:
        engine, indices: see `assess`.
    """
    return assess(network, images, augmenter, engine, indices=indices).accuracy


@dataclass(frozen=True)
class Assessment:
    """How well a network does on a split: mean cross-entropy, and top-1 accuracy from 0 to 1."""

    loss: float
    accuracy: float


def assess(
    network: nn.Module,
    images: ImageSet,
    augmenter: Augmenter,
    engine: Engine | None = None,
    *,
    indices: Tensor | None = None,
) -> Assessment:
    """Loss and accuracy of a network on one split of a data set, without augmentation.

    Args:
        engine, indices: see `assess_in_turn`.
    """
    (found,) = assess_in_turn(
        network, [lambda: None], images, augmenter, engine or Engine(), indices=indices
    )
    return found


def assess_in_turn(
    network: nn.Module,
    turns: Sequence[Callable[[], None]],
    images: ImageSet,
    augmenter: Augmenter,
    engine: Engine,
    *,
    indices: Tensor | None = None,
) -> list[Assessment]:
    """Loss and accuracy of several networks that a module can compute, batch by batch.

    Args:
        turns: each lets the module compute another network.
        engine: the hardware on which the module lies; each of its processes computes a part of
            the images, and all return the values of the whole split.
        indices: the images to test on; by default all.
    """
    put = engine.accelerator.put
    rank, count = engine.processes.rank, engine.processes.count
    chosen = torch.arange(len(images)) if indices is None else indices
    correct = [engine.accelerator.zero() for _ in turns]
    loss = [engine.accelerator.zero() for _ in turns]
    with torch.no_grad(), evaluating(network):
        for batch in chosen.split(BATCH_SIZE)[rank::count]:
            labels = put(images.labels[batch])
            plain = augmenter.plain(put(images.batch(batch)))
            for number, turn in enumerate(turns):
                turn()
                logits = engine.logits(network, plain)
                correct[number] += (logits.argmax(1) == labels).sum()
                loss[number] += cross_entropy(logits, labels, reduction="sum")
    engine.processes.add_up([*correct, *loss])
    return [
        Assessment(float(lost) / len(chosen), int(hits) / len(chosen))
        for lost, hits in zip(loss, correct, strict=True)
    ]
