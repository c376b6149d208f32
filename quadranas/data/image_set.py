"""One split of a data set: images and their labels."""

from collections.abc import Callable
from typing import final

import torch
from torch import Tensor


@final
class ImageSet:
    """The images of one split and their labels, shape (N,), int64.

    Args:
        labels: one class index per image.
        pick: returns the images at given indices, uint8 (B, R, R, 3).
        at_first_use: pick all images at the first batch, and keep them in memory.
    """

    def __init__(
        self, labels: Tensor, pick: Callable[[Tensor], Tensor], *, at_first_use: bool = False
    ) -> None:
        self.labels = labels
        self._pick = pick
        self._at_first_use = at_first_use

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: Tensor) -> "ImageSet":
        """The images at given indices, which are read through this set."""
        return ImageSet(
            self.labels[indices], lambda chosen: self.batch(indices[chosen]).permute(0, 2, 3, 1)
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
