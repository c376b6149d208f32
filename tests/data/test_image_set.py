"""The images of a split: when they are decoded, and when they are kept in memory."""

from pathlib import Path

import pytest
import torch

from quadranas.data import dataset
from quadranas.data.dataset import load_dataset
from tests.pictures import count_decoded, same, write_classes, write_zip


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
    monkeypatch.setattr(dataset, "MEMORY_LIMIT_BYTES", 100)
    on_demand = load_dataset(path, resolution=resolution)
    assert same(kept, on_demand)
    assert kept.mean == on_demand.mean
    decoded = count_decoded(monkeypatch)
    on_demand.train.batch(torch.tensor([1, 2, 1]))
    assert len(decoded) == 3
