"""Both readers of a bundle's images, `run` and `infer.py`, label and refuse the same ones."""

import os
import re
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image
from torch import nn

from quadranas.commands.run import LabelledImage, run
from quadranas.deployment.bundle import SCRIPT
from quadranas.errors import QuadranasError, printable
from tests.bundles import manifest_of, toy_architecture, toy_network, write_bundle
from tests.pictures import noise, text, truncate

pytestmark = pytest.mark.usefixtures("exports")

SIZE = toy_architecture().resolution
Writer = Callable[[Path], None]


def saved(picture: Image.Image, image_format: str, **options: object) -> Writer:
    return lambda path: picture.save(path, image_format, **options)


def content(data: bytes) -> Writer:
    def write(path: Path) -> None:
        path.write_bytes(data)

    return write


def array(values: np.ndarray) -> Writer:
    def write(path: Path) -> None:
        with path.open("wb") as file:
            np.save(file, values, allow_pickle=values.dtype == object)

    return write


def cut(write: Writer) -> Writer:
    def write_and_cut(path: Path) -> None:
        write(path)
        truncate(path)

    return write_and_cut


def oriented(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return exif


def claimed(width: int, height: int) -> bytes:
    """A PNG that claims a size, without pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + checksum

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


GREY = Image.fromarray(noise(1, 24, 40))
COLOUR = Image.fromarray(noise(2, 24, 40, 3))
ALPHA = Image.fromarray(noise(3, 24, 40, 4))
PALETTE = COLOUR.quantize(200)
DEEP = Image.fromarray(noise(4, 24, 40).astype(np.uint16) * 257)
WIDE = Image.fromarray(np.linspace(-9e4, 9e4, 960).reshape(24, 40).astype(np.int32))
FLOATS = Image.fromarray(noise(5, 24, 40).astype(np.float32))
FRAMES = {"save_all": True, "append_images": [COLOUR.rotate(180)], "duration": 50}

LABELLED: dict[str, Writer] = {
    "1.png": saved(GREY.convert("1"), "PNG"),
    "1 transparent.png": saved(GREY.convert("1"), "PNG", transparency=0),
    "L.png": saved(GREY, "PNG"),
    "L transparent.png": saved(GREY, "PNG", transparency=7),
    "L 2 bits.pgm": content(b"P5 4 4 3\n" + bytes(range(4)) * 4),
    "LA.png": saved(ALPHA.convert("LA"), "PNG"),
    "P.png": saved(PALETTE, "PNG"),
    "P 2 bits.png": saved(COLOUR.quantize(4), "PNG", bits=2),
    "P transparent.png": saved(PALETTE, "PNG", transparency=5),
    "P alpha.png": saved(PALETTE, "PNG", transparency=bytes(range(200))),
    "P transparent.gif": saved(PALETTE, "GIF", transparency=5),
    "RGB.png": saved(COLOUR, "PNG"),
    "RGB transparent.png": saved(COLOUR, "PNG", transparency=COLOUR.getpixel((3, 3))),
    "RGBA.png": saved(ALPHA, "PNG"),
    "RGBA.webp": saved(ALPHA, "WEBP", lossless=True),
    "RGBA.ico": saved(ALPHA, "ICO"),
    "CMYK.jpg": saved(COLOUR.convert("CMYK"), "JPEG"),
    "CMYK.tif": saved(COLOUR.convert("CMYK"), "TIFF"),
    "YCbCr.tif": saved(COLOUR.convert("YCbCr"), "TIFF"),
    "LAB.tif": saved(Image.merge("LAB", COLOUR.split()), "TIFF"),
    "progressive.jpg": saved(COLOUR, "JPEG", progressive=True),
    "bitmap.bmp": saved(COLOUR, "BMP"),
    "I;16.png": saved(DEEP, "PNG"),
    "I;16 transparent.png": saved(DEEP, "PNG", transparency=257 * 9),
    "I;16 8 bits.png": saved(Image.fromarray(noise(6, 24, 40).astype(np.uint16)), "PNG"),
    "I;16.tif": saved(DEEP, "TIFF"),
    "I;16B.tif": content(
        b"MM\0*\0\0\0\x08\0\x09"
        + b"".join(
            struct.pack(">HHIHH", tag, 3, 1, value, 0)
            for tag, value in (
                *((256, 4), (257, 4), (258, 16), (259, 1), (262, 1), (273, 122)),
                *((277, 1), (278, 4), (279, 32)),
            )
        )
        + bytes(4)
        + np.arange(0, 64000, 4000).astype(">u2").tobytes()
    ),
    "I.tif": saved(WIDE, "TIFF"),
    "16 bits.pgm": content(b"P5 4 4 65535\n" + np.arange(0, 64000, 4000).astype(">u2").tobytes()),
    **{
        f"orientation {number}.{suffix}": saved(COLOUR, image_format, exif=oriented(number))
        for number in range(1, 9)
        for suffix, image_format in (("jpg", "JPEG"), ("png", "PNG"))
    },
    "orientation 9.jpg": saved(COLOUR, "JPEG", exif=oriented(9)),
    "damaged exif.png": saved(COLOUR, "PNG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff"),
    "1x1.png": saved(COLOUR.crop((0, 0, 1, 1)), "PNG"),
    "very wide.png": saved(COLOUR.resize((5000, 2)), "PNG"),
    "very high.png": saved(COLOUR.resize((1, 3000)), "PNG"),
    "right size.png": saved(COLOUR.resize((SIZE, SIZE)), "PNG"),
    "animated.gif": saved(COLOUR, "GIF", **FRAMES),
    "animated.webp": saved(COLOUR, "WEBP", **FRAMES),
    "animated.png": saved(COLOUR, "PNG", **FRAMES),
    "two pages.tif": saved(COLOUR, "TIFF", **FRAMES),
    "png by name.jpg": saved(COLOUR, "PNG"),
    "no extension": saved(COLOUR, "PNG"),
    os.fsdecode(b"not UTF-8 \xff.png"): saved(COLOUR, "PNG"),
    "right size.npy": array(noise(7, SIZE, SIZE, 3)),
    "other size.npy": array(noise(8, 3 * SIZE, 2 * SIZE, 3)),
    "UPPER CASE.NPY": array(noise(9, SIZE, SIZE, 3)),
    "by columns.npy": array(np.asfortranarray(noise(9, SIZE, SIZE, 3))),
    "grey.npy": array(noise(10, 20, 30)),
    "alpha.npy": array(noise(11, 20, 30, 4)),
}

REFUSED: dict[str, Writer] = {
    "F.tif": saved(FLOATS, "TIFF"),
    "cut.jpg": cut(saved(COLOUR, "JPEG")),
    "cut.png": cut(saved(COLOUR, "PNG")),
    "cut.gif": cut(saved(COLOUR, "GIF")),
    "cut.webp": cut(saved(COLOUR, "WEBP")),
    "cut.tif": cut(saved(COLOUR, "TIFF")),
    "bomb.png": content(claimed(60000, 60000)),
    "no width.png": content(claimed(0, 9)),
    "text.png": text,
    "empty.png": content(b""),
    "zeros.jpg": content(bytes(5000)),
    "postscript.eps": content(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 16\n%%EndComments\n"
    ),
    "drawing.svg": content(b"<svg xmlns='http://www.w3.org/2000/svg'/>"),
    "folder.png": Path.mkdir,
    "pipe.png": lambda path: os.mkfifo(path),
    "pipe.npy": lambda path: os.mkfifo(path),
    "missing.png": lambda path: None,
    "dangling link.png": lambda path: path.symlink_to("nowhere.png"),
    "floats.npy": array(np.zeros((SIZE, SIZE, 3))),
    "signed.npy": array(np.zeros((SIZE, SIZE, 3), dtype=np.int8)),
    "objects.npy": array(np.array([print], dtype=object)),
    "five channels.npy": array(noise(12, 20, 30, 5)),
    "no pixels.npy": array(noise(12, 0, 0, 3)),
    "scalar.npy": array(np.array(3, dtype=np.uint8)),
    "image.npy": saved(COLOUR, "PNG"),
    "array.png": array(noise(13, SIZE, SIZE, 3)),
    "empty.npy": content(b""),
}


@pytest.fixture(scope="module")
def bundle(
    tmp_path_factory: pytest.TempPathFactory, exports: Path, scramble: Callable[..., nn.Module]
) -> Path:
    pytest.importorskip("onnxruntime")
    folder = tmp_path_factory.mktemp("bundles") / "toy"
    return write_bundle(folder, manifest_of("onnx"), toy_network(scramble))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("kinds")
    for name, write in (LABELLED | REFUSED).items():
        write(folder / name)
    return {name: folder / name for name in LABELLED | REFUSED}


@pytest.fixture(scope="module")
def script(bundle: Path, images: dict[str, Path]) -> subprocess.CompletedProcess[str]:
    """What `infer.py` says about all images, in one process without this package."""
    return subprocess.run(
        [sys.executable, str(bundle / SCRIPT), *map(str, images.values())],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
    )


@pytest.fixture(scope="module")
def labelled(bundle: Path, images: dict[str, Path]) -> list[LabelledImage]:
    """What `run` says about the images that are to be labelled."""
    return list(run(bundle, [images[name] for name in LABELLED]).results)


@pytest.mark.parametrize("name", REFUSED)
def test_both_refuse(
    bundle: Path, images: dict[str, Path], script: subprocess.CompletedProcess[str], name: str
) -> None:
    path = images[name]
    with pytest.raises(QuadranasError, match=re.escape(str(path))):
        run(bundle, [path])
    assert f"cannot read image {path}: " in script.stderr
    assert f"{path}\n" not in script.stdout
    assert "Traceback" not in script.stderr
    assert script.returncode == 1


def test_both_label_alike(
    labelled: list[LabelledImage], script: subprocess.CompletedProcess[str]
) -> None:
    blocks = re.findall(r"^(\S.*)\n((?:  .*\n){5})", script.stdout, re.MULTILINE)
    assert [name for name, _ in blocks] == [printable(str(each.image)) for each in labelled]
    for (name, block), answer in zip(blocks, labelled, strict=True):
        lines = [line.strip().split("  ", 1) for line in block.splitlines()]
        assert [label for _, label in lines] == [label.label for label in answer.labels], name
        shown = [float(score.rstrip("%")) / 100 for score, _ in lines]
        expected = [label.probability for label in answer.labels]
        assert shown == pytest.approx(expected, abs=1e-4), name
    assert len({block for _, block in blocks}) > len(blocks) / 2
