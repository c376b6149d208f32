"""Data as one: statistics, layouts, corrupt images, and the images' own resolution."""

import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from quadranas.data import dataset
from quadranas.data.dataset import Dataset, load_dataset, native_side
from quadranas.data.image_files import ImageFiles
from quadranas.errors import QuadranasError
from tests.pictures import (
    count_decoded,
    noise,
    pixels,
    same,
    text,
    truncate,
    write_classes,
    write_zip,
)

CIFAR10 = os.environ.get("QUADRANAS_CIFAR10", "")


# Statistics


def test_mean_and_std_are_those_of_the_training_pixels() -> None:
    digits = load_dataset(None, resolution=8)
    values = pixels(digits.train).double() / 255
    assert digits.mean == pytest.approx(values.mean((0, 2, 3)).tolist(), abs=1e-9)
    spread = values.var((0, 2, 3), correction=0).sqrt()
    assert digits.std == pytest.approx(spread.tolist(), abs=1e-9)


def test_images_of_one_colour_can_still_be_normalised(tmp_path: Path) -> None:
    write_classes(tmp_path)
    for file in tmp_path.rglob("*.png"):
        Image.new("RGB", (16, 16), (10, 20, 30 + 100 * (file.parent.name == "dog"))).save(file)
    assert min(load_dataset(tmp_path, resolution=16).std) >= 0.99 / 255


# Layouts


@pytest.mark.parametrize("held_out", ["test", "val"])
@pytest.mark.parametrize("packed", ["folder", "zip", "wrapped zip", "wrapped folder"])
def test_train_and_test_folders(tmp_path: Path, held_out: str, packed: str) -> None:
    root = tmp_path / "pets"
    write_classes(root / "train", count=4)
    write_classes(root / held_out, count=2)
    path = root
    if packed == "wrapped folder":
        path = root.rename(tmp_path / "inner")
        (tmp_path / "pets").mkdir()
        path = path.rename(tmp_path / "pets" / "inner").parent
    elif packed != "folder":
        path = write_zip(tmp_path / "pets.zip", root, "" if packed == "zip" else "pets/")
    pets = load_dataset(path, resolution=16)
    assert (pets.name, pets.class_names) == ("pets", ("cat", "dog"))
    assert pets.train.labels.tolist() == [0] * 4 + [1] * 4
    assert pets.test.labels.tolist() == [0] * 2 + [1] * 2
    expected = torch.from_numpy(noise(1001, 16, 16, 3)).permute(2, 0, 1)
    assert torch.equal(pets.train.batch(torch.tensor([5]))[0], expected)
    assert torch.equal(pets.test.batch(torch.tensor([3]))[0], expected)


def test_class_folders_alone_are_split_reproducibly(tmp_path: Path) -> None:
    write_classes(tmp_path / "a", count=10)
    first, second = (load_dataset(tmp_path / "a", resolution=16, seed=5) for _ in range(2))
    assert same(first, second)
    assert not same(first, load_dataset(tmp_path / "a", resolution=16, seed=6))
    assert first.train.labels.bincount().tolist() == [8, 8]
    everything = torch.cat([pixels(first.train), pixels(first.test)]).flatten(1)
    assert len(everything.unique(dim=0)) == 20
    assert same(
        first, load_dataset(write_zip(tmp_path / "z.zip", tmp_path / "a"), resolution=16, seed=5)
    )


def test_two_zips(tmp_path: Path) -> None:
    train = write_zip(tmp_path / "train.zip", write_classes(tmp_path / "a", count=3))
    val = write_zip(tmp_path / "val.zip", write_classes(tmp_path / "b", count=2), "test/")
    pets = load_dataset(str(train), val=str(val), resolution=16)
    assert (len(pets.train), len(pets.test), pets.name) == (6, 4, "train")


def test_photos_are_upright_and_on_white(tmp_path: Path) -> None:
    stored = noise(0, 16, 16, 4)
    stored[:8, :, 3], stored[8:, :, 3] = 0, 255
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # to be turned clockwise, which takes the top to the right
    root = write_classes(tmp_path)
    Image.fromarray(stored).save(root / "cat" / "000.png", exif=exif)
    found = load_dataset(root, val=root, resolution=16).train.batch(torch.tensor([0]))[0]
    expected = np.full((16, 16, 3), 255, dtype=np.uint8)
    expected[:, :8] = np.rot90(stored[..., :3], -1)[:, :8]
    assert torch.equal(found, torch.from_numpy(expected).permute(2, 0, 1))


# Corrupt images


