"""Real images as inputs of an exported file: normalised, at the file's resolution."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from quadranas.data.augmentation import Augmenter
from quadranas.data.dataset import Dataset
from quadranas.data.image_set import ImageSet
from quadranas.data.preprocessing import Preprocessing
from quadranas.deployment.manifest import Manifest
from quadranas.runs.config import DataConfig, open_data
from quadranas.runs.stored_network import HeldOutImages, StoredNetwork, open_test_images

EXAMPLE = "example.png"
"""One of the built-in digits, in bundles that were checked with them."""


@dataclass(frozen=True, kw_only=True)
class ExportImages:
    """Validation images of one resolution, and training images to calibrate with.

    Args:
        labelled: whether the network was trained for these images' classes.
        trained_resolution: image size of the training; that of the data is the file's input size.
        preprocessing: preprocessing that the network expects; `None` if unknown.
        num_skipped: number of corrupt images that were skipped; `None` if none were to be.
    """

    dataset: Dataset
    transform: Callable[[Tensor], Tensor]
    labelled: bool
    trained_resolution: int
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

    @property
    def resolution(self) -> int:
        """Input size of the file, in pixels."""
        return self.dataset.resolution

    def as_trained(self) -> Self:
        """The same images at the resolution of the training."""
        return replace(self, dataset=self.dataset.at(self.trained_resolution))

    def batches(self, size: int) -> Iterator[Tensor]:
        """The validation images in batches of one size, the last batch padded with its last image.

        Shapes: (size, 3, R, R), float32.
        """
        indices = _spread(self.dataset.test, self.num_images)
        for part in indices.split(size):
            yield self._prepared(self.dataset.test, _filled(part, size))

    def calibration(self, num_images: int, size: int) -> list[NDArray[np.float32]]:
        """Evenly spaced training images in batches of one size, the last batch padded."""
        images = self.dataset.train
        return [
            self._prepared(images, _filled(part, size)).numpy()
            for part in _spread(images, num_images).split(size)
        ]

    def example(self, folder: Path) -> Path | None:
        """A test image as a file; `None` if the images are parts of other files.

        Args:
            folder: where to write an image of the built-in digits. Images of the user's own are
                not copied.
        """
        files = self.dataset.files
        if files is not None:
            path = files.test.source.path / files.test.member(0)
            return path if path.is_file() else None
        pixels = self.dataset.test.batch(torch.tensor([0]))[0].permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(folder / EXAMPLE)
        return folder / EXAMPLE

    def _prepared(self, images: ImageSet, indices: Tensor) -> Tensor:
        return self.transform(images.batch(indices)).contiguous()


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
    known = stored.preprocessing
    is_known = data.data is not None or (stored.folder is not None and known)
    labelled = stored.weights is not None and bool(is_known)
    if labelled:
        held_out = open_test_images(stored, data, resolution)
        known = known or Preprocessing.of(held_out.as_trained().dataset)
    else:
        dataset = open_data(data, resolution)
        held_out = HeldOutImages(
            dataset.at(resolution),
            Augmenter.of(dataset, preprocessing=known),
            dataset.resolution,
            dataset.num_skipped if data.skip_corrupt else None,
        )
    dataset = held_out.dataset
    return ExportImages(
        dataset=dataset,
        transform=held_out.augmenter.plain,
        labelled=labelled,
        trained_resolution=held_out.trained_resolution,
        num_images=min(num_images, len(dataset.test)),
        preprocessing=known,
        num_skipped=held_out.num_skipped,
    )


def preprocessing_in(manifest: Manifest) -> Preprocessing | None:
    """The preprocessing that a bundle's network expects; `None` if it is unknown."""
    wanted, accuracy = manifest.input, manifest.accuracy
    if manifest.class_names is None or wanted.mean is None or wanted.std is None:
        return None
    return Preprocessing(
        class_names=manifest.class_names,
        mean=wanted.mean,
        std=wanted.std,
        resolution=accuracy.trained_resolution if accuracy else wanted.resolution,
    )


def _filled(part: Tensor, size: int) -> Tensor:
    """Pad `part` to `size` by repeating its last index."""
    return torch.cat([part, part[-1:].expand(size - len(part))])


def _spread(images: ImageSet, number: int) -> Tensor:
    """Evenly spaced indices."""
    return torch.linspace(0, len(images) - 1, min(number, len(images))).long()
