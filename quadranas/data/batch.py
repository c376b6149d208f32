"""A batch of training: images and soft targets."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Normalised images (B, 3, R, R) and soft targets (B, num_classes).

    Args:
        weight: the share of these images in a batch of which several processes compute parts.
        start, size: position of the first image in that batch, and number of its images.
        num_parts: number of parts in which to compute it, one after the other.
    """

    images: Tensor
    targets: Tensor
    weight: float = 1.0
    start: int = 0
    size: int | None = None
    num_parts: int = 1

    def parts(self) -> "Iterator[Batch]":
        """The parts of the batch, of about the same size; their weights add up to its own."""
        if self.num_parts == 1:
            yield self
            return
        start = 0
        pairs = (tensor.tensor_split(self.num_parts) for tensor in (self.images, self.targets))
        for images, targets in zip(*pairs, strict=True):
            yield replace(
                self,
                images=images.contiguous(memory_format=torch.channels_last),
                targets=targets,
                weight=self.weight * len(images) / len(self.images),
                start=self.start + start,
                size=self.size or len(self.images),
                num_parts=1,
            )
            start += len(images)
