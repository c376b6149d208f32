"""Batches by workers are those of the process itself, in any order and after any error."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import torch
from torch import Tensor

from quadranas.data import dataset
from quadranas.data.dataset import load_dataset
from quadranas.data.decoding import CorruptImageError
from quadranas.data.image_set import ImageSet
from quadranas.data.loader import BUFFERS, Loader, automatic_workers, share_of_workers
from quadranas.errors import QuadranasError
from tests.data.sources import SOURCES
from tests.pictures import truncate, write_classes

EPOCH, STEPS = 3, 8
CROP = 0.3


def plan(number: int) -> Tensor:
    """Four of twelve images in an order of their own in each epoch."""
    epoch, index = divmod(number, EPOCH)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(epoch))
    return order[4 * index : 4 * index + 4]


def loader(images: ImageSet, workers: int, seed: int = 5) -> Loader:
    return Loader(
        images,
        plan,
        num_steps=STEPS,
        workers=workers,
        seed=seed,
        epoch_of=lambda number: number // EPOCH,
    )


def batches(images: ImageSet, workers: int) -> list[tuple[Tensor, Tensor]]:
    with closing(loader(images, workers)) as opened:
        return [cloned(opened.batch(number)) for number in range(STEPS)]


def cloned(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """A batch that stays as it is when the workers use its memory again."""
    return batch[0].clone(), batch[1].clone()


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    write_classes(tmp_path / "pictures" / "train", count=6, size=40)
    write_classes(tmp_path / "pictures" / "test", count=3, size=40)
    return tmp_path / "pictures"


@pytest.fixture
def no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset, "MEMORY_LIMIT_BYTES", 100)


def equal(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> bool:
    return torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])


def opened(name: str, pictures: Path, folder: Path) -> ImageSet:
    if name == "digits":
        train = load_dataset(None, resolution=24).train
        return ImageSet(train.labels[:12], train.batch, samples=train.samples)
    return load_dataset(SOURCES[name](pictures, folder / "data"), resolution=24).train


@pytest.mark.slow
@pytest.mark.usefixtures("no_memory")
@pytest.mark.parametrize("name", [*SOURCES, "digits"])
def test_any_number_of_workers_gives_the_same_batches(
    tmp_path: Path, pictures: Path, name: str
) -> None:
    images = opened(name, pictures, tmp_path).with_random_crops(CROP)
    expected = batches(images, 0)
    for workers in (1, 2):
        assert all(map(equal, batches(images, workers), expected))


@pytest.mark.usefixtures("no_memory")
def test_a_worker_gives_the_same_batches_also_from_the_middle_on(pictures: Path) -> None:
    images = load_dataset(pictures, resolution=24).train
    assert not images.is_in_memory
    images = images.with_random_crops(CROP)
    expected = batches(images, 0)
    state = torch.random.get_rng_state()
    with closing(loader(images, 1)) as prepared:
        for number in (4, 5, 6, 1, 2, 7):
            found = prepared.batch(number)
            assert equal(found, expected[number])
    assert torch.equal(torch.random.get_rng_state(), state)
    assert found[0].is_contiguous(memory_format=torch.channels_last)
    assert (found[0].shape, found[0].dtype) == ((4, 3, 24, 24), torch.uint8)
    assert (found[1].shape, found[1].dtype) == ((4,), torch.int64)


@pytest.mark.usefixtures("no_memory")
def test_a_batch_of_a_worker_stays_valid_while_the_next_one_is_used(pictures: Path) -> None:
    images = load_dataset(pictures, resolution=24).train
    expected = batches(images, 0)
    with closing(loader(images, 1)) as prepared:
        last = prepared.batch(0)
        for number in range(1, STEPS):
            found = prepared.batch(number)
            time.sleep(0.05)  # the worker fills all memory that it may use
            assert equal(last, expected[number - 1])
            last = found


@pytest.mark.usefixtures("no_memory")
def test_batches_of_a_worker_use_the_same_memory_in_turn(pictures: Path) -> None:
    images = load_dataset(pictures, resolution=24).train
    with closing(loader(images, 1)) as prepared:
        places = [prepared.batch(number)[0].data_ptr() for number in range(STEPS)]
    assert len(set(places)) == BUFFERS < STEPS


def test_crops_differ_between_epochs_and_seeds(pictures: Path) -> None:
    images = load_dataset(pictures, resolution=24).train.with_random_crops(CROP)
    crops = [loader(images, 0, seed).batch(0)[0] for seed in (5, 5, 6)]
    assert torch.equal(crops[0], crops[1])
    assert not torch.equal(crops[0], crops[2])
    same = Loader(images, lambda number: plan(0), num_steps=None, workers=0, epoch_of=int)
    assert not torch.equal(same.batch(0)[0], same.batch(1)[0])


def test_images_in_memory_need_no_workers(pictures: Path) -> None:
    images = load_dataset(pictures, resolution=24).train
    with closing(loader(images, 2)) as prepared:
        assert prepared.workers == 0
        found = prepared.batch(4)
    assert torch.equal(found[0], images.batch(plan(4)))
    assert torch.equal(found[1], images.labels[plan(4)])


@pytest.mark.usefixtures("no_memory")
def test_a_corrupt_image_is_named_by_a_worker_and_the_next_batch_follows(pictures: Path) -> None:
    images = load_dataset(pictures, resolution=24).train
    good = batches(images, 0)
    names = images.samples.files.members  # type: ignore[union-attr]
    bad = int(plan(1)[2])
    truncate(pictures / names[bad])
    with closing(loader(images, 1)) as prepared:
        assert equal(prepared.batch(0), good[0])
        with pytest.raises(CorruptImageError, match=rf"corrupt image {names[bad]}") as caught:
            prepared.batch(1)
        assert caught.value.members == (names[bad],)
        assert "--skip-corrupt" in caught.value.hint
        assert equal(prepared.batch(2), good[2])


def test_images_without_a_source_are_not_cropped() -> None:
    images = ImageSet(torch.zeros(2, dtype=torch.int64), lambda indices: indices)
    assert images.with_random_crops(0) is images
    with pytest.raises(QuadranasError, match="have no source") as caught:
        images.with_random_crops(0.5)
    assert "resized_crop" in caught.value.hint


@pytest.mark.parametrize(
    ("cores", "processes", "expected"), [(1, 1, 1), (4, 1, 3), (64, 1, 8), (64, 8, 7), (4, 8, 1)]
)
def test_the_cores_decide_about_the_workers(
    monkeypatch: pytest.MonkeyPatch, cores: int, processes: int, expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)), raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    assert automatic_workers() == share_of_workers(None) == expected
    assert share_of_workers(None, 2) == max(1, expected // 2)


def test_workers_are_shared_by_loaders() -> None:
    assert [share_of_workers(n, 2) for n in (0, 1, 2, 5)] == [0, 1, 1, 2]
    assert share_of_workers(7) == 7


UNGUARDED = """
import sys, torch
from quadranas.data import dataset
from quadranas.data.loader import Loader
from quadranas.errors import QuadranasError
dataset.MEMORY_LIMIT_BYTES = 100
train = dataset.load_dataset(sys.argv[1], resolution=24).train
try:
    Loader(train, lambda number: torch.arange(2), num_steps=1, workers=1).batch(0)
except QuadranasError as error:
    print(error)
"""


def test_a_script_without_a_guard_is_told_so(tmp_path: Path, pictures: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(UNGUARDED, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(script), str(pictures)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        check=True,
    )
    assert "could not start or has ended" in done.stdout
    assert "if __name__ == '__main__'" in done.stdout


def test_ended_loaders_leave_no_process(pictures: Path, no_memory: None) -> None:
    images = load_dataset(pictures, resolution=24).train
    opened = loader(images, 1)
    opened.batch(0)
    before = set(children())
    assert before
    opened.close()
    assert not before & set(children())
    opened.batch(STEPS - 1)  # the last one
    assert not set(children())
    assert equal(opened.batch(1), loader(images, 0).batch(1))
    opened.close()


def children() -> Iterator[int]:
    import multiprocessing

    yield from (process.pid or 0 for process in multiprocessing.active_children())
