"""Decoding: any image becomes upright, square and opaque, with three channels."""

import io
import warnings
from collections.abc import Callable

import numpy as np
import pytest
from PIL import ExifTags, Image

from quadranas.data.decoding import Pixels, fit
from tests.pictures import noise


def fit_saved(
    picture: Image.Image, resolution: int, image_format: str, **options: object
) -> Pixels:
    """What `fit` makes of a picture after a round through a file."""
    file = io.BytesIO()
    picture.save(file, image_format, **options)
    with Image.open(file) as image:
        return fit(image, resolution)


# Depth and size


def test_sixteen_bits_are_scaled_to_eight() -> None:
    deep = np.arange(256, dtype=np.uint16).reshape(16, 16) * 256
    found = fit_saved(Image.fromarray(deep), 16, "PNG")
    assert np.array_equal(found[..., 0].flatten(), np.arange(256))


@pytest.mark.parametrize("size", [(64, 128), (128, 64), (48, 48), (16, 24), (8, 40)])
def test_shorter_side_is_resized_and_the_centre_cropped(size: tuple[int, int]) -> None:
    x, y = np.meshgrid(np.linspace(0, 255, size[0]), np.linspace(0, 255, size[1]))
    picture = Image.fromarray(np.stack([x, y, x], -1).astype(np.uint8))
    scale = 32 / min(size)
    resized = picture.resize(
        (round(size[0] * scale), round(size[1] * scale)), Image.Resampling.BILINEAR
    )
    left, top = (resized.width - 32) // 2, (resized.height - 32) // 2
    expected = np.array(resized.crop((left, top, left + 32, top + 32))).astype(int)
    assert np.abs(fit(picture, 32) - expected).max() <= 3


# Orientation: the EXIF tag 0x0112 says where the stored row 0 and column 0 belong


UPRIGHT: dict[int, Callable[[Pixels], Pixels]] = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: stored.swapaxes(0, 1)[:, ::-1],
    7: lambda stored: stored.swapaxes(0, 1)[::-1, ::-1],
    8: lambda stored: stored.swapaxes(0, 1)[::-1],
}


def oriented(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return exif


@pytest.mark.parametrize("image_format", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_images_are_turned_upright(orientation: int, image_format: str) -> None:
    stored = noise(0, 16, 16, 3)
    options = {"lossless": True} if image_format == "WEBP" else {}
    exif = oriented(orientation)
    found = fit_saved(Image.fromarray(stored), 16, image_format, exif=exif, **options)
    assert np.array_equal(found, UPRIGHT[orientation](stored))


def test_an_oblong_photo_is_turned_before_it_is_cropped() -> None:
    stored = np.zeros((16, 48, 3), dtype=np.uint8)
    stored[:, 16:20] = 255  # the left edge of the centre, which the camera meant as its top
    found = fit_saved(Image.fromarray(stored), 16, "JPEG", quality=95, exif=oriented(6))
    assert found[:4].min() > 230
    assert found[5:].max() < 25


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")  # Pillow says so at opening
@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("exif", [b"Exif\0\0no TIFF header", b"Exif\0\0MM\0*\xff\xff\xff\xff"])
def test_a_damaged_exif_block_leaves_the_pixels_as_stored(exif: bytes, image_format: str) -> None:
    picture = Image.fromarray(np.full((16, 16, 3), 200, dtype=np.uint8))
    found = fit_saved(picture, 16, image_format, exif=exif)
    assert np.abs(found.astype(int) - 200).max() < 4


# Transparency


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
@pytest.mark.parametrize("image_format", ["PNG", "TIFF"])
def test_alpha_is_laid_on_white(mode: str, image_format: str) -> None:
    grey, alpha = noise(1, 16, 16), noise(2, 16, 16)
    alpha[:2], alpha[-2:] = 0, 255
    channels = [grey] * (len(mode) - 1) + [alpha]
    found = fit_saved(Image.fromarray(np.stack(channels, -1)), 16, image_format)
    share = alpha / 255
    expected = grey * share + 255 * (1 - share)
    assert np.abs(found - expected[..., None]).max() <= 1
    assert (found[:2] == 255).all()
    assert np.array_equal(found[-2:, :, 0], grey[-2:])


def test_the_colour_below_full_transparency_does_not_bleed_when_resized() -> None:
    dots = np.zeros((32, 32, 4), dtype=np.uint8)
    dots[::2, ::2] = 255
    assert (fit_saved(Image.fromarray(dots), 8, "PNG") == 255).all()


@pytest.mark.parametrize(
    ("mode", "key"), [("L", 7), ("RGB", (1, 2, 3)), ("P", 5), ("I;16", 700), ("1", 0)]
)
def test_the_transparent_colour_of_a_png_becomes_white(mode: str, key: int) -> None:
    dark = {"I;16": np.full((16, 16), 400, dtype=np.uint16)}
    picture = Image.fromarray(dark.get(mode, np.zeros((16, 16), dtype=np.uint8)))
    if mode == "P":
        picture.putpalette([0] * 768)
    elif mode == "1":
        picture = picture.point(lambda value: 255).convert("1")
    elif mode == "RGB":
        picture = picture.convert("RGB")
    picture.putpixel((3, 2), key)
    found = fit_saved(picture, 16, "PNG", transparency=key)
    assert (found[2, 3] == 255).all()
    assert np.isin(found, [0, 1, 255]).all()


def test_a_palette_may_hold_alpha() -> None:
    picture = Image.new("P", (16, 16))
    picture.putpalette([0, 0, 0, 0, 0, 0, 0, 255], "RGBA")
    picture.putpixel((3, 2), 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for found in (fit(picture, 16), fit_saved(picture, 16, "PNG")):
            assert (found[2, 3] == 0).all()
            assert (found == 255).all(-1).sum() == 255
