"""Real images as inputs of an exported file: normalised, at the file's resolution."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional

from quadranas.data.augmentation import Augmenter
from quadranas.data.dataset import Dataset
from quadranas.data.image_set import ImageSet
from quadranas.data.preprocessing import Preprocessing
from quadranas.runs.config import DataConfig, open_data
from quadranas.runs.stored_network import StoredNetwork, open_test_images

EXAMPLE = "example.png"
"""One of the built-in digits, in bundles that were checked with them."""


@dataclass(frozen=True, kw_only=True)
class ExportImages:
    """Validation images of one resolution, and training images to calibrate with.

    Args:
        labelled: whether the network was trained for these images' classes.
        resolution: input size of the file; images are resized to it.
        preprocessing: preprocessing that the network expects; `None` if unknown.
        num_skipped: number of corrupt images that were skipped; `None` if none were to be.
    """

    dataset: Dataset
    transform: Callable[[Tensor], Tensor]
    labelled: bool
    resolution: int
    num_images: int
    preprocessing: Preprocessing | None
    num_skipped: int | None = None

    @property
    def name(self) -> str:
        """Description of the validation images."""
        return f"{self.dataset.name}, test split"

    @property
    def labels(self) -> Tensor:
        """The validation images' classes, (N,)."""
        return self.dataset.test.labels[_spread(self.dataset.test, self.num_images)]

    def batches(self, size: int, *, as_trained: bool = False) -> Iterator[Tensor]:
        """The validation images in batches of one size, the last batch padded with its last image.

        Args:
            as_trained: use the resolution of training.

        Shapes: (size, 3, R, R), float32.
        """
        indices = _spread(self.dataset.test, self.num_images)
        for part in indices.split(size):
            yield self._prepared(self.dataset.test, _filled(part, size), as_trained)

    def calibration(self, num_images: int, size: int) -> list[NDArray[np.float32]]:
        """Evenly spaced training images in batches of one size, the last batch padded."""
        images = self.dataset.train
        return [
            self._prepared(images, _filled(part, size), False).numpy()
            for part in _spread(images, num_images).split(size)
        ]

    def example(self, folder: Path) -> Path | None:
        """A test image as a file; `None` if the images lie in a zip file.

        Args:
            folder: where to write an image of the built-in digits. Images of the user's own are
                not copied.
        """
        files = self.dataset.files
        if files is not None:
            path = files.test.source.path / files.test.members[0]
            return path if path.is_file() else None
        pixels = self.dataset.test.batch(torch.tensor([0]))[0].permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(folder / EXAMPLE)
        return folder / EXAMPLE

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
    """Open the images to check an exported network with.

    They are the given data, by default those of the run; if both are unknown, the embedded digits
    without their labels.

    Args:
        data: the images; by default those of the run that holds the network.
        num_images: number of evenly spaced images of the test split.

    Raises:
        QuadranasError: the data have other classes than the network, or are unsuitable.
    """
    labelled = stored.weights is not None and bool(stored.preprocessing or data.data)
    if labelled:
        held_out = open_test_images(stored, data)
        dataset, augmenter = held_out.dataset, held_out.augmenter
        known = stored.preprocessing or Preprocessing.of(dataset)
        num_skipped = held_out.num_skipped
    else:
        dataset, known = open_data(data, resolution), None
        augmenter = Augmenter.of(dataset)
        num_skipped = dataset.num_skipped if data.skip_corrupt else None
    return ExportImages(
        dataset=dataset,
        transform=augmenter.plain,
        labelled=labelled,
        resolution=resolution,
        num_images=min(num_images, len(dataset.test)),
        preprocessing=known,
        num_skipped=num_skipped,
    )


def _filled(part: Tensor, size: int) -> Tensor:
    """Pad `part` to `size` by repeating its last index."""
    return torch.cat([part, part[-1:].expand(size - len(part))])


def _spread(images: ImageSet, number: int) -> Tensor:
    """Evenly spaced indices."""
    return torch.linspace(0, len(images) - 1, min(number, len(images))).long()
