"""Data: layouts, formats, splits, and what is said about bad input."""

import os
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from quadranas import data
from quadranas.data import Dataset, ImageSet, epoch_batches, load_dataset, split_halves
from quadranas.errors import QuadranasError

CIFAR10 = os.environ.get("QUADRANAS_CIFAR10", "")


def noise(seed: int, *shape: int) -> data.Pixels:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def write_classes(
    folder: Path, classes: tuple[str, ...] = ("cat", "dog"), count: int = 5, size: int = 16
) -> Path:
    """One folder per class with `count` PNG files of noise, told apart by their content."""
    for label, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            picture = Image.fromarray(noise(1000 * label + index, size, size, 3))
            picture.save(folder / name / f"{index:03}.png")
    return folder


def write_zip(path: Path, folder: Path, prefix: str = "") -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, prefix + file.relative_to(folder).as_posix())
    return path


def pixels(images: ImageSet) -> torch.Tensor:
    return images.batch(torch.arange(len(images)))


def same(first: Dataset, second: Dataset) -> bool:
    return first.class_names == second.class_names and all(
        torch.equal(a.labels, b.labels) and torch.equal(pixels(a), pixels(b))
        for a, b in ((first.train, second.train), (first.test, second.test))
    )


# Digits


def test_digits_are_the_default() -> None:
    digits = load_dataset(None, resolution=16, seed=3)
    assert (digits.name, digits.resolution) == ("digits", 16)
    assert digits.class_names == tuple("0123456789")
    assert digits.num_classes == 10
    assert len(digits.train) + len(digits.test) == 1797
    assert digits.num_skipped == 0
    batch = digits.train.batch(torch.tensor([0, 5, 2]))
    assert batch.shape == (3, 3, 16, 16)
    assert batch.dtype == torch.uint8
    assert batch.is_contiguous(memory_format=torch.channels_last)
    assert digits.train.labels.dtype == torch.int64
    share = digits.test.labels.bincount() / (
        digits.test.labels.bincount() + digits.train.labels.bincount()
    )
    assert (share - 0.2).abs().max() < 0.01
    assert pixels(digits.train).max() == 255


def test_the_split_of_digits_depends_on_the_seed_alone() -> None:
    assert same(load_dataset(None, resolution=8), load_dataset(None, resolution=8))
    assert not same(load_dataset(None, resolution=8), load_dataset(None, resolution=8, seed=1))


def test_digits_may_be_enlarged_more_than_a_users_images() -> None:
    assert load_dataset(None, resolution=40).train.batch(torch.tensor([0])).shape[-1] == 40


def test_mean_and_std_are_those_of_the_training_pixels() -> None:
    digits = load_dataset(None, resolution=8)
    values = pixels(digits.train).double() / 255
    assert digits.mean == pytest.approx(values.mean((0, 2, 3)).tolist(), abs=1e-9)
    spread = values.var((0, 2, 3), correction=0).sqrt()
    assert digits.std == pytest.approx(spread.tolist(), abs=1e-9)


def test_images_of_one_colour_can_still_be_normalised(tmp_path: Path) -> None:
    write_classes(tmp_path)
    for file in tmp_path.rglob("*.png"):
        Image.new("RGB", (16, 16), (10, 20, 30)).save(file)
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


def test_test_is_preferred_to_val_and_neither_trains(tmp_path: Path) -> None:
    for split, count in (("Train", 5), ("test", 2), ("val", 3)):
        write_classes(tmp_path / split, count=count)
    pets = load_dataset(tmp_path, resolution=16)
    assert (len(pets.train), len(pets.test)) == (10, 4)


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


def test_a_folder_named_train_alone_is_looked_through(tmp_path: Path) -> None:
    write_classes(tmp_path / "train", count=5)
    assert len(load_dataset(tmp_path, resolution=16).train) == 8


def test_a_class_may_be_named_train(tmp_path: Path) -> None:
    write_classes(tmp_path, classes=("car", "train"))
    assert load_dataset(tmp_path, resolution=16).class_names == ("car", "train")


def test_two_zips(tmp_path: Path) -> None:
    train = write_zip(tmp_path / "train.zip", write_classes(tmp_path / "a", count=3))
    val = write_zip(tmp_path / "val.zip", write_classes(tmp_path / "b", count=2), "test/")
    pets = load_dataset(str(train), val=str(val), resolution=16)
    assert (len(pets.train), len(pets.test), pets.name) == (6, 4, "train")


