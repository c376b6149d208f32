"""Preprocessing of images for a network, stored beside its weights."""

from pathlib import Path
from typing import Annotated, Self

import torch
from pydantic import Field
from torch import Tensor

from quadranas.data.dataset import Dataset, Triple
from quadranas.data.decoding import Pixels
from quadranas.files import read_json, write_json
from quadranas.space.operation import MAX_RESOLUTION
from quadranas.validation import Frozen, validate

Mean = Annotated[float, Field(ge=-1e6, le=1e6)]
Std = Annotated[float, Field(ge=1e-6, le=1e6)]


class Preprocessing(Frozen):
    """The preprocessing that a trained network expects.

    Args:
        class_names: names of the classes, by index.
        mean, std: normalisation per channel of pixels in [0, 1].
        resolution: height and width of the images in training, in pixels.
    """

    class_names: tuple[str, ...]
    mean: tuple[Mean, Mean, Mean]
    std: tuple[Std, Std, Std]
    resolution: int = Field(ge=1, le=MAX_RESOLUTION)

    @classmethod
    def of(cls, dataset: Dataset) -> Self:
        """The preprocessing of a network that is trained on these data."""
        return cls(
            class_names=dataset.class_names,
            mean=dataset.mean,
            std=dataset.std,
            resolution=dataset.resolution,
        )

    def tensor(self, pixels: Pixels) -> Tensor:
        """An image as input of the network, (1, 3, R, R); see `image_tensor`."""
        return image_tensor(pixels, self.mean, self.std)

    def save(self, path: Path) -> None:
        """Write the preprocessing as JSON."""
        write_json(path, self.model_dump(mode="json"))


def scaled(images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Pixels from uint8 to [0, 1], contiguous."""
    return images.to(dtype, memory_format=torch.contiguous_format) / 255


def normalised(pixels: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Pixels in [0, 1], (B, 3, R, R), minus the mean and divided by the deviation of each channel.

    Args:
        mean, std: (1, 3, 1, 1), in the type to compute in.
    """
    return (pixels - mean.to(pixels.device)) / std.to(pixels.device)


def image_tensor(pixels: Pixels, mean: Triple, std: Triple) -> Tensor:
    """One image as input of a network, float32.

    It is computed in float64 and rounded once, as a bundle's `infer.py` does with NumPy; training
    and evaluation compute batches in float32.

    Shapes: (R, R, 3) to (1, 3, R, R).
    """
    image = scaled(torch.tensor(pixels).permute(2, 0, 1)[None], torch.float64)
    statistics = [torch.tensor(s, dtype=torch.float64).view(1, 3, 1, 1) for s in (mean, std)]
    return normalised(image, *statistics).float()


def load_preprocessing(path: Path) -> Preprocessing:
    """Read a file that `save` wrote.

    Raises:
        QuadranasError: the file is unreadable or incomplete.
    """
    return validate(Preprocessing, read_json(path, "preprocessing"), path)
