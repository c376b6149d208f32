"""The task: a classifier's result in a training step, and its accuracy on a split."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from quadranas.data.augmentation import Augmenter
from quadranas.data.batch import Batch
from quadranas.data.image_set import ImageSet


@dataclass(frozen=True)
class StepResult:
    """Loss and share of right answers of one step."""

    loss: float
    accuracy: float


def step_result(loss: Tensor, logits: Tensor, batch: Batch) -> StepResult:
    """What a training step reports of its loss and its logits, (B, num_classes)."""
    right = logits.detach().argmax(1) == batch.targets.argmax(1)
    return StepResult(float(loss.detach()), float(right.float().mean()))


BATCH_SIZE = 128


@torch.no_grad()
def evaluate(network: nn.Module, images: ImageSet, augmenter: Augmenter) -> float:
    """Top-1 accuracy, 0 to 1; the network is left in the mode it was in."""
    was_training = network.training
    network.eval()
    right = 0
    for indices in torch.arange(len(images)).split(BATCH_SIZE):
        logits: Tensor = network(augmenter.plain(images.batch(indices)))
        right += int((logits.argmax(1) == images.labels[indices]).sum())
    network.train(was_training)
    return right / len(images)
