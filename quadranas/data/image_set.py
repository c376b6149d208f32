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
        pick: the images at some indices, uint8 (B, R, R, 3).
        at_first_use: whether to pick all images at the first batch, and keep them.
    """

    def __init__(
        self, labels: Tensor, pick: Callable[[Tensor], Tensor], *, at_first_use: bool = False
    ) -> None:
        self.labels = labels
        self._pick = pick
        self._at_first_use = at_first_use

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Tensor) -> Tensor:
        """The images at some indices, uint8 (B, 3, R, R), channels_last.

        Raises:
            QuadranasError: an image decoded only now turns out to be corrupt.
        """
        if self._at_first_use:
            self._pick = picker(self._pick(torch.arange(len(self))))
            self._at_first_use = False
        return self._pick(indices.cpu()).permute(0, 3, 1, 2)


def picker(pixels: Tensor) -> Callable[[Tensor], Tensor]:
    """Reads images by index from pixels that are in memory, (N, R, R, 3), uint8."""
    return lambda indices: pixels.index_select(0, indices)
