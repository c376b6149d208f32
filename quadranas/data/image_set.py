"""One split of a data set: images and their labels."""

from collections.abc import Callable
from typing import final

import torch
from torch import Tensor

from quadranas.data.samples import Samples


@final
class ImageSet:
    """The images of one split and their labels, shape (N,), int64.

    Args:
        labels: one class index per image.
        pick: returns the images at given indices, uint8 (B, R, R, 3).
        at_first_use: pick all images at the first batch, and keep them in memory.
        samples: the images as their source gives them; None for images that have none.
    """

    def __init__(
        self,
        labels: Tensor,
        pick: Callable[[Tensor], Tensor],
        *,
        at_first_use: bool = False,
        samples: Samples | None = None,
    ) -> None:
        self.labels = labels
        self.samples = samples
        self._pick = pick
        self._at_first_use = at_first_use

    def __len__(self) -> int:
        return len(self.labels)

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
