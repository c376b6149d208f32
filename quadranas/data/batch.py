"""A batch of training: images and soft targets."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Normalised images (B, 3, R, R) and soft targets (B, num_classes).

    Args:
        weight: the share of these images in a batch of which several processes compute parts.
    """

    images: Tensor
    targets: Tensor
    weight: float = 1.0
