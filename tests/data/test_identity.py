"""The same images by another path are the same; replaced, added and removed ones are not."""

import os
import shutil
from pathlib import Path

import pytest
import torch

from quadranas.data import identity
from quadranas.data.dataset import Dataset, load_dataset
from quadranas.data.digests import digest_of
from quadranas.data.identity import DataIdentity, EarlierData, substituted
from quadranas.errors import QuadranasError
from tests.pictures import pixels, same, text, write_classes, write_zip


def load(path: Path, earlier: EarlierData | None = None, *, skip: bool = False) -> Dataset:
    """A data set with all its pixels in memory."""
    dataset = load_dataset(path, resolution=16, skip_corrupt=skip, earlier=earlier)
    pixels(dataset.test)
    return dataset


def begun(path: Path, *corrupt: str, skip: bool = False) -> EarlierData:
    """The record of a run that was begun with some images, as read from its file."""
    dataset = load(path, skip=skip)
    assert dataset.files is not None
    identity = dataset.files.identity()
    stored = DataIdentity.model_validate(identity.model_dump(mode="json"))
    assert stored == identity
    statistics = (dataset.mean, dataset.std)
    return EarlierData(Path("run"), stored, frozenset(corrupt), statistics)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_classes(tmp_path / "data", count=10)


def packed(data: Path) -> Path:
    return write_zip(data.with_suffix(".zip"), data)


@pytest.mark.parametrize("kind", [Path, packed])
def test_moved_images_are_the_same(data: Path, kind: type[Path]) -> None:
    path = kind(data)
    earlier, before = begun(path), load(path)
    moved = path.rename(path.with_name(f"moved{path.suffix}"))
    after = load(moved, earlier)
    assert same(before, after)
    assert (after.mean, after.std, after.num_skipped) == (before.mean, before.std, 0)


def test_every_difference_is_named(data: Path) -> None:
    earlier = begun(data)
    shutil.copy(data / "cat" / "000.png", data / "dog" / "003.png")
    (data / "cat" / "001.png").unlink()
    for number in range(5):
        shutil.copy(data / "cat" / "000.png", data / "dog" / f"new{number}.png")
    with pytest.raises(QuadranasError) as caught:
        load(data, earlier)
    assert caught.value.message == (
        "cannot resume run: its data have changed since it was begun; images: "
        "1 changed (dog/003.png), 1 missing (cat/001.png), "
        "5 new (dog/new0.png, dog/new1.png, dog/new2.png and 2 more)"
    )


def test_images_of_the_same_size_in_a_zip(data: Path) -> None:
    path = packed(data)
    earlier = begun(path)
    first, second = (data / "cat" / "000.png", data / "cat" / "001.png")
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)
    with pytest.raises(QuadranasError, match=r"2 changed \(cat/000.png, cat/001.png\)"):
        load(packed(data), earlier)


def test_another_class_is_noticed(data: Path) -> None:
    earlier = begun(data)
    shutil.copytree(data / "cat", data / "ant")
    with pytest.raises(QuadranasError, match=r"images: 10 new \(ant/000.png"):
        load(data, earlier)


def test_the_same_names_in_two_folders(data: Path, tmp_path: Path) -> None:
    other = write_classes(tmp_path / "val", ("cat", "dog"), count=2)
    dataset = load_dataset(data, val=other, resolution=16)
    assert dataset.files is not None
    earlier = EarlierData(Path("run"), dataset.files.identity(), frozenset(), None)
    again = load_dataset(data, val=other, resolution=16, earlier=earlier)
    assert (again.mean, again.std) == (dataset.mean, dataset.std)
    shutil.copy(data / "cat" / "005.png", other / "cat" / "005.png")
    with pytest.raises(QuadranasError, match=r"1 new \(cat/005.png\)"):
        load_dataset(data, val=other, resolution=16, earlier=earlier)


