"""Image files: layouts, formats, and what is said about bad input."""

import gc
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from quadranas.data import source
from quadranas.data.decoding import CorruptImageError, Pixels
from quadranas.data.image_files import ImageFiles
from quadranas.data.listing import find_splits
from quadranas.errors import QuadranasError
from tests.pictures import noise, text, truncate, write_classes, write_zip


def decode(files: ImageFiles, resolution: int = 16) -> Pixels:
    """The pixels of every image, none of which may be corrupt."""
    pixels = np.zeros((len(files), resolution, resolution, 3), dtype=np.uint8)
    assert files.sift(resolution, skip_corrupt=False, out=pixels) == list(range(len(files)))
    return pixels


# Layouts


@pytest.mark.parametrize("packed", [False, True])
def test_splits_are_listed_class_by_class(tmp_path: Path, packed: bool) -> None:
    write_classes(tmp_path / "a" / "train", count=4)
    write_classes(tmp_path / "a" / "test", count=2)
    path = write_zip(tmp_path / "a.zip", tmp_path / "a", "a/") if packed else tmp_path / "a"
    train, test = find_splits(path, None)
    assert test is not None
    prefix = "a/" if packed else ""
    assert test.members == tuple(
        f"{prefix}test/{name}/00{index}.png" for name in ("cat", "dog") for index in (0, 1)
    )
    assert (train.class_names, train.labels.tolist()) == (("cat", "dog"), [0] * 4 + [1] * 4)
    assert np.array_equal(decode(train)[5], noise(1001, 16, 16, 3))
    assert np.array_equal(decode(test.select([3, 0]))[0], noise(1001, 16, 16, 3))


def test_class_folders_alone_come_without_a_test_split(tmp_path: Path) -> None:
    train, test = find_splits(write_classes(tmp_path), None)
    assert (len(train), test) == (10, None)


def test_test_is_preferred_to_val_and_neither_trains(tmp_path: Path) -> None:
    for split, count in (("Train", 5), ("test", 2), ("val", 3)):
        write_classes(tmp_path / split, count=count)
    train, test = find_splits(tmp_path, None)
    assert test is not None
    assert (len(train), len(test)) == (10, 4)


def test_a_folder_named_train_alone_is_looked_through(tmp_path: Path) -> None:
    write_classes(tmp_path / "train", count=5)
    train, test = find_splits(tmp_path, None)
    assert (len(train), test) == (10, None)


def test_a_class_may_be_named_train(tmp_path: Path) -> None:
    files, _ = find_splits(write_classes(tmp_path, classes=("car", "train")), None)
    assert files.class_names == ("car", "train")


def test_hidden_and_other_files_are_ignored(tmp_path: Path) -> None:
    root = write_classes(tmp_path / "a")
    before, _ = find_splits(root, None)
    for name in (".hidden/x.png", "__MACOSX/cat/._0.png", "cat/.0.png", "cat/Thumbs.db", "a.txt"):
        (root / name).parent.mkdir(exist_ok=True, parents=True)
        (root / name).write_bytes(b"not an image")
    (root / "cat" / "figure.eps").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0")
    (root / "cat" / "png").write_bytes(b"no extension")
    assert find_splits(root, None)[0].members == before.members
    archive = write_zip(tmp_path / "a.zip", root)
    assert find_splits(archive, None)[0].members == before.members


# Formats


