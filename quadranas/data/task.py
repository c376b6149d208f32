"""The task: a classifier's result in a training step, and its accuracy on a split."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from quadranas.data.augmentation import Augmenter
from quadranas.data.batch import Batch
from quadranas.data.image_set import ImageSet
from quadranas.errors import QuadranasError
from quadranas.network.modes import evaluating


@dataclass(frozen=True)
class StepResult:
    """Loss and top-1 accuracy of one step."""

    loss: float
    accuracy: float


def step_result(loss: Tensor, logits: Tensor, batch: Batch) -> StepResult:
    """Loss and accuracy of a training step, from its logits, (B, num_classes).

    The label of a mixed image is the class with the larger share of it.
    """
    accuracy = top1_accuracy(logits.detach(), batch.targets.argmax(1))
    return StepResult(float(loss.detach()), accuracy)


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


def evaluate(network: nn.Module, images: ImageSet, augmenter: Augmenter) -> float:
    """Top-1 accuracy of a network on one split of a data set, without augmentation."""
    indices = torch.arange(len(images)).split(BATCH_SIZE)
    return accuracy_on(
        network, ((augmenter.plain(images.batch(i)), images.labels[i]) for i in indices)
    )