@pytest.mark.parametrize("removed", [True, False])
def test_images_that_turned_out_to_be_corrupt_are_replaced_or_left_out(
    data: Path, removed: bool
) -> None:
    before = load(data)
    assert before.files is not None
    train, test = before.files.train.members[0], before.files.test.members[1]
    earlier = begun(data, train, test)
    for name in (train, test):
        (data / name).unlink() if removed else text(data / name)
    after = load(data, earlier, skip=not removed)
    assert torch.equal(after.train.labels, before.train.labels)
    expected = pixels(before.train).clone()
    expected[0] = expected[1]
    assert torch.equal(pixels(after.train), expected)
    assert torch.equal(after.test.batch(torch.tensor([0])), before.test.batch(torch.tensor([0])))
    assert len(after.test) == len(before.test) - 1
    assert after.num_skipped == 2
    assert after.files is not None
    assert after.files.skipped == (train, test)
    assert (after.mean, after.std) == (before.mean, before.std)


def test_images_skipped_from_the_beginning_stay_out(data: Path) -> None:
    text(data / "cat" / "004.png")
    before = load(data, skip=True)
    earlier = begun(data, skip=True)
    after = load(data, earlier, skip=True)
    assert same(before, after)
    assert after.num_skipped == before.num_skipped == 1


def test_names_that_are_not_utf8(data: Path) -> None:
    name = os.fsdecode(b"\xff.png")
    (data / "cat" / "003.png").rename(data / "cat" / name)
    assert same(load(data), load(data, begun(data)))


def test_substitutes_are_the_next_of_their_class() -> None:
    assert substituted([0, 2, 4], [0, 0, 0, 1, 1]) == [0, 2, 2, 4, 4]
    assert substituted([0, 3], [0, 0, 0, 1, 1]) == [0, 0, 0, 3, 3]
    assert substituted([0, 1], [0, 0, 1]) == [0, 1]


def test_a_sampled_digest_reads_blocks_from_start_to_end(tmp_path: Path) -> None:
    path = tmp_path / "large"
    content = bytearray(os.urandom(300_000))
    path.write_bytes(content)
    whole, sampled = digest_of(path, whole=True), digest_of(path, whole=False)
    for position in (0, 16_383, 299_999, (300_000 - 16_384) // 3, 50_000):
        content[position] ^= 1
        path.write_bytes(content)
        assert digest_of(path, whole=True) != whole
        assert (digest_of(path, whole=False) != sampled) == (position != 50_000)
        content[position] ^= 1


# Large data, which are recorded as a whole


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "NAMED_LIMIT", 10)
    monkeypatch.setattr(identity, "BLOCK", 7)


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("kind", [Path, packed])
def test_large_data_are_recorded_as_a_whole(data: Path, kind: type[Path]) -> None:
    text(data / "dog" / "004.png")
    path = kind(data)
    before, earlier = load(path, skip=True), begun(path, skip=True)
    assert earlier.identity.train == earlier.identity.test == {}
    assert earlier.identity.skipped == ("dog/004.png",)
    moved = path.rename(path.with_name(f"moved{path.suffix}"))
    after = load(moved, earlier, skip=True)
    assert same(before, after)
    assert after.num_skipped == before.num_skipped == 1


@pytest.mark.usefixtures("large")
def test_changes_of_large_data_are_noticed(data: Path) -> None:
    earlier = begun(data)
    content = (data / "cat" / "003.png").read_bytes()
    (data / "cat" / "003.png").write_bytes(content + b"\0")
    with pytest.raises(QuadranasError, match=r"its (training|test) data have changed .* other"):
        load(data, earlier)
    (data / "cat" / "003.png").write_bytes(content)
    load(data, earlier)
    for number in range(5):
        shutil.copy(data / "cat" / "000.png", data / "dog" / f"new{number}.png")
    with pytest.raises(QuadranasError, match="20 instead of 16 images") as caught:
        load(data, earlier)
    assert "Restore the images" in caught.value.hint
