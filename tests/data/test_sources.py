"""What every source of images has to fulfil, whatever its files look like."""

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from quadranas.data.dataset import Dataset, load_dataset
from quadranas.data.decoding import CorruptImageError
from quadranas.data.digits import list_digits
from quadranas.data.identity import DataIdentity, EarlierData
from quadranas.data.image_files import ImageFiles
from quadranas.data.listing import find_splits
from quadranas.data.samples import Samples
from quadranas.errors import QuadranasError
from tests.data.sources import SOURCES
from tests.pictures import noise, pixels, same, truncate, write_classes

Write = Callable[[Path, Path], Path]
every_source = pytest.mark.parametrize("write", SOURCES.values(), ids=SOURCES)
CROP = 0.3


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    write_classes(tmp_path / "pictures" / "train", count=6, size=40)
    write_classes(tmp_path / "pictures" / "test", count=3, size=40)
    return tmp_path / "pictures"


def listed(path: Path) -> ImageFiles:
    return find_splits(path, None)[0]


def every_files(tmp_path: Path, pictures: Path) -> dict[str, ImageFiles]:
    """The training images of every source, and the digits."""
    found = {n: listed(write(pictures, tmp_path / n)) for n, write in SOURCES.items()}
    return found | {"digits": list_digits().select(range(0, 1797, 150))}


@every_source
def test_the_same_pictures_are_the_same_data(tmp_path: Path, pictures: Path, write: Write) -> None:
    expected = load_dataset(pictures, resolution=32)
    found = load_dataset(write(pictures, tmp_path / "data"), resolution=32)
    assert same(expected, found)
    assert (found.mean, found.std, found.warnings) == (expected.mean, expected.std, ())
    assert len({*found.files.train.members, *found.files.test.members}) == 18  # type: ignore[union-attr]


def test_a_sample_depends_on_index_epoch_and_seed_alone(tmp_path: Path, pictures: Path) -> None:
    for files in every_files(tmp_path, pictures).values():
        samples = Samples(files, 24, CROP)
        batch = samples.batch(range(len(files)), epoch=3, seed=5)
        copy: Samples = pickle.loads(pickle.dumps(samples))
        for index in (7, 2, 7):
            for one in (samples, copy):
                assert np.array_equal(one.sample(index, epoch=3, seed=5), batch[index])
        assert not np.array_equal(samples.sample(7, epoch=4, seed=5), batch[7])
        assert not np.array_equal(samples.sample(7, epoch=3, seed=6), batch[7])
        threaded = samples.batch(range(len(files)), epoch=3, seed=5, num_threads=4)
        assert np.array_equal(threaded, batch)


def test_a_copy_has_names_sizes_and_digests(tmp_path: Path, pictures: Path) -> None:
    for files in every_files(tmp_path, pictures).values():
        copy: ImageFiles = pickle.loads(pickle.dumps(files))
        assert copy.members == files.members
        assert copy.class_names == files.class_names
        for index in range(len(files)):
            assert copy.num_bytes(index) == files.num_bytes(index) > 0
            for whole in (True, False):
                assert copy.digest(index, whole=whole) == files.digest(index, whole=whole)
        digests = {files.digest(index, whole=True) for index in range(len(files))}
        assert len(digests) == len(files)


@every_source
def test_a_corrupt_image_is_named_or_skipped_and_counted(
    tmp_path: Path, pictures: Path, write: Write
) -> None:
    good = load_dataset(pictures, resolution=32)
    truncate(pictures / "train" / "cat" / "001.png")
    path = write(pictures, tmp_path / "data")
    name = listed(path).member(1)
    with pytest.raises(CorruptImageError) as caught:
        load_dataset(path, resolution=32)
    assert f"corrupt image {name} in {path}: " in caught.value.message
    assert caught.value.members == (name,)
    skipped = load_dataset(path, resolution=32, skip_corrupt=True)
    assert skipped.num_skipped == 1
    assert skipped.train.labels.tolist() == [0] * 5 + [1] * 6
    assert same_but(skipped, good, 1)


def same_but(found: Dataset, whole: Dataset, missing: int) -> bool:
    """Whether the training images are those of another data set, except for one."""
    assert found.train.samples is not None
    assert whole.train.samples is not None
    kept = [index for index in range(len(whole.train)) if index != missing]
    expected = whole.train.samples.batch(kept)
    return np.array_equal(found.train.samples.batch(range(len(kept))), expected)


def earlier(dataset: Dataset) -> EarlierData:
    """The record of a run with these data, as read from its file."""
    assert dataset.files is not None
    stored = dataset.files.identity().model_dump(mode="json")
    return EarlierData(Path("run"), DataIdentity.model_validate(stored), frozenset(), None)


@every_source
def test_moved_data_are_the_same_and_changed_ones_are_not(
    tmp_path: Path, pictures: Path, write: Write
) -> None:
    path = write(pictures, tmp_path / "data")
    before = load_dataset(path, resolution=32)
    pixels(before.test)  # while they are there
    run = earlier(before)
    moved = path.rename(path.with_name(f"moved{path.suffix}"))
    assert same(before, load_dataset(moved, resolution=32, earlier=run))
    name = listed(moved).member(2)
    pictures = moved if moved.is_dir() and write is SOURCES["folder"] else pictures
    Image.fromarray(noise(99, 40, 40, 3)).save(pictures / "train" / "cat" / "002.png")
    changed = write(pictures, tmp_path / "data")
    with pytest.raises(QuadranasError) as caught:
        load_dataset(changed, resolution=32, earlier=run)
    assert f"images: 1 changed ({name})" in caught.value.message
