"""Examination before training: cut-off files, images without content, and what is said of them."""

import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from quadranas.data import examination
from quadranas.data.dataset import Dataset, load_dataset
from quadranas.data.decoding import CorruptImageError
from quadranas.errors import QuadranasError
from tests.pictures import count_decoded, noise, text, truncate, write_classes, write_zip


def split(root: Path, count: int = 6, size: int = 32) -> Path:
    """A folder with train/ and test/."""
    write_classes(root / "train", count=count, size=size)
    write_classes(root / "test", count=count, size=size)
    return root


def load(path: Path, **options: object) -> Dataset:
    return load_dataset(path, resolution=16, **options)  # type: ignore[arg-type]


def flip_a_bit(file: Path) -> None:
    """Damage the pixels and leave the end whole."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0xFF
    file.write_bytes(content)


# Damaged files


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("packed", [False, True])
def test_a_cut_off_test_image_is_found_before_training(
    tmp_path: Path, image_format: str, packed: bool
) -> None:
    root = split(tmp_path / "a")
    extension = image_format.lower()
    for file in sorted(root.rglob("*.png")):
        Image.open(file).save(file.with_suffix(f".{extension}"), image_format)
        if image_format != "PNG":
            file.unlink()
    assert load(write_zip(tmp_path / "good.zip", root)).warnings == ()
    for number, share in ((1, 0.5), (3, 0.97)):
        victim = root / "test" / "cat" / f"00{number}.{extension}"
        content = victim.read_bytes()
        victim.write_bytes(content[: int(len(content) * share)])
    path = write_zip(tmp_path / "a.zip", root) if packed else root
    with pytest.raises(CorruptImageError) as caught:
        load(path)
    assert caught.value.message.startswith("2 of 24 images cannot be used:\n  corrupt image test/")
    assert "skip corrupt images with --skip-corrupt" in caught.value.hint
    assert caught.value.members == tuple(f"test/cat/00{n}.{extension}" for n in (1, 3))
    assert load(path, skip_corrupt=True).num_skipped == 2


def test_files_with_bytes_after_their_end_are_whole(tmp_path: Path) -> None:
    root = split(tmp_path)
    for index, file in enumerate(sorted(root.rglob("*.png"))):
        if index % 2:
            Image.open(file).save(file.with_suffix(".jpg"))
            file.unlink()
            file = file.with_suffix(".jpg")
        with file.open("ab") as opened:
            opened.write(b"\0" * 10 if index % 3 else b"appended by a camera" * 100)
    assert load(root).num_skipped == 0


def test_all_faulty_images_are_listed_up_to_a_number(tmp_path: Path) -> None:
    root = split(tmp_path, count=30)
    for file in sorted(root.rglob("*/cat/*.png")):
        text(file)
    with pytest.raises(CorruptImageError) as caught:
        load(root)
    first, *lines, last = caught.value.message.split("\n")
    assert (first, last) == ("60 of 120 images cannot be used:", "  and 40 more")
    assert len(lines) == 20
    assert len(caught.value.members) == 60


def test_small_and_corrupt_images_are_listed_together(tmp_path: Path) -> None:
    root = split(tmp_path)
    text(root / "train" / "cat" / "001.png")
    for name, side in (("002", 3), ("003", 2)):
        Image.new("RGB", (40, side)).save(root / "test" / "dog" / f"{name}.png")
    with pytest.raises(CorruptImageError, match="3 of 24 images cannot be used") as caught:
        load(root)
    assert "--skip-corrupt. Lower the training resolution to 8 or less" in caught.value.hint
    with pytest.raises(QuadranasError, match="2 of 24 images cannot be used") as refused:
        load(root, skip_corrupt=True)
    assert "--skip-corrupt" not in refused.value.hint


def test_pixels_are_decoded_in_full_on_request(tmp_path: Path) -> None:
    root = split(tmp_path, size=64)
    flip_a_bit(root / "test" / "cat" / "001.png")
    assert len(load(root).test) == 12
    with pytest.raises(CorruptImageError, match=r"corrupt image test/cat/001\.png"):
        load(root, verify="full")


def test_few_images_are_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = split(tmp_path, size=64)
    decoded = count_decoded(monkeypatch, examination)
    load(root)
    assert decoded == []
    load(root, verify="full")
    assert len(decoded) == 24


def test_a_git_lfs_pointer_is_named(tmp_path: Path) -> None:
    root = split(tmp_path)
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    (root / "train" / "cat" / "001.png").write_text(pointer)
    with pytest.raises(CorruptImageError, match=r"cat/001\.png in .*: a Git LFS pointer; .*pull"):
        load(root)


# Images without content


def sixteen_bits(file: Path, factor: int = 1) -> None:
    values = np.asarray(Image.open(file).convert("L")).astype(np.uint16) * factor
    Image.fromarray(values).save(file)


def test_images_of_one_colour_are_counted_and_named(tmp_path: Path) -> None:
    root = split(tmp_path)
    Image.new("RGB", (300, 300), (9, 8, 7)).save(root / "train" / "cat" / "001.png")
    Image.new("L", (300, 300), 255).save(root / "test" / "dog" / "002.jpg", quality=100)
    (warning,) = load(root).warnings
    assert warning.startswith("2 of 25 images are of one colour only (train/cat/001.png in ")
    assert "test/dog/002.jpg" in warning


@pytest.mark.parametrize(("factor", "limit"), [(1, 256), (4, 1024), (16, 4096)])
def test_sixteen_bit_files_of_fewer_bits_are_counted(
    tmp_path: Path, factor: int, limit: int
) -> None:
    root = split(tmp_path)
    for name in ("train/cat/001.png", "train/dog/003.png", "test/dog/003.png"):
        sixteen_bits(root / name, factor)
    sixteen_bits(root / "test" / "cat" / "001.png", 257)
    (warning,) = load(root).warnings
    assert warning.startswith("3 of 24 images are black or nearly black: 16-bit files with values")
    assert "save them as 8 bits" in warning


def test_masks_are_counted_as_dark(tmp_path: Path) -> None:
    root = split(tmp_path)
    Image.fromarray(noise(0, 32, 32) % 2).save(root / "train" / "cat" / "001.png")
    (warning,) = load(root).warnings
    assert warning.startswith("1 of 24 images is nearly black: no value above 15 of 255 (train/c")


def blacken(file: Path) -> None:
    Image.new("RGB", (32, 32)).save(file)


def whiten(file: Path) -> None:
    Image.new("LA", (32, 32)).save(file)


@pytest.mark.parametrize(
    ("spoil", "said", "hint"),
    [
        (sixteen_bits, "black: they have 16 bits, of which only the lower 8 are used", "8-bit"),
        (blacken, "of one colour, black\n", "how the images were written"),
        (whiten, r"of one colour, RGB \(255, 255, 255\)", "how the images were written"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_training_images_of_the_same_colour_are_refused(
    tmp_path: Path, spoil: Callable[[Path], None], said: str, hint: str, packed: bool
) -> None:
    root = split(tmp_path / "a")
    for file in sorted(root.rglob("*.png")):
        spoil(file)
    path = write_zip(tmp_path / "a.zip", root) if packed else root
    with pytest.raises(QuadranasError, match=rf"all 12 training images in .*{said}") as caught:
        load(path)
    assert hint in caught.value.hint


# Files that are left out


def test_files_that_are_left_out_are_counted(tmp_path: Path) -> None:
    root = split(tmp_path / "a")
    cats = root / "train" / "cat"
    for name in ("1.heic", "2.HEIC", "3.txt", "no extension"):
        (cats / name).write_bytes(b"")
    for index in range(3):
        (cats / f"annex{index}.png").symlink_to(f"/nowhere/{index}.png")
    (root / "train" / "emu").symlink_to("/nowhere/emu")
    (cats / "itself.png").symlink_to("itself.png")
    (root / "train" / "labels.csv").write_bytes(b"")
    Image.new("RGB", (16, 16)).save(root / "train" / "loose.png")
    (warning,) = load(root).warnings
    assert warning == (
        f"left out of {root}: 5 links that lead nowhere, 1 image outside class folders, "
        "4 files ignored for their extension (2 .heic, 1 without one, 1 .txt)"
    )


def test_links_in_a_zip_are_counted(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", write_classes(tmp_path / "a"))
    with zipfile.ZipFile(path, "a") as archive:
        link = zipfile.ZipInfo("cat/link.png")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "000.png")
        archive.writestr("cat/notes.txt", "")
    (warning,) = load(path).warnings
    assert "1 link that leads nowhere, 1 file ignored for its extension (1 .txt)" in warning


def test_links_alone_are_said_to_lead_nowhere(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").symlink_to("/nowhere/1.png")
    with pytest.raises(QuadranasError, match=r"contains no files .*; left out: 2 links that lead"):
        load(tmp_path)
    write_classes(tmp_path, classes=("emu",))
    with pytest.raises(QuadranasError, match=r"'cat' of .* no images; left out: 1 link that"):
        load(tmp_path)


def test_other_files_alone_are_named_by_extension(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.HEIC").write_bytes(b"")
    with pytest.raises(QuadranasError, match=r"2 files ignored for their extension \(2 \.heic\)"):
        load(tmp_path)


def test_truncated_training_images_beyond_memory_are_found_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quadranas.data.dataset.MEMORY_LIMIT_BYTES", 100)
    root = split(tmp_path, count=40)
    truncate(root / "train" / "dog" / "013.png")
    with pytest.raises(CorruptImageError, match=r"corrupt image train/dog/013\.png"):
        load(root)
