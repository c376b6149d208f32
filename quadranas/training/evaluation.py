"""Accuracy of a network on a split, and what it expects of its images."""

from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from quadranas.data.augmentation import Augmenter
from quadranas.data.dataset import Dataset, ImageSet
from quadranas.files import read_json, validate, write_json
from quadranas.space.architecture import Frozen

BATCH_SIZE = 128


class Preprocessing(Frozen):
    """What a trained network expects: stored beside its weights.

    Args:
        mean, std: subtracted and divided by, per channel, for pixels in [0, 1].
        resolution: the images' height and width in training.
    """

    class_names: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resolution: int

    @classmethod
    def of(cls, dataset: Dataset) -> Self:
        """What a network trained on these data will expect."""
        return cls(
            class_names=dataset.class_names,
            mean=dataset.mean,
            std=dataset.std,
            resolution=dataset.resolution,
        )

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        write_json(path, self.model_dump(mode="json"))


def load_preprocessing(path: Path) -> Preprocessing:
    """Read what `save` wrote.

    Raises:
        QuadranasError: unreadable or incomplete.
    """
    return validate(Preprocessing, read_json(path, "preprocessing"), path)


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