def test_hidden_and_other_files_are_ignored(tmp_path: Path) -> None:
    root = write_classes(tmp_path / "a")
    before = load_dataset(root, resolution=16)
    for name in (".hidden/x.png", "__MACOSX/cat/._0.png", "cat/.0.png", "cat/Thumbs.db", "a.txt"):
        (root / name).parent.mkdir(exist_ok=True, parents=True)
        (root / name).write_bytes(b"not an image")
    (root / "cat" / "figure.eps").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0")
    assert same(before, load_dataset(root, resolution=16))
    archive = write_zip(tmp_path / "a.zip", root)
    assert same(before, load_dataset(archive, resolution=16))


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
    expected = torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)[:, 4:20]
    pets = load_dataset(root, val=root, resolution=16)
    found = pets.train.batch(torch.tensor([3]))[0]
    assert (found.float() - expected.float()).abs().mean() < 6  # JPEG and WebP are lossy


def test_a_palette_with_transparency_warns_of_nothing(tmp_path: Path) -> None:
    root = write_classes(tmp_path)
    picture = Image.fromarray(noise(0, 16, 16, 3)).quantize(8)
    picture.save(root / "cat" / "p.png", transparency=bytes(range(0, 256, 32)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_dataset(root, resolution=16)


def test_sixteen_bits_are_scaled_to_eight(tmp_path: Path) -> None:
    root = write_classes(tmp_path, count=3)
    deep = np.arange(256, dtype=np.uint16).reshape(16, 16) * 256
    Image.fromarray(deep).save(root / "cat" / "z.png")
    found = load_dataset(root, val=root, resolution=16).train.batch(torch.tensor([3]))
    assert torch.equal(found[0, 0].flatten(), torch.arange(256, dtype=torch.uint8))


@pytest.mark.parametrize("size", [(64, 128), (128, 64), (48, 48), (16, 24), (8, 40)])
def test_shorter_side_is_resized_and_the_centre_cropped(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    root = write_classes(tmp_path)
    x, y = np.meshgrid(np.linspace(0, 255, size[0]), np.linspace(0, 255, size[1]))
    picture = Image.fromarray(np.stack([x, y, x], -1).astype(np.uint8))
    picture.save(root / "cat" / "z.png")
    scale = 32 / min(size)
    resized = picture.resize(
        (round(size[0] * scale), round(size[1] * scale)), Image.Resampling.BILINEAR
    )
    left, top = (resized.width - 32) // 2, (resized.height - 32) // 2
    expected = np.array(resized.crop((left, top, left + 32, top + 32))).astype(int)
    pets = load_dataset(root, val=root, resolution=32)
    found = pets.train.batch(torch.tensor([5]))[0].permute(1, 2, 0).numpy()
    assert np.abs(found - expected).max() <= 3


# The test split stays shut


def count_decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that grows by one for each image decoded."""
    decoded: list[int] = []
    fit = data._fit

    def fit_and_count(image: Image.Image, resolution: int) -> data.Pixels:
        decoded.append(1)
        return fit(image, resolution)

    monkeypatch.setattr(data, "_fit", fit_and_count)
    return decoded


def test_test_images_are_decoded_at_first_use_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_classes(tmp_path / "train", count=3)
    write_classes(tmp_path / "test", count=2)
    decoded = count_decoded(monkeypatch)
    pets = load_dataset(tmp_path, resolution=16)
    pets.train.batch(torch.tensor([0]))
    assert len(decoded) == 6
    first = pets.test.batch(torch.tensor([0, 3]))
    assert torch.equal(first, pets.test.batch(torch.tensor([0, 3])))
    assert len(decoded) == 10


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("resolution", [16, 64])
def test_beyond_the_memory_limit_images_are_decoded_on_demand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packed: bool, resolution: int
) -> None:
    path = write_classes(tmp_path / "a", count=20)
    path = write_zip(tmp_path / "a.zip", path) if packed else path
    kept = load_dataset(path, resolution=resolution)
    monkeypatch.setattr(data, "MEMORY_LIMIT_BYTES", 100)
    on_demand = load_dataset(path, resolution=resolution)
    assert same(kept, on_demand)
    assert kept.mean == on_demand.mean
    decoded = count_decoded(monkeypatch)
    on_demand.train.batch(torch.tensor([1, 2, 1]))
    assert len(decoded) == 3


# Corrupt images


def truncate(file: Path) -> None:
    """Leave the header whole and cut the pixels."""
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])


def bomb(file: Path) -> None:
    """A PNG that claims 60000 x 60000 pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0))
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"") + chunk(b"IEND", b""))


def text(file: Path) -> None:
    file.write_text("<html>404</html>")


def empty(file: Path) -> None:
    file.write_bytes(b"")


def postscript(file: Path) -> None:
    file.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 16\n%%EndComments\n")


def floating(file: Path) -> None:
    Image.fromarray(np.ones((16, 16), dtype=np.float32)).save(file, "TIFF")


