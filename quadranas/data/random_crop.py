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

EXCHANGED = (5, 6, 7, 8)
"""Its values for images whose width and height are exchanged."""

TURNS = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}
"""What turns a stored image upright, as in `PIL.ImageOps.exif_transpose`."""

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
    from PIL import Image

    is_jpeg = image.format in ("JPEG", "MPO")
    if not is_jpeg:  # other formats may say their orientation at the end of the file
        image.load()
    orientation = _orientation(image)
    width, height = image.size
    upright = (height, width) if orientation in EXCHANGED else (width, height)
    left, top, right, bottom = _stored(crop.box(*upright), upright, orientation)
    ratio = min(right - left, bottom - top) / resolution
    scale = 1.0
    if is_jpeg and ratio > 1:
        drafted = image.draft(None, (math.ceil(width / ratio), math.ceil(height / ratio)))
        scale = drafted[1][2] / width if drafted else 1.0
    image.load()
    part = on_white(image).resize(
        (resolution, resolution),
        Image.Resampling.BILINEAR,
        box=(
            *(left * scale, top * scale),
            *(min(right * scale, image.width), min(bottom * scale, image.height)),
        ),
    )
    turn = TURNS.get(orientation)
    return np.asarray(part if turn is None else part.transpose(Image.Transpose[turn]))


def _orientation(image: "Image.Image") -> int:
    # A damaged EXIF block does not make the pixels invalid; they keep their stored orientation.
    with suppress(Exception):
        return int(image.getexif().get(ORIENTATION, 1))
    return 1


def _stored(box: Box, upright: tuple[int, int], orientation: int) -> Box:
    """A part of the upright image as a part of the stored one."""
    left, top, right, bottom = box
    width, height = upright
    if orientation in EXCHANGED:
        left, top, right, bottom, width, height = top, left, bottom, right, height, width
    if orientation in (2, 3, 7, 8):
        left, right = width - right, width - left
    if orientation in (3, 4, 6, 7):
        top, bottom = height - bottom, height - top
    return left, top, right, bottom
