"""Decoding of image files to pixels of a given size.

A bundle's `infer.py` contains the functions of `PORTABLE`, so that `run` and the script accept the
same images and prepare them alike. They use NumPy and Pillow only, and import Pillow when they
need it: the script reads arrays without it.
"""

import warnings
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

from quadranas.errors import QuadranasError

if TYPE_CHECKING:
    from PIL import Image

Pixels: TypeAlias = npt.NDArray[np.uint8]

COMMON_FORMATS = ("JPEG", "PNG")

NOT_PICTURES = ("EPS", "WMF", "HDF5", "MPEG", "GRIB", "BUFR")
"""Formats that Pillow only identifies, or decodes by another program (EPS by Ghostscript)."""


class CorruptImageError(QuadranasError):
    """An image that cannot be decoded; callers that skip corrupt images catch it.

    Args:
        members: paths of the corrupt images inside their folder or zip.
    """

    def __init__(self, message: str, hint: str = "", members: tuple[str, ...] = ()) -> None:
        super().__init__(message, hint)
        self.members = members


def read_image(path: Path, resolution: int, hint: str = "") -> Pixels:
    """Read one image file or array, as `read_pixels` does.

    Raises:
        QuadranasError: the file cannot be read or decoded; names the file, with the given hint.
    """
    try:
        return read_pixels(path, resolution)
    except Exception as error:  # Pillow's decoders have no common error class
        raise QuadranasError(f"cannot read image {path}: {reason_of(error)}", hint) from error


def reason_of(error: Exception) -> str:
    """Why an image cannot be read, in words."""
    from PIL import UnidentifiedImageError

    if isinstance(error, UnidentifiedImageError):
        return "not an image Pillow can read"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


@cache
def image_extensions() -> tuple[str, ...]:
    """File name extensions of the supported image formats, with their dots."""
    from PIL import Image

    formats = image_formats()
    extensions = Image.registered_extensions().items()
    return tuple(extension for extension, name in extensions if name in formats)


def read_pixels(path: Path, resolution: int) -> "Pixels":
    """Read an image file, or an array of uint8 in a .npy file, as pixels (R, R, 3).

    Raises:
        Exception: any; Pillow's decoders have no common error class.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        raise ValueError("not a regular file")
    if path.suffix.lower() != ".npy":
        from PIL import Image

        with Image.open(path, formats=image_formats()) as image:
            return fit(image, resolution)
    with path.open("rb") as file:
        array = np.lib.format.read_array(file, allow_pickle=False)
    pixels = np.ascontiguousarray(array.astype(np.uint8, casting="equiv"))
    if pixels.ndim not in (2, 3) or not pixels.size:
        raise ValueError(f"array of shape {array.shape}; expected (H, W, 3)")
    if pixels.shape == (resolution, resolution, 3):
        return pixels
    from PIL import Image

    return fit(Image.fromarray(pixels), resolution)


@cache
def image_formats() -> tuple[str, ...]:
    """The formats that Pillow decodes by itself, in the order to try them."""
    from PIL import Image

    # Pillow warns about large images before the size at which it refuses them.
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)
    Image.init()
    others = [name for name in Image.OPEN if name not in NOT_PICTURES + COMMON_FORMATS]
    return (*COMMON_FORMATS, *others)


def fit(image: "Image.Image", resolution: int) -> "Pixels":
    """Apply the EXIF orientation, resize the shorter side to R and crop the centre, (R, R, 3).

    The background of transparent pixels is white; 16 bits are scaled to 8.

    Raises:
        ValueError: floating-point pixels.
    """
    from PIL import Image, ImageOps

    image.load()
    # A damaged EXIF block does not make the pixels invalid; they keep their stored orientation.
    with suppress(Exception):
        ImageOps.exif_transpose(image, in_place=True)
    image = on_white(image)
    if image.size != (resolution, resolution):
        image = ImageOps.fit(image, (resolution, resolution), Image.Resampling.BILINEAR)
    return np.asarray(image)


def on_white(image: "Image.Image") -> "Image.Image":
    """The image in RGB with 8 bits, on a white background."""
    from PIL import Image

    if image.mode.startswith("I"):  # Pillow clips 16 bits at 255 instead of scaling them
        grey = np.asarray(image).clip(0, 65535)
        grey = np.where(grey == image.info.get("transparency", -1), 65535, grey)
        return Image.fromarray((grey // 256).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("its floating-point pixels have an unknown range; store 8 or 16 bits")
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")


PORTABLE = (image_formats, read_pixels, fit, on_white)
"""The functions that a bundle's script contains; they need `Path`, `suppress`, `cache`, `np`,
`warnings`, `NOT_PICTURES` and `COMMON_FORMATS` only."""