@pytest.mark.parametrize("spoil", [truncate, bomb, text, empty, postscript, floating])
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
        monkeypatch.setattr(data, "MEMORY_LIMIT_BYTES", 100)
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


def test_a_corrupt_test_image_with_a_good_header_is_named_when_met(tmp_path: Path) -> None:
    write_classes(tmp_path / "train")
    write_classes(tmp_path / "test")
    truncate(tmp_path / "test" / "cat" / "001.png")
    pets = load_dataset(tmp_path, resolution=16)
    with pytest.raises(QuadranasError, match=r"corrupt image test/cat/001\.png.*truncated"):
        pets.test.batch(torch.tensor([0]))


def test_a_damaged_zip_member_fails_its_checksum(tmp_path: Path) -> None:
    root = write_classes(tmp_path / "a")
    for file in root.rglob("*.png"):
        Image.open(file).save(file.with_suffix(".bmp"))  # a BMP shows no damage by itself
        file.unlink()
    path = write_zip(tmp_path / "a.zip", root)
    content = bytearray(path.read_bytes())
    content[content.find(b"cat/000.bmp") + 200] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(QuadranasError, match=r"corrupt image cat/000\.bmp in .*Bad CRC-32"):
        load_dataset(path, val=path, resolution=16)


def test_a_zip_member_that_unpacks_too_large_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_zip(tmp_path / "a.zip", write_classes(tmp_path / "a"))
    monkeypatch.setattr(data, "MAX_FILE_BYTES", 100)
    with pytest.raises(QuadranasError, match=r"unpacks to .* bytes, at most 100 are accepted"):
        load_dataset(path, resolution=16)


def test_a_file_that_vanished_is_not_called_corrupt(tmp_path: Path) -> None:
    write_classes(tmp_path / "train")
    write_classes(tmp_path / "test")
    pets = load_dataset(tmp_path, resolution=16, skip_corrupt=True)
    (tmp_path / "test" / "dog" / "001.png").unlink()
    with pytest.raises(QuadranasError, match=r"cannot read image test/dog/001\.png.*No such file"):
        pixels(pets.test)


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


def differing_classes(root: Path) -> Path:
    write_classes(root / "train", classes=("cat", "dog"))
    write_classes(root / "val", classes=("cat", "dogs"))
    return root


def too_small(root: Path) -> Path:
    write_classes(root)
    Image.new("RGB", (40, 7)).save(root / "dog" / "tiny.png")
    return root


def two_of_a_class(root: Path) -> Path:
    return write_classes(root, count=2)


def one_to_train(root: Path) -> Path:
    write_classes(root / "train", count=1)
    write_classes(root / "test", count=1)
    return root


def torn_zip(root: Path) -> Path:
    path = write_zip(root.parent / "a.zip", write_classes(root))
    truncate(path)
    return path


def no_zip(root: Path) -> Path:
    path = root.parent / "a.tar"
    path.write_bytes(b"ustar" * 100)
    return path


