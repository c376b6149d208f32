"""Real images as an exported file takes them: normalised, at the file's resolution."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from quadranas.data.augmentation import AugmentConfig, Augmenter
from quadranas.data.dataset import Dataset, Triple
from quadranas.data.image_set import ImageSet
from quadranas.data.preprocessing import Preprocessing
from quadranas.runs.config import DataConfig, open_data
from quadranas.runs.stored_network import StoredNetwork, open_test_images


@dataclass(frozen=True, kw_only=True)
class ExportImages:
    """Validation images of one resolution, and training images to calibrate with.

    Args:
        labelled: the network was trained for these images' classes.
        resolution: of the file's input; images of another one, as trained on, are resized.
        preprocessing: what the network expects; none where nobody knows.
    """

    dataset: Dataset
    transform: Callable[[Tensor], Tensor]
    labelled: bool
    resolution: int
    num_images: int
    preprocessing: Preprocessing | None

    @property
    def name(self) -> str:
        """What they are, in words."""
        return f"{self.dataset.name}, test split"

    @property
    def labels(self) -> Tensor:
        """The validation images' classes, (N,)."""
        return self.dataset.test.labels[_spread(self.dataset.test, self.num_images)]

    def batches(self, size: int, *, as_trained: bool = False) -> Iterator[Tensor]:
        """The validation images in batches of one size, the last one filled up by its last image.

        Args:
            as_trained: at the resolution of training.

        Shapes: (size, 3, R, R), float32.
        """
        indices = _spread(self.dataset.test, self.num_images)
        for part in indices.split(size):
            yield self._prepared(self.dataset.test, _filled(part, size), as_trained)

    def calibration(self, num_images: int, size: int) -> list[NDArray[np.float32]]:
        """Training images, evenly spread, in batches of one size, the last one filled up."""
        images = self.dataset.train
        return [
            self._prepared(images, _filled(part, size), False).numpy()
            for part in _spread(images, num_images).split(size)
        ]

    def _prepared(self, images: ImageSet, indices: Tensor, as_trained: bool) -> Tensor:
        normalised = self.transform(images.batch(indices))
        size = (self.resolution, self.resolution)
        if as_trained or normalised.shape[2:] == size:
            return normalised.contiguous()
        return functional.interpolate(
            normalised, size, mode="bilinear", antialias=True
        ).contiguous()


def open_export_images(
    stored: StoredNetwork,
    data: DataConfig,
    resolution: int,
    num_images: int,
) -> ExportImages:
    """The images to check an exported network with.

    Those of the run that the network lies in, or the data named. Where neither tells what the
    network was trained for, the embedded digits, without their labels.

    Args:
        data: which images; by default those of the run that the network lies in.
        num_images: of the test split, evenly spread.

    Raises:
        QuadranasError: data of other classes than those trained for, or that do not serve.
    """
    labelled = stored.weights is not None and bool(stored.preprocessing or data.data)
    if labelled:
        held_out = open_test_images(stored, data)
        dataset, augmenter = held_out.dataset, held_out.augmenter
        known = stored.preprocessing or Preprocessing.of(dataset)
    else:
        dataset, known = open_data(data, resolution), None
        augmenter = _augmenter(dataset, dataset.mean, dataset.std)
    return ExportImages(
        dataset=dataset,
        transform=augmenter.plain,
        labelled=labelled,
        resolution=resolution,
        num_images=min(num_images, len(dataset.test)),
        preprocessing=known,
    )


def _augmenter(dataset: Dataset, mean: Triple, std: Triple) -> Augmenter:
    config = AugmentConfig(flip=False, crop_padding=0)
    return Augmenter(config, num_classes=dataset.num_classes, mean=mean, std=std)


def _filled(part: Tensor, size: int) -> Tensor:
    """Indices, the last one repeated until there are so many."""
    return torch.cat([part, part[-1:].expand(size - len(part))])


def _spread(images: ImageSet, number: int) -> Tensor:
    """Indices at even distances."""
    return torch.linspace(0, len(images) - 1, min(number, len(images))).long()
