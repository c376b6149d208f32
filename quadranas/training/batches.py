"""The batches of a step, on the accelerator: the part that this process computes."""

import weakref
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import Tensor

from quadranas.acceleration.accelerator import PINNED
from quadranas.acceleration.engine import Engine
from quadranas.acceleration.processes import Part
from quadranas.data.augmentation import Augmenter
from quadranas.data.batch import Batch
from quadranas.data.dataset import Dataset
from quadranas.data.image_set import ImageSet
from quadranas.data.loader import Loader, share_of_workers
from quadranas.data.splits import epoch_batches


class Batches:
    """Batches of training images in random order, epoch after epoch.

    Args:
        indices: the images to take.
        seed_of: the seed of an epoch's order.
        limit: number of batches per epoch; None for all.
        loaders: number of these objects that work at the same time and share the workers.
        num_parts: number of parts in which to compute a batch, if it has that many images.
    """

    num_steps: int | None = None
    """Number of batches of a training, if it is known; nothing is loaded beyond it."""

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
        loaders: int = 1,
        num_parts: int = 1,
    ) -> None:
        self.dataset, self.augmenter, self.engine = dataset, augmenter, engine
        self._seed_of, self._num_loaders = seed_of, loaders
        self.num_parts = num_parts
        # The order of the current epoch is kept, since it is drawn for all images at once, and
        # that of the next one, of which batches are loaded in advance.
        self._epoch = lru_cache(maxsize=2)(
            lambda epoch: epoch_batches(indices, batch_size, seed=seed_of(epoch))[:limit]
        )
        self.per_epoch = len(self._epoch(0))

    def augmented(self, number: int, *, seed: int) -> Batch:
        """The batch of a weight step, with soft targets."""
        indices, part = self._part(number)
        images, labels = self._cropped.batch(number)
        images = self.engine.accelerator.put(images)
        found = self.augmenter(images, labels, seed=seed, start=part.start, size=len(indices))
        return Batch(*found, **self._place(indices, part))

    def plain(self, number: int) -> Batch:
        """The batch of an architecture step, without augmentation."""
        indices, part = self._part(number)
        images, labels = self._whole.batch(number)
        targets = torch.nn.functional.one_hot(labels, self.dataset.num_classes).float()
        put = self.engine.accelerator.put
        return Batch(self.augmenter.plain(put(images)), put(targets), **self._place(indices, part))

    def _place(self, indices: Tensor, part: Part) -> dict[str, Any]:
        """The other fields of a batch; all processes compute it in the same number of parts."""
        size, processes = len(indices), self.engine.processes
        others = (
            replace(processes, rank=rank).part(size, in_pairs=self.augmenter.mixes)
            for rank in range(processes.count if self.num_parts > 1 else 0)
        )
        smallest = min((other.end - other.start for other in others), default=1)
        return {
            "weight": part.weight,
            "start": part.start,
            "size": size,
            "num_parts": min(self.num_parts, smallest),
        }

    def _part(self, number: int) -> tuple[Tensor, Part]:
        epoch, index = divmod(number, self.per_epoch)
        indices = self._epoch(epoch)[index]
        part = self.engine.processes.part(len(indices), in_pairs=self.augmenter.mixes)
        return indices, part

    @cached_property
    def _whole(self) -> Loader:
        return self._loader(self.dataset.train)

    @cached_property
    def _cropped(self) -> Loader:
        smallest = self.augmenter.config.resized_crop
        return self._loader(self.dataset.train.with_random_crops(smallest))

    def _loader(self, images: ImageSet) -> Loader:
        """The images of this process, batch by batch, in the memory of the processor."""
        owner, per_epoch = weakref.ref(self), self.per_epoch  # see `_Requests` in the loader

        def plan(number: int) -> Tensor:
            batches = owner()
            assert batches is not None
            indices, part = batches._part(number)
            return indices[part.start : part.end]

        return Loader(
            *(images, plan),
            num_steps=self.num_steps,
            workers=share_of_workers(self.dataset.workers, self._num_loaders),
            seed=self._seed_of(0),
            epoch_of=lambda number: number // per_epoch,
            pinned=self.engine.accelerator.device.type in PINNED,
        )