BAD_INPUTS = [
    (no_path, r"--data .*absent does not exist", "Accepted: a folder or a zip"),
    (empty_folder, r"--data .* holds no images", "Accepted: a folder or a zip"),
    (only_text, r"--data .* holds no images", "one folder of images per class"),
    (loose_images, r"--data .* has no class folders", "one folder of images per class"),
    (one_class, r"has only one class, 'cat'; 2 are needed", "per class"),
    (class_without_images, r"class folder 'emu' of .* has no images", "per class"),
    (zipped_class_without_images, r"class folder 'emu' of .*a\.zip has no images", "per class"),
    (image_too_deep, r"image dog/puppy/000\.png of .* inside its class folder", "per class"),
    (no_held_out, r"has train/ but neither test/ nor val/", "Accepted"),
    (flat_splits, r"has (train, test|test, train) without class folders", "Accepted"),
    (differing_classes, r"differ; only in training: dog; only in test: dogs", "same class"),
    (too_small, r"dog/tiny\.png in .* too small: 40 x 7 pixels.* 32 needs 8", "to 28 or less"),
    (two_of_a_class, r"too few training images in .*'cat' has 1, at least 2", "Add images"),
    (one_to_train, r"too few training images in .*'cat' has 1, at least 2", "Add images"),
    (torn_zip, r"a\.zip is not a zip file, or a torn one", "pack it again"),
    (no_zip, r"a\.tar is not a zip file, or a torn one", "Accepted"),
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
        load_dataset(path, resolution=32)
    assert hint in caught.value.hint


def test_images_a_quarter_of_the_resolution_are_fine(tmp_path: Path) -> None:
    assert load_dataset(write_classes(tmp_path, size=8), resolution=32).resolution == 32


def test_too_small_is_not_corrupt(tmp_path: Path) -> None:
    with pytest.raises(QuadranasError, match="too small"):
        load_dataset(too_small(tmp_path), resolution=32, skip_corrupt=True)


def test_val_needs_data_and_is_checked_too(tmp_path: Path) -> None:
    with pytest.raises(QuadranasError, match="--val x needs --data"):
        load_dataset(None, val="x", resolution=8)
    root = write_classes(tmp_path / "a")
    with pytest.raises(QuadranasError, match=r"--val .*absent does not exist"):
        load_dataset(root, val=tmp_path / "absent", resolution=16)
    other = write_classes(tmp_path / "b", classes=("cat", "dog", "emu"))
    with pytest.raises(QuadranasError, match="differ; only in test: emu"):
        load_dataset(root, val=other, resolution=16)
    both = tmp_path / "c"
    write_classes(both / "train")
    write_classes(both / "val")
    with pytest.raises(QuadranasError, match=r"so --val .* is ambiguous"):
        load_dataset(both, val=root, resolution=16)


def test_skipping_may_leave_too_few_images(tmp_path: Path) -> None:
    root = write_classes(tmp_path, count=2)
    text(root / "dog" / "000.png")
    with pytest.raises(QuadranasError, match=r"'dog' has 1 \(1 corrupt skipped\)"):
        load_dataset(root, val=root, resolution=16, skip_corrupt=True)


# Halves and batches

LABELS = st.lists(st.integers(0, 5), max_size=60).map(
    lambda drawn: torch.tensor([*drawn, *drawn, 0, 0, 3, 3], dtype=torch.int64)
)


@given(labels=LABELS, seed=st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_halves_are_disjoint_complete_stratified_and_repeatable(
    labels: torch.Tensor, seed: int
) -> None:
    first, second = split_halves(labels, seed)
    assert sorted(first.tolist() + second.tolist()) == list(range(len(labels)))
    for label in labels.unique():
        counts = [int((labels[half] == label).sum()) for half in (first, second)]
        assert abs(counts[0] - counts[1]) <= 1
        assert min(counts) >= 1
    again = split_halves(labels, seed)
    assert torch.equal(first, again[0])
    assert torch.equal(second, again[1])


def test_halves_of_odd_classes_stay_balanced() -> None:
    first, second = split_halves(torch.arange(10).repeat(3), seed=0)
    assert len(first) == len(second) == 15


def test_halves_depend_on_the_seed() -> None:
    labels = torch.arange(3).repeat(20)
    assert not torch.equal(split_halves(labels, 0)[0], split_halves(labels, 1)[0])


@given(
    indices=st.lists(st.integers(0, 1000), unique=True, max_size=70),
    batch_size=st.integers(1, 20),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=60, deadline=None)
def test_batches_cover_each_index_once_and_are_full(
    indices: list[int], batch_size: int, seed: int
) -> None:
    chosen = torch.tensor(indices, dtype=torch.int64)
    batches = epoch_batches(chosen, batch_size, seed=seed)
    seen = [index for batch in batches for index in batch.tolist()]
    assert len(seen) == len(set(seen))
    assert set(seen) <= set(indices)
    if len(indices) >= batch_size:
        assert {len(batch) for batch in batches} == {batch_size}
        assert len(batches) == len(indices) // batch_size
    else:
        assert sorted(seen) == sorted(indices)
        assert len(batches) == min(1, len(indices))
    again = epoch_batches(chosen, batch_size, seed=seed)
    assert all(torch.equal(a, b) for a, b in zip(batches, again, strict=True))


def test_batches_depend_on_the_seed() -> None:
    first, second = (epoch_batches(torch.arange(50), 50, seed=seed) for seed in (0, 1))
    assert not torch.equal(first[0], second[0])


@pytest.mark.skipif(
    not CIFAR10, reason="QUADRANAS_CIFAR10 names no folder with cifar10-{train,test}.zip"
)
def test_cifar10_as_distributed() -> None:
    path = Path(CIFAR10) / "cifar10-test.zip"
    cifar = load_dataset(path, val=path, resolution=32)
    assert len(cifar.train) == len(cifar.test) == 10_000
    assert cifar.class_names[0] == "airplane"
    assert cifar.class_names[-1] == "truck"
    assert cifar.train.labels.bincount().tolist() == [1000] * 10
    assert cifar.mean == pytest.approx((0.494, 0.485, 0.450), abs=0.01)
    assert cifar.std == pytest.approx((0.247, 0.243, 0.262), abs=0.01)
    some = torch.tensor([0, 9999])
    assert torch.equal(cifar.train.batch(some), cifar.test.batch(some))