@pytest.mark.parametrize("spoil", [truncate, text])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("on_demand", [False, True])
def test_a_corrupt_image_is_named_or_skipped_and_counted(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[[Path], None],
    packed: bool,
    on_demand: bool,
) -> None:
    root = write_classes(tmp_path / "a", count=4)
    good = load_dataset(root, val=root, resolution=16)
    spoil(root / "dog" / "002.png")
    path = write_zip(tmp_path / "a.zip", root) if packed else root
    if on_demand:
        monkeypatch.setattr(dataset, "MEMORY_LIMIT_BYTES", 100)
    with pytest.raises(
        QuadranasError, match=r"corrupt image dog/002\.png in .*a(\.zip)?: "
    ) as caught:
        pixels(load_dataset(path, val=path, resolution=16).train)
    assert "--skip-corrupt" in caught.value.hint
    pets = load_dataset(path, val=path, resolution=16, skip_corrupt=True)
    assert pets.num_skipped == 2
    assert pets.train.labels.tolist() == pets.test.labels.tolist() == [0] * 4 + [1] * 3
    rest = torch.tensor([0, 1, 2, 3, 4, 5, 7])
    assert torch.equal(pixels(pets.train), good.train.batch(rest))
    assert torch.equal(pixels(pets.test), good.train.batch(rest))


def test_a_corrupt_test_image_is_found_by_its_header_at_load(tmp_path: Path) -> None:
    write_classes(tmp_path / "train")
    write_classes(tmp_path / "test")
    text(tmp_path / "test" / "cat" / "001.png")
    with pytest.raises(QuadranasError, match=r"corrupt image test/cat/001\.png"):
        load_dataset(tmp_path, resolution=16)


def test_a_test_image_that_is_damaged_after_loading_is_named_when_met(tmp_path: Path) -> None:
    write_classes(tmp_path / "train")
    write_classes(tmp_path / "test")
    pets = load_dataset(tmp_path, resolution=16)
    truncate(tmp_path / "test" / "cat" / "001.png")
    with pytest.raises(QuadranasError, match=r"corrupt image test/cat/001\.png.*truncated"):
        pets.test.batch(torch.tensor([0]))


def test_a_file_that_vanished_is_not_called_corrupt(tmp_path: Path) -> None:
    write_classes(tmp_path / "train")
    write_classes(tmp_path / "test")
    pets = load_dataset(tmp_path, resolution=16, skip_corrupt=True)
    (tmp_path / "test" / "dog" / "001.png").unlink()
    with pytest.raises(QuadranasError, match=r"cannot read image test/dog/001\.png.*No such file"):
        pixels(pets.test)


# Bad input


def differing_classes(root: Path) -> Path:
    write_classes(root / "train", classes=("cat", "dog"))
    write_classes(root / "val", classes=("cat", "dogs"))
    return root


def two_of_a_class(root: Path) -> Path:
    return write_classes(root, count=2)


def one_to_train(root: Path) -> Path:
    write_classes(root / "train", count=1)
    write_classes(root / "test", count=1)
    return root


def load_at_16(path: Path) -> Dataset:
    return load_dataset(path, resolution=16)


Reader = Callable[[Path], object]
BAD_SPLITS = [
    (differing_classes, r"differ; only in training: dog; only in test: dogs", "same class"),
    (two_of_a_class, r"too few training images in .*'cat' has 1, at least 2", "Add images"),
    (one_to_train, r"too few training images in .*'cat' has 1, at least 2", "Add images"),
]


@pytest.mark.parametrize(
    ("write", "message", "hint"), BAD_SPLITS, ids=[write.__name__ for write, _, _ in BAD_SPLITS]
)
@pytest.mark.parametrize("read", [load_at_16, native_side])
def test_splits_that_do_not_fit_are_refused(
    tmp_path: Path, write: Callable[[Path], Path], message: str, hint: str, read: Reader
) -> None:
    path = write(tmp_path)
    with pytest.raises(QuadranasError, match=message) as caught:
        read(path)
    assert hint in caught.value.hint


@pytest.mark.parametrize("read", [load_at_16, native_side])
def test_missing_and_empty_data_are_refused(tmp_path: Path, read: Reader) -> None:
    with pytest.raises(QuadranasError, match=r"--data .*absent does not exist"):
        read(tmp_path / "absent")
    with pytest.raises(QuadranasError, match=r"--data .* contains no files with an image"):
        read(tmp_path)
    with pytest.raises(QuadranasError, match="has only one class, 'cat'; at least 2 are needed"):
        read(write_classes(tmp_path, classes=("cat",)))


def test_val_needs_data_and_is_checked_too(tmp_path: Path) -> None:
    with pytest.raises(QuadranasError, match="--val x needs --data"):
        load_dataset(None, val="x", resolution=8)
    root = write_classes(tmp_path / "a")
    with pytest.raises(QuadranasError, match=r"--val .*absent does not exist"):
        load_dataset(root, val=tmp_path / "absent", resolution=16)
    other = write_classes(tmp_path / "b", classes=("cat", "dog", "emu"))
    with pytest.raises(QuadranasError, match="differ; only in test: emu"):
        load_dataset(root, val=other, resolution=16)