@pytest.mark.parametrize(
    ("mode", "file_name"),
    [
        ("L", "a.png"),
        ("LA", "a.png"),
        ("1", "a.png"),
        ("RGBA", "a.PNG"),
        ("P", "a.gif"),
        ("RGB", "a.jpg"),
        ("CMYK", "a.jpeg"),
        ("RGB", "a.bmp"),
        ("L", "a.tif"),
        ("RGB", "a.webp"),
        ("L", "a.pgm"),
    ],
)
def test_any_format_becomes_three_channels(tmp_path: Path, mode: str, file_name: str) -> None:
    root = write_classes(tmp_path, count=3)
    y, x = np.mgrid[0:24, 0:16].astype(np.uint8) * 8
    picture = Image.fromarray(np.stack([x, y, x // 2 + y // 2], -1)).convert(mode)
    picture.save(root / "cat" / file_name)
    expected = np.array(picture.convert("RGB"))[4:20].astype(int)
    found = decode(find_splits(root, None)[0])[3]
    assert np.abs(found - expected).mean() < 6  # JPEG and WebP are lossy


# Corrupt images


def bomb(file: Path) -> None:
    """A PNG that claims 60000 x 60000 pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0))
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"") + chunk(b"IEND", b""))


def empty(file: Path) -> None:
    file.write_bytes(b"")


def postscript(file: Path) -> None:
    file.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 16\n%%EndComments\n")


def floating(file: Path) -> None:
    Image.fromarray(np.ones((16, 16), dtype=np.float32)).save(file, "TIFF")


@pytest.mark.parametrize("spoil", [truncate, bomb, text, empty, postscript, floating])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("keep", [False, True])
def test_a_corrupt_image_is_named_or_left_out(
    tmp_path: Path, spoil: Callable[[Path], None], packed: bool, keep: bool
) -> None:
    root = write_classes(tmp_path / "a", count=4)
    good = decode(find_splits(root, None)[0])
    spoil(root / "dog" / "002.png")
    path = write_zip(tmp_path / "a.zip", root) if packed else root
    files, _ = find_splits(path, None)
    with pytest.raises(
        CorruptImageError, match=r"corrupt image dog/002\.png in .*a(\.zip)?: "
    ) as caught:
        decode(files)
    assert "--skip-corrupt" in caught.value.hint
    pixels = np.zeros_like(good)
    sound = files.sift(16, skip_corrupt=True, out=pixels if keep else None)
    assert sound == [0, 1, 2, 3, 4, 5, 7]
    assert np.array_equal(pixels[sound], good[sound] if keep else np.zeros_like(good[sound]))
    assert np.array_equal(decode(files.select(sound)), good[sound])


def test_headers_tell_the_size_and_what_is_no_image(tmp_path: Path) -> None:
    root = write_classes(tmp_path)
    Image.fromarray(noise(0, 20, 40, 3)).save(root / "cat" / "000.png")
    truncate(root / "cat" / "000.png")
    files, _ = find_splits(root, None)
    assert files.size(0) == (40, 20)
    assert files.sift(16, skip_corrupt=False) == list(range(10))
    assert files.sift(16, skip_corrupt=True) == list(range(1, 10))
    text(root / "cat" / "001.png")
    with pytest.raises(CorruptImageError, match=r"cat/001\.png.*not an image Pillow can read"):
        files.size(1)
    with pytest.raises(CorruptImageError, match=r"cat/001\.png.*not an image Pillow can read"):
        files.sift(16, skip_corrupt=False)


@pytest.mark.parametrize("resolution", [16, 64])
def test_of_several_errors_the_first_in_order_is_raised(tmp_path: Path, resolution: int) -> None:
    root = write_classes(tmp_path, count=40)
    for name in ("cat/039.png", "dog/001.png", "cat/020.png"):
        text(root / name)
    with pytest.raises(CorruptImageError, match=r"cat/020\.png"):
        find_splits(root, None)[0].sift(resolution, skip_corrupt=False)


def test_a_damaged_zip_member_fails_its_checksum(tmp_path: Path) -> None:
    root = write_classes(tmp_path / "a")
    for file in root.rglob("*.png"):
        Image.open(file).save(file.with_suffix(".bmp"))  # a BMP shows no damage by itself
        file.unlink()
    path = write_zip(tmp_path / "a.zip", root)
    content = bytearray(path.read_bytes())
    content[content.find(b"cat/000.bmp") + 200] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(CorruptImageError, match=r"corrupt image cat/000\.bmp in .*Bad CRC-32"):
        decode(find_splits(path, None)[0])


class ForgetfulZipFile(zipfile.ZipFile):
    """Leaves its file open, as if in a reference cycle the file had been collected first."""

    def __del__(self) -> None:
        pass


def test_a_zip_is_closed_with_the_last_that_needs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_zip(tmp_path / "a.zip", write_classes(tmp_path / "a"))
    monkeypatch.setattr(zipfile, "ZipFile", ForgetfulZipFile)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        files, _ = find_splits(path, None)
        kept = files.select([3])
        del files, _
        assert np.array_equal(decode(kept)[0], noise(3, 16, 16, 3))
        del kept
        gc.collect()
    assert [str(warning.message) for warning in caught] == []


def test_a_zip_member_that_unpacks_too_large_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_zip(tmp_path / "a.zip", write_classes(tmp_path / "a"))
    monkeypatch.setattr(source, "MAX_FILE_BYTES", 100)
    files, _ = find_splits(path, None)
    with pytest.raises(CorruptImageError, match=r"unpacks to .* bytes; the limit is 100"):
        files.size(0)


def test_a_file_that_vanished_is_not_called_corrupt(tmp_path: Path) -> None:
    files, _ = find_splits(write_classes(tmp_path), None)
    (tmp_path / "dog" / "001.png").unlink()
    with pytest.raises(QuadranasError, match=r"cannot read image dog/001\.png.*No such file"):
        files.sift(16, skip_corrupt=True)


# Bad input: each is one message that names the thing


def no_path(root: Path) -> Path:
    return root / "absent"


def empty_folder(root: Path) -> Path:
    return root


def only_text(root: Path) -> Path:
    (root / "notes.txt").write_text("")
    return root


def loose_images(root: Path) -> Path:
    Image.new("RGB", (16, 16)).save(root / "a.png")
    return root


def one_class(root: Path) -> Path:
    return write_classes(root, classes=("cat",))


def class_without_images(root: Path) -> Path:
    write_classes(root)
    (root / "emu").mkdir()
    return root


def zipped_class_without_images(root: Path) -> Path:
    return write_zip(root.parent / "a.zip", class_without_images(root))


def image_too_deep(root: Path) -> Path:
    write_classes(root)
    write_classes(root / "dog", classes=("puppy",), count=1)
    return root


def no_held_out(root: Path) -> Path:
    write_classes(root / "train")
    (root / "labels").mkdir()
    return root


def flat_splits(root: Path) -> Path:
    return write_classes(root, classes=("train", "test"))


def too_small(root: Path) -> Path:
    write_classes(root)
    Image.new("RGB", (40, 7)).save(root / "dog" / "tiny.png")
    return root


def torn_zip(root: Path) -> Path:
    path = write_zip(root.parent / "a.zip", write_classes(root))
    truncate(path)
    return path


def no_zip(root: Path) -> Path:
    path = root.parent / "a.rar"
    path.write_bytes(b"ustar" * 100)
    return path


BAD_INPUTS = [
    (no_path, r"--data .*absent does not exist", "Accepted: a folder or a zip"),
    (empty_folder, r"--data .* contains no files with an image", "Accepted: a folder or a zip"),
    (only_text, r"--data .* contains no files with an image", "one folder of images per class"),
    (loose_images, r"--data .* has no class folders", "one folder of images per class"),
    (one_class, r"has only one class, 'cat'; at least 2 are needed", "per class"),
    (class_without_images, r"class folder 'emu' of .* contains no images", "per class"),
    (
        zipped_class_without_images,
        r"class folder 'emu' of .*a\.zip contains no images",
        "per class",
    ),
    (
        image_too_deep,
        r"image dog/puppy/000\.png of .* in a subfolder of its class folder",
        "per class",
    ),
    (no_held_out, r"has train/ but neither test/ nor val/", "Accepted"),
    (flat_splits, r"has (train, test|test, train) without class folders", "Accepted"),
    (
        too_small,
        r"dog/tiny\.png in .* too small: 40 x 7 pixels.* 32 needs at least 8",
        "to 28 or less",
    ),
    (torn_zip, r"a\.zip is not a zip file, or is damaged", "pack it again"),
    (no_zip, r"a\.rar is not a zip file, or is damaged", "Accepted"),
]


@pytest.mark.parametrize(
    ("write", "message", "hint"), BAD_INPUTS, ids=[write.__name__ for write, _, _ in BAD_INPUTS]
)
def test_bad_input_is_refused_in_one_message(
    tmp_path: Path, write: Callable[[Path], Path], message: str, hint: str
) -> None:
    (tmp_path / "root").mkdir()
    path = write(tmp_path / "root")
    with pytest.raises(QuadranasError, match=message) as caught:
        decode(find_splits(path, None)[0], 32)
    assert hint in caught.value.hint


def test_images_a_quarter_of_the_resolution_are_fine(tmp_path: Path) -> None:
    assert len(decode(find_splits(write_classes(tmp_path, size=8), None)[0], 32)) == 10


@pytest.mark.parametrize("skip_corrupt", [False, True])
def test_too_small_is_not_corrupt(tmp_path: Path, skip_corrupt: bool) -> None:
    files, _ = find_splits(too_small(tmp_path), None)
    with pytest.raises(QuadranasError, match="too small"):
        files.sift(32, skip_corrupt=skip_corrupt)


def test_val_is_checked_too(tmp_path: Path) -> None:
    root = write_classes(tmp_path / "a")
    with pytest.raises(QuadranasError, match=r"--val .*absent does not exist"):
        find_splits(root, tmp_path / "absent")
    both = tmp_path / "c"
    write_classes(both / "train")
    write_classes(both / "val")
    with pytest.raises(QuadranasError, match=r"so --val .* is ambiguous"):
        find_splits(both, root)
