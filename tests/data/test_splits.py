"""Halves and batches of the training images."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quadranas.data.splits import epoch_batches, hold_out_share, split_halves

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


@given(labels=LABELS, share=st.floats(0.01, 0.5), seed=st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_a_share_of_every_class_is_held_out(labels: torch.Tensor, share: float, seed: int) -> None:
    kept, held_out = hold_out_share(labels, share, seed, least=2)
    assert sorted(kept.tolist() + held_out.tolist()) == list(range(len(labels)))
    for label in labels.unique():
        size = int((labels == label).sum())
        held = int((labels[held_out] == label).sum())
        assert held == min(size - 2, max(1, round(size * share)))
    assert torch.equal(kept, hold_out_share(labels, share, seed, least=2)[0])
