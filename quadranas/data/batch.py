"""A batch of training: images and soft targets."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Normalised images (B, 3, R, R) and soft targets (B, num_classes)."""

    images: Tensor
    targets: Tensor
