"""One split of a data set: images and their labels."""

from collections.abc import Callable
from dataclasses import replace
from typing import final

import torch
from torch import Tensor

from quadranas.data.samples import Samples
from quadranas.errors import QuadranasError


@final
class ImageSet:
    """The images of one split and their labels, shape (N,), int64.

    Args:
        labels: one class index per image.
        pick: returns the images at given indices, uint8 (B, R, R, 3).
        at_first_use: pick all images at the first batch, and keep them in memory.
        samples: the images as their source gives them; None for images that have none.
        is_in_memory: whether the images are kept in memory, or will be.
    """

    def __init__(
        self,
        labels: Tensor,
        pick: Callable[[Tensor], Tensor],
        *,
        at_first_use: bool = False,
        samples: Samples | None = None,
        is_in_memory: bool = True,
    ) -> None:
        self.labels = labels
        self.samples = samples
        self.is_in_memory = is_in_memory
        self._pick = pick
        self._at_first_use = at_first_use

    def __len__(self) -> int:
        return len(self.labels)

    def with_random_crops(self, smallest: float) -> "ImageSet":
        """The same images with random resized crops, for a `Loader`; 0 for none.

        Args:
            smallest: smallest share of the area of a crop.

        Raises:
            QuadranasError: the images are not read from a source.
        """
        if not smallest:
            return self
        if self.samples is None:
            raise QuadranasError(
                "these images have no source, so they cannot be cropped while they are decoded",
                "Set augment.resized_crop to 0.",
            )
        samples = replace(self.samples, resized_crop=smallest)
        return ImageSet(self.labels, self._pick, samples=samples, is_in_memory=False)

    def subset(self, indices: Tensor) -> "ImageSet":
        """The images at given indices, which are read through this set or from its source."""
        samples = self.samples
        if samples is not None:
            samples = replace(samples, files=samples.files.select(indices.tolist()))
        return ImageSet(
            self.labels[indices],
            lambda chosen: self.batch(indices[chosen]).permute(0, 2, 3, 1),
            samples=samples,
            is_in_memory=self.is_in_memory,
        )

    def batch(self, indices: Tensor) -> Tensor:
        """The images at given indices, uint8 (B, 3, R, R), channels_last.

        Raises:
            QuadranasError: an image that is decoded here is corrupt.
        """
        if self._at_first_use:
            self._pick = picker(self._pick(torch.arange(len(self))))
            self._at_first_use = False
        return self._pick(indices.cpu()).permute(0, 3, 1, 2)


def picker(pixels: Tensor) -> Callable[[Tensor], Tensor]:
    """A function that picks images by index from pixels in memory, uint8 (N, R, R, 3)."""
    return lambda indices: pixels.index_select(0, indices)
