"""Splits of a data set: training and test, weights and gates, and the batches of an epoch."""

from collections.abc import Callable

import torch
from torch import Tensor

TEST_SHARE = 5
"""One image in so many is held out where the data come without a test split."""


def split_halves(labels: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Two disjoint halves, for the weights and for the architecture steps, alike in every class.

    An odd image goes to the first half in every other class, to the second half in the rest.

    Returns: indices into `labels`, sorted.
    """
    return _split(labels, seed, lambda size, position: (size + 1 - position % 2) // 2)


def epoch_batches(indices: Tensor, batch_size: int, *, seed: int) -> list[Tensor]:
    """The indices in random order, in batches; a short last one only where it is the only one."""
    generator = torch.Generator().manual_seed(seed)
    shuffled = indices[torch.randperm(len(indices), generator=generator)]
    starts = range(0, len(shuffled), batch_size)
    batches = [shuffled[start : start + batch_size] for start in starts]
    return batches[:-1] if len(batches) > 1 and len(batches[-1]) < batch_size else batches


def _split(
    labels: Tensor, seed: int, first_size: Callable[[int, int], int]
) -> tuple[Tensor, Tensor]:
    """Shuffle every class and cut it at `first_size(number of images, position of the class)`."""
    generator = torch.Generator().manual_seed(seed)
    first, second = [], []
    for position, label in enumerate(sorted(set(labels.tolist()))):
        members = (labels == label).nonzero().flatten()
        members = members[torch.randperm(len(members), generator=generator)]
        cut = first_size(len(members), position)
        first.append(members[:cut])
        second.append(members[cut:])
    return torch.cat(first).sort().values, torch.cat(second).sort().values


def hold_out(labels: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Training and test indices; every class gives at least one image to the test."""
    return _split(labels, seed, lambda size, _: size - max(1, round(size / TEST_SHARE)))


def evenly_spaced(total: int, at_most: int) -> Tensor:
    """Indices at even distances, as many as are allowed."""
    return torch.linspace(0, total - 1, min(total, at_most)).long()
