"""Decoding of image files to pixels of a given size."""

from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from quadranas.errors import QuadranasError
from quadranas.files import require_readable

Pixels: TypeAlias = npt.NDArray[np.uint8]

COMMON_FORMATS = ("JPEG", "PNG")

NOT_PICTURES = ("EPS", "WMF", "HDF5", "MPEG", "GRIB", "BUFR")
"""Formats that Pillow only identifies, or decodes by another program (EPS by Ghostscript)."""


class CorruptImageError(QuadranasError):
    """An image that cannot be decoded; callers that skip corrupt images catch it."""


def fit(image: Image.Image, resolution: int) -> Pixels:
    """Apply the EXIF orientation, resize the shorter side to R and crop the centre, (R, R, 3).

    The background of transparent pixels is white; 16 bits are scaled to 8.

    Raises:
        ValueError: floating-point pixels.
    """
    image.load()
    # A damaged EXIF block does not make the pixels invalid; they keep their stored orientation.
    with suppress(Exception):
        ImageOps.exif_transpose(image, in_place=True)
    image = _on_white(image)
    if image.size != (resolution, resolution):
        image = ImageOps.fit(image, (resolution, resolution), Image.Resampling.BILINEAR)
    return np.asarray(image)


def read_image(path: Path, resolution: int, hint: str = "") -> Pixels:
    """Read one image file and `fit` it, (R, R, 3).

    Raises:
        QuadranasError: the file cannot be read or decoded; names the file, with the given hint.
    """
    require_readable(path, "image")
    try:
        with Image.open(path, formats=image_formats()) as image:
            return fit(image, resolution)
    except Exception as error:  # Pillow's decoders have no common error class
        reason = str(error) or type(error).__name__
        if isinstance(error, UnidentifiedImageError):
            reason = "not an image Pillow can read"
        elif isinstance(error, OSError) and error.strerror:
            reason = error.strerror
        raise QuadranasError(f"cannot read image {path}: {reason}", hint) from error


def _on_white(image: Image.Image) -> Image.Image:
    """The image in RGB with 8 bits, on a white background."""
    if image.mode.startswith("I"):  # Pillow clips 16 bits at 255 instead of scaling them
        grey = np.asarray(image).clip(0, 65535)
        grey = np.where(grey == image.info.get("transparency", -1), 65535, grey)
        return Image.fromarray((grey // 256).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("its floating-point pixels have an unknown range; store 8 or 16 bits")
    if not image.has_transparency_data:
        return image.convert("RGB")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")


@cache
def image_extensions() -> tuple[str, ...]:
    """File name extensions of the supported image formats, with their dots."""
    extensions = Image.registered_extensions().items()
    return tuple(extension for extension, name in extensions if name in image_formats())


@cache
def image_formats() -> tuple[str, ...]:
    """The formats that Pillow decodes by itself, in the order to try them."""
    Image.init()
    others = [name for name in Image.OPEN if name not in NOT_PICTURES + COMMON_FORMATS]
    return (*COMMON_FORMATS, *others)
