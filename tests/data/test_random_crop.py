"""Random resized crops: their distribution, and that fast decoding shows the same part."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from quadranas.data.decoding import Pixels
from quadranas.data.random_crop import ORIENTATION, Crop, cropped
from tests.pictures import noise


def drawn(index: int, smallest: float = 0.08, epoch: int = 0, seed: int = 0) -> Crop:
    return Crop.drawn(smallest, index=index, epoch=epoch, seed=seed)


def test_shares_and_ratios_are_in_their_ranges() -> None:
    boxes = np.array([drawn(index).box(400, 300) for index in range(2000)])
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    shares, ratios = width * height / 120_000, width / height
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2] <= 400).all()
    assert (boxes[:, 3] <= 300).all()
    assert shares.min() > 0.078
    assert ratios.min() > 0.74
    assert ratios.max() < 1.35
    # Uniform from 0.08 to 1 would have the mean 0.54; large crops fit less often.
    assert 0.4 < shares.mean() < 0.54
    assert abs(np.log(ratios).mean()) < 0.05  # 0 in a square
    left = boxes[:, 0] / np.maximum(1, 400 - width)
    assert abs(left[width < 390].mean() - 0.5) < 0.03


@pytest.mark.parametrize(("size", "expected"), [((900, 9), 12), ((9, 900), 9), ((1, 1), 1)])
def test_images_that_no_crop_fits_lose_their_ends(size: tuple[int, int], expected: int) -> None:
    left, top, right, bottom = drawn(3, smallest=1.0).box(*size)
    assert right - left == expected
    assert bottom - top == min(size[1], 12)
    assert 0 <= left <= right <= size[0]
    assert 0 <= top <= bottom <= size[1]


def test_a_crop_is_a_function_of_seed_epoch_and_index() -> None:
    assert drawn(4, epoch=2, seed=7) == drawn(4, epoch=2, seed=7)
    others = [drawn(5, epoch=2, seed=7), drawn(4, epoch=3, seed=7), drawn(4, epoch=2, seed=8)]
    assert drawn(4, epoch=2, seed=7) not in others


def waves(width: int, height: int) -> Pixels:
    """A picture without sharp edges, different everywhere."""
    y, x = np.mgrid[0:height, 0:width]
    parts = [np.sin(x / 37 + y / 91), np.cos(y / 53), np.sin(x / 71 - y / 29)]
    return (127 + 120 * np.stack(parts, -1)).astype(np.uint8)


def opened(pixels: Pixels, image_format: str, **options: object) -> Image.Image:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, image_format, **options)
    return Image.open(file)


def test_the_crop_is_that_part_of_the_image() -> None:
    pixels = waves(160, 120)
    crop = drawn(11, smallest=0.3)
    found = cropped(opened(pixels, "PNG"), crop, 32)
    box = crop.box(160, 120)
    expected = Image.fromarray(pixels).crop(box).resize((32, 32), 2)
    assert np.abs(found.astype(int) - np.asarray(expected).astype(int)).max() <= 16  # the borders
    assert np.abs(found.astype(int) - np.asarray(expected).astype(int)).mean() < 0.5


@pytest.mark.parametrize("index", range(2))
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_reduced_jpeg_shows_the_same_part(index: int, orientation: int) -> None:
    pixels, crop = waves(653, 455), drawn(index, smallest=0.5)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    image = opened(pixels, "JPEG", quality=95, exif=exif.tobytes())
    found = cropped(image, crop, 32).astype(int)
    assert image.width < 350  # not all of it was decoded
    upright = ImageOps.exif_transpose(opened(pixels, "PNG", exif=exif.tobytes()))
    part = upright.resize((32, 32), Image.Resampling.BILINEAR, box=crop.box(*upright.size))
    expected = np.asarray(part).astype(int)
    assert np.abs(found - expected).mean() < 2
    assert np.abs(found - expected).max() < 24


def test_modes_and_small_images(tmp_path: Path) -> None:
    for mode in ("L", "RGBA", "P", "CMYK"):
        image = Image.fromarray(noise(1, 20, 30, 3)).convert(mode)
        assert cropped(image, drawn(0), 64).shape == (64, 64, 3)


@pytest.mark.parametrize("image_format", ["PNG", "TIFF", "WEBP"])
def test_other_formats_are_turned_upright_too(image_format: str) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    image = opened(waves(160, 90), image_format, exif=exif.tobytes(), lossless=True)
    crop = Crop((1.0,) * 10, (9 / 16,) * 10, 0, 0)
    expected = Image.fromarray(waves(160, 90)).transpose(Image.Transpose.ROTATE_270)
    found = cropped(image, crop, 40).astype(int)
    assert np.abs(found - np.asarray(expected.resize((40, 40), 2)).astype(int)).max() <= 1
