"""Decoding: an image file becomes pixels of the wanted size."""

from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from quadranas.errors import QuadranasError

Pixels: TypeAlias = npt.NDArray[np.uint8]

COMMON_FORMATS = ("JPEG", "PNG")

NOT_PICTURES = ("EPS", "WMF", "HDF5", "MPEG", "GRIB", "BUFR")
"""Formats Pillow only recognises, or hands to another programme (EPS to Ghostscript)."""


class CorruptImageError(QuadranasError):
    """An image that cannot be decoded; caught where corrupt images are left out."""


def fit(image: Image.Image, resolution: int) -> Pixels:
    """Turn upright, resize the shorter side to the resolution and crop the centre, (R, R, 3).

    Transparent parts are laid on white; 16 bits are scaled to 8.

    Raises:
        ValueError: floating-point pixels.
    """
    image.load()
    # A damaged EXIF block is no reason to refuse sound pixels; they stay as they are stored.
    with suppress(Exception):
        ImageOps.exif_transpose(image, in_place=True)
    image = _on_white(image)
    if image.size != (resolution, resolution):
        image = ImageOps.fit(image, (resolution, resolution), Image.Resampling.BILINEAR)
    return np.asarray(image)


def read_image(path: Path, resolution: int, hint: str = "") -> Pixels:
    """One image file as `fit` makes it, (R, R, 3).

    Raises:
        QuadranasError: naming the file, if it cannot be read or decoded; with the hint.
    """
    try:
        with Image.open(path, formats=image_formats()) as image:
            return fit(image, resolution)
    except Exception as error:  # Pillow's decoders raise many kinds on a broken file
        reason = str(error) or type(error).__name__
        if isinstance(error, UnidentifiedImageError):
            reason = "not an image Pillow can read"
        elif isinstance(error, OSError) and error.strerror:
            reason = error.strerror
        raise QuadranasError(f"cannot read image {path}: {reason}", hint) from error


def _on_white(image: Image.Image) -> Image.Image:
    """The image in RGB, 8 bits, its transparent parts laid on white."""
    if image.mode.startswith("I"):  # Pillow cuts 16 bits off at 255 instead of scaling them
        grey = np.asarray(image).clip(0, 65535)
        grey = np.where(grey == image.info.get("transparency", -1), 65535, grey)
        return Image.fromarray((grey // 256).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("its floating-point pixels have no known range; store 8 or 16 bits")
    if not image.has_transparency_data:
        return image.convert("RGB")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")


@cache
def image_extensions() -> tuple[str, ...]:
    """File name extensions of the image formats that are read, each with its dot."""
    known = Image.registered_extensions().items()
    return tuple(extension for extension, name in known if name in image_formats())


@cache
def image_formats() -> tuple[str, ...]:
    """The formats Pillow decodes by itself, in the order to try them."""
    Image.init()
    others = [name for name in Image.OPEN if name not in NOT_PICTURES + COMMON_FORMATS]
    return (*COMMON_FORMATS, *others)
