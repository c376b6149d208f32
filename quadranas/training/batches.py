"""The batches of a step, on the accelerator: the part that this process computes."""

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from quadranas.acceleration.engine import Engine
from quadranas.acceleration.processes import Part
from quadranas.data.augmentation import Augmenter
from quadranas.data.batch import Batch
from quadranas.data.dataset import Dataset
from quadranas.data.splits import epoch_batches


class Batches:
    """Batches of training images in random order, epoch after epoch.

    Args:
        indices: the images to take.
        seed_of: the seed of an epoch's order.
        limit: number of batches per epoch; None for all.
    """

    def __init__(
        self,
        dataset: Dataset,
        augmenter: Augmenter,
        engine: Engine,
        indices: Tensor,
        *,
        batch_size: int,
        seed_of: Callable[[int], int],
        limit: int | None = None,
    ) -> None:
        self.dataset, self.augmenter, self.engine = dataset, augmenter, engine
        # The order of the current epoch is kept, since it is drawn for all images at once.
        self._epoch = lru_cache(maxsize=1)(
            lambda epoch: epoch_batches(indices, batch_size, seed=seed_of(epoch))[:limit]
        )
        self.per_epoch = len(self._epoch(0))

    def augmented(self, number: int, *, seed: int) -> Batch:
        """The batch of a weight step, with soft targets."""
        indices, part = self._part(number)
        images, labels = self._images(indices[part.start : part.end])
        found = self.augmenter(images, labels, seed=seed, start=part.start, size=len(indices))
        return Batch(*found, part.weight)

    def plain(self, number: int) -> Batch:
        """The batch of an architecture step, without augmentation."""
        indices, part = self._part(number)
        images, labels = self._images(indices[part.start : part.end])
        targets = torch.nn.functional.one_hot(labels, self.dataset.num_classes).float()
        put = self.engine.accelerator.put
        return Batch(self.augmenter.plain(images), put(targets), part.weight)

    def _part(self, number: int) -> tuple[Tensor, Part]:
        epoch, index = divmod(number, self.per_epoch)
        indices = self._epoch(epoch)[index]
        part = self.engine.processes.part(len(indices), in_pairs=self.augmenter.mixes)
        return indices, part

    def _images(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Images on the accelerator, and their labels on the processor."""
        images = self.dataset.train.batch(indices)
        return self.engine.accelerator.put(images), self.dataset.train.labels[indices]