def test_skipping_may_leave_too_few_images(tmp_path: Path) -> None:
    root = write_classes(tmp_path, count=2)
    text(root / "dog" / "000.png")
    with pytest.raises(QuadranasError, match=r"'dog' has 1 \(1 corrupt skipped\)"):
        load_dataset(root, val=root, resolution=16, skip_corrupt=True)


# The images' own resolution


def write_sides(folder: Path, sides: list[int], name: str = "cat") -> Path:
    """A class of images whose shorter sides are these, upright and oblong by turns."""
    (folder / name).mkdir(parents=True, exist_ok=True)
    for index, side in enumerate(sides):
        size = (side, side + 7) if index % 2 else (2 * side, side)
        Image.new("RGB", size).save(folder / name / f"{index:03}.png")
    return folder


@pytest.mark.parametrize("packed", [False, True])
def test_native_side_is_the_median_over_the_training_images(tmp_path: Path, packed: bool) -> None:
    root = tmp_path / "a"
    write_sides(root / "train", [30, 31, 90], "cat")
    write_sides(root / "train", [33, 500], "dog")
    for name in ("cat", "dog"):
        write_sides(root / "test", [8] * 9, name)
    path = write_zip(tmp_path / "a.zip", root) if packed else root
    assert native_side(str(path)) == 33


def test_native_side_knows_val_and_takes_the_lower_middle(tmp_path: Path) -> None:
    first = write_sides(write_sides(tmp_path / "a", [30, 31], "cat"), [40, 50], "dog")
    second = write_sides(write_sides(tmp_path / "b", [9], "cat"), [9], "dog")
    assert native_side(first, val=second) == 31
    with pytest.raises(QuadranasError, match=r"--val .*absent does not exist"):
        native_side(first, val=tmp_path / "absent")


def test_native_side_leaves_held_out_images_alone(tmp_path: Path) -> None:
    for label, name in enumerate(("cat", "dog")):
        (tmp_path / name).mkdir()
        for side in range(20 + label, 40, 2):  # the colour tells the side
            Image.new("RGB", (side, side), (side, side, side)).save(
                tmp_path / name / f"{side}.png"
            )
    found = set()
    for seed in range(5):
        train = load_dataset(tmp_path, resolution=16, seed=seed).train
        sides = sorted(pixels(train)[:, 0, 0, 0].tolist())
        assert native_side(tmp_path, seed=seed) == sides[(len(sides) - 1) // 2]
        found.add(native_side(tmp_path, seed=seed))
    assert len(found) > 1


def test_native_side_reads_no_more_than_200_headers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_sides(write_sides(tmp_path, list(range(10, 250)), "cat"), [200] * 160, "dog")
    asked: list[int] = []
    size = ImageFiles.size

    def size_and_note(files: ImageFiles, index: int) -> tuple[int, int]:
        asked.append(index)
        return size(files, index)

    monkeypatch.setattr(ImageFiles, "size", size_and_note)
    decoded = count_decoded(monkeypatch)
    first = native_side(root, val=root)
    assert len(set(asked)) == len(asked) == 200
    assert (asked[0], asked[-1], decoded) == (0, 399, [])
    assert native_side(root, val=root) == first
    assert asked[:200] == asked[200:]
    assert first == pytest.approx(200, abs=2)


def test_native_side_passes_over_corrupt_headers(tmp_path: Path) -> None:
    root = write_sides(write_sides(tmp_path, [40, 50, 60], "cat"), [70, 80, 90], "dog")
    text(root / "cat" / "000.png")
    truncate(root / "cat" / "001.png")
    assert native_side(root, val=root) == 70
    for file in root.rglob("*.png"):
        text(file)
    with pytest.raises(QuadranasError, match=r"corrupt image cat/000\.png"):
        native_side(root, val=root)


# CIFAR-10


@pytest.mark.skipif(
    not CIFAR10, reason="QUADRANAS_CIFAR10 names no folder with cifar10-{train,test}.zip"
)
def test_cifar10_as_distributed(tmp_path: Path) -> None:
    """Every tenth image under its own name, since ten thousand take ten seconds to decode."""
    path = tmp_path / "cifar10-test.zip"
    with (
        zipfile.ZipFile(Path(CIFAR10) / path.name) as whole,
        zipfile.ZipFile(path, "w") as tenth,
    ):
        for member in whole.infolist()[::10]:
            tenth.writestr(member, whole.read(member))
        assert len(whole.infolist()) == 10_000
    cifar = load_dataset(path, val=path, resolution=32)
    assert len(cifar.train) == len(cifar.test) == 1000
    assert cifar.class_names[0] == "airplane"
    assert cifar.class_names[-1] == "truck"
    assert cifar.train.labels.bincount().tolist() == [100] * 10
    assert cifar.mean == pytest.approx((0.494, 0.485, 0.450), abs=0.01)
    assert cifar.std == pytest.approx((0.247, 0.243, 0.262), abs=0.01)
    some = torch.tensor([0, 999])
    assert torch.equal(cifar.train.batch(some), cifar.test.batch(some))
