"""Random resized crops of images while they are decoded.

Source: the training of GoogLeNet, arXiv:1409.4842, Sec. 6: a crop of 8 % to 100 % of the area, its
aspect ratio between 3/4 and 4/3, resized to the resolution. As in torchvision's RandomResizedCrop,
ten crops are tried, then the largest one at the centre with an aspect ratio in the range is taken.
"""

import math
import random
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np

from quadranas.data.decoding import Pixels, on_white
from quadranas.seeds import derived_seed

if TYPE_CHECKING:
    from PIL import Image

RATIOS = (3 / 4, 4 / 3)
ATTEMPTS = 10

ORIENTATION = 0x0112
"""The EXIF tag of the orientation."""

TRANSPOSED = (5, 6, 7, 8)
"""Its values that exchange width and height."""

Box = tuple[float, float, float, float]
"""Left, top, right and bottom in pixels."""


@dataclass(frozen=True)
class Crop:
    """A random crop, before the size of the image is known.

    Args:
        areas: the share of the area, per attempt.
        ratios: width over height, per attempt.
        left, top: where the crop lies, from 0 to 1.
    """

    areas: tuple[float, ...]
    ratios: tuple[float, ...]
    left: float
    top: float

    @classmethod
    def drawn(cls, smallest: float, *, index: int, epoch: int, seed: int) -> Self:
        """The crop of one image in one epoch; `smallest` is the least share of the area."""
        draw = random.Random(derived_seed(seed, "crop", epoch, index))
        low, high = map(math.log, RATIOS)
        areas = tuple(draw.uniform(smallest, 1) for _ in range(ATTEMPTS))
        ratios = tuple(math.exp(draw.uniform(low, high)) for _ in range(ATTEMPTS))
        return cls(areas, ratios, draw.random(), draw.random())

    def box(self, width: int, height: int) -> Box:
        """The crop of an image of a size in pixels."""
        w, h = next(self._fitting(width, height))
        left, top = round(self.left * (width - w)), round(self.top * (height - h))
        return left, top, left + w, top + h

    def _fitting(self, width: int, height: int) -> Iterator[tuple[int, int]]:
        """Width and height of the attempts that fit, then of the largest crop at any rate."""
        for area, ratio in zip(self.areas, self.ratios, strict=True):
            w = round(math.sqrt(area * width * height * ratio))
            h = round(math.sqrt(area * width * height / ratio))
            if 0 < w <= width and 0 < h <= height:
                yield w, h
        low, high = RATIOS
        yield (
            min(width, max(1, round(height * high))),
            min(height, max(1, round(width / low))),
        )


def cropped(image: "Image.Image", crop: Crop, resolution: int) -> Pixels:
    """A crop of an image at the resolution, (R, R, 3), with the orientation and colours of `fit`.

    A JPEG is decoded at 1/2, 1/4 or 1/8 of its size if the crop is still as large as the
    resolution then: libjpeg leaves out the rest of the computation. Pixels differ slightly from
    those of a crop of the whole image.
    """
    from PIL import Image, ImageOps

    orientation = 1
    # A damaged EXIF block does not make the pixels invalid; they keep their stored orientation.
    with suppress(Exception):
        orientation = image.getexif().get(ORIENTATION, 1)
    width, height = image.size
    if orientation in TRANSPOSED:
        width, height = height, width
    box = crop.box(width, height)
    scale = min(box[2] - box[0], box[3] - box[1]) / resolution
    if scale > 1:
        image.draft(None, (math.ceil(image.width / scale), math.ceil(image.height / scale)))
    image.load()
    with suppress(Exception):
        ImageOps.exif_transpose(image, in_place=True)
    image = on_white(image)
    x, y = image.width / width, image.height / height
    right, bottom = min(box[2] * x, image.width), min(box[3] * y, image.height)
    return np.asarray(
        image.resize(
            (resolution, resolution),
            Image.Resampling.BILINEAR,
            box=(box[0] * x, box[1] * y, right, bottom),
        )
    )
