"""The digits that come with scikit-learn: the default data."""

import torch

from quadranas.data.dataset import load_dataset
from tests.pictures import pixels, same


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
