"""Splits of a data set into training and test, weights and gates, and batches."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

TEST_SHARE = 5
"""One in this number of images is held out for the test, if the data have no test split."""


def split_halves(labels: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Two disjoint stratified halves, for the weight steps and the architecture steps.

    In classes of odd size, the extra image goes alternately to the first and the second half.

    Returns: indices into `labels`, sorted.
    """
    return _split(labels, seed, lambda size, position: (size + 1 - position % 2) // 2)


def epoch_batches(indices: Tensor, batch_size: int, *, seed: int) -> list[Tensor]:
    """The indices in random order, in batches.

    An incomplete last batch is dropped, unless it is the only one.
    """
    generator = torch.Generator().manual_seed(seed)
    shuffled = indices[torch.randperm(len(indices), generator=generator)]
    starts = range(0, len(shuffled), batch_size)
    batches = [shuffled[start : start + batch_size] for start in starts]
    return batches[:-1] if len(batches) > 1 and len(batches[-1]) < batch_size else batches


def _split(
    labels: Tensor, seed: int, first_size: Callable[[int, int], int]
) -> tuple[Tensor, Tensor]:
    """Shuffle every class and split it at `first_size(number of images, index of the class)`."""
    generator = torch.Generator().manual_seed(seed)
    first, second = [], []
    counts = labels.bincount()
    order = torch.from_numpy(np.argsort(labels.numpy(), kind="stable"))
    by_label = order.split(counts[counts > 0].tolist())
    for position, members in enumerate(by_label):
        members = members[torch.randperm(len(members), generator=generator)]
        cut = first_size(len(members), position)
        first.append(members[:cut])
        second.append(members[cut:])
    return torch.cat(first).sort().values, torch.cat(second).sort().values


def hold_out(labels: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Training and test indices; the test split has at least one image of every class."""
    return _split(labels, seed, lambda size, _: size - max(1, round(size / TEST_SHARE)))


def hold_out_share(
    labels: Tensor, share: float, seed: int, *, least: int
) -> tuple[Tensor, Tensor]:
    """The indices that remain and those that are held out: a share of every class, at least one.

    Args:
        share: between 0 and 1.
        least: minimum number of images of every class that remain.

    Returns: indices into `labels`, sorted.
    """
    return _split(
        labels, seed, lambda size, _: max(min(least, size), size - max(1, round(size * share)))
    )


def evenly_spaced(total: int, at_most: int) -> Tensor:
    """Evenly spaced indices below `total`, `at_most` of them."""
    return torch.linspace(0, total - 1, min(total, at_most)).long()
