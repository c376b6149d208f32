"""Batches of training images: from memory, decoded in the process, or by worker processes.

A batch is a function of its number: `plan` gives the indices, and an image depends on its index,
the epoch and the seed only. So any number of workers gives the same batches, and a run that is
resumed in the middle of an epoch needs no state of the loader.

Shapes: B images of a batch, R the resolution.
"""

import math
import os
import sys
from collections import deque
from collections.abc import Callable, Iterator
from itertools import count
from multiprocessing import get_context
from multiprocessing.context import BaseContext
from typing import Any, final

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from quadranas.data.image_files import Indices, threads_for
from quadranas.data.image_set import ImageSet
from quadranas.data.samples import Samples
from quadranas.errors import QuadranasError
from quadranas.validation import environment_number

MAX_WORKERS = 64
DEFAULT_WORKERS = 8
"""Largest number of workers that is chosen automatically."""

PREFETCHED = 2
"""Number of batches that each worker prepares in advance."""

BUFFERS = PREFETCHED + 2
"""Batches of a worker that have memory at the same time: those in preparation, and two in use."""

LOST = "DataLoader worker (pid"
"""In the message of the RuntimeError about a worker that has ended (PyTorch 2.13)."""

Request = tuple[Indices, int]
"""Indices of a batch, and the epoch."""

Plan = Callable[[int], Tensor]
"""The indices of the images of a batch, by its number."""


@final
class Loader:
    """The batches of a training; see the module.

    Args:
        images: the images of the split.
        plan: gives the indices of a batch; in several processes, of the share of this one.
        num_steps: the number of batches, after which the workers end; None if it is not known.
        workers: number of worker processes. Images that are kept in memory need none.
        seed: seed of random crops.
        epoch_of: the epoch that a batch belongs to.
        pinned: copy batches to page-locked memory, from which a GPU copies them asynchronously.
    """

    def __init__(
        self,
        images: ImageSet,
        plan: Plan,
        *,
        num_steps: int | None,
        workers: int,
        seed: int = 0,
        epoch_of: Callable[[int], int] = lambda number: 0,
        pinned: bool = False,
    ) -> None:
        self.images, self._plan, self._num_steps = images, plan, num_steps
        self._seed, self._epoch_of, self._pinned = seed, epoch_of, pinned
        self._samples = None if images.is_in_memory else images.samples
        self.workers = 0 if self._samples is None else workers
        self._loader: DataLoader[Any] | None = None
        self._batches: Iterator[Any] | None = None
        # What stays mapped need not be mapped again for the next batch in the same memory
        self._mapped = deque[Tensor](maxlen=0 if pinned else BUFFERS * workers)
        self._requests = _Requests(plan, epoch_of, num_steps)
        self._next = 0

    def batch(self, number: int) -> tuple[Tensor, Tensor]:
        """The images of a batch, uint8 (B, 3, R, R), channels_last, and their labels, int64 (B,).

        Batches are prepared in advance in the order of their numbers; asking for another one than
        the next discards what is prepared. The images of a worker are valid until the second
        batch after them is asked for; then their memory is used again.

        Raises:
            QuadranasError: an image is corrupt or cannot be read, or the workers cannot start.
        """
        indices = self._plan(number).cpu()
        if self.workers:
            pixels = self._from_workers(number)
        else:
            pixels = self._here(indices, self._epoch_of(number))
        images, labels = pixels, self.images.labels[indices]
        if self._pinned and not images.is_pinned():
            images, labels = images.pin_memory(), labels.pin_memory()
        return images, labels

    def close(self) -> None:
        """End the workers; the next batch starts new ones."""
        self._loader = self._batches = None  # nothing else refers to the iterator, which ends them
        self._mapped.clear()

    def _here(self, indices: Tensor, epoch: int) -> Tensor:
        if self._samples is None:
            return self.images.batch(indices)
        pixels = self._samples.batch(
            indices.tolist(),
            epoch=epoch,
            seed=self._seed,
            num_threads=threads_for(self._samples.resolution),
        )
        return torch.from_numpy(pixels).permute(0, 3, 1, 2)

    def _from_workers(self, number: int) -> Tensor:
        assert self._num_steps is None or number < self._num_steps
        if self._batches is None or number != self._next:
            self._requests.start = self._next = number
            if self._loader is None:
                self._loader = self._make_loader()
            self._batches = iter(self._loader)
        try:
            result = next(self._batches)
        except RuntimeError as error:
            self.close()
            if LOST not in str(error):
                raise
            raise _lost_workers(error) from error
        if isinstance(result, QuadranasError):
            self._batches = None  # what is prepared belongs to later batches
            raise result
        self._mapped.append(result)
        self._next = number + 1
        if self._next == self._num_steps:
            self.close()
        pixels: Tensor = result.permute(0, 3, 1, 2)
        return pixels

    def _make_loader(self) -> "DataLoader[Any]":
        assert self._samples is not None
        return DataLoader(
            _Batches(self._samples, self._seed),
            batch_size=None,  # a request is for a whole batch
            sampler=self._requests,
            num_workers=self.workers,
            multiprocessing_context=_process_context(),
            prefetch_factor=PREFETCHED,
            persistent_workers=True,
            pin_memory=self._pinned,
            generator=torch.Generator(),  # it draws a seed, by default from the global generator
        )


def _process_context() -> BaseContext:
    """How workers start: as forks of a process that has imported what they need, only once.

    A fork of this process would copy locks that its threads hold. Only Linux forks safely with
    the libraries loaded here; elsewhere every worker imports them.
    """
    if sys.platform != "linux":
        return get_context("spawn")
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


class _Requests(Sampler[Request]):
    """The requests of a loader from its batch `start` on, made in the main process.

    It does not refer to the loader. A cycle would leave the end of the workers to the garbage
    collector, which first closes the queues that tell them to end: 5 seconds for each.
    """

    def __init__(self, plan: Plan, epoch_of: Callable[[int], int], num_steps: int | None) -> None:
        self._plan, self._epoch_of, self._num_steps = plan, epoch_of, num_steps
        self.start = 0

    def __iter__(self) -> Iterator[Request]:
        for number in count(self.start):
            if number == self._num_steps:
                return
            yield self._plan(number).cpu().numpy(), self._epoch_of(number)


class _Batches(Dataset[Any]):
    """Decodes the batches that are requested, in a worker.

    The pixels are written where the main process reads them: shared memory, which is used in turn.
    New memory would have to be mapped and cleared page by page, in both processes.
    """

    def __init__(self, samples: Samples, seed: int) -> None:
        self._samples, self._seed = samples, seed
        self._buffers = deque[torch.UntypedStorage](maxlen=BUFFERS)

    def __getitem__(self, request: Request) -> Tensor | QuadranasError:
        indices, epoch = request
        pixels = self._room(self._samples.shape(len(indices)))
        try:
            self._samples.batch(indices.tolist(), epoch=epoch, seed=self._seed, out=pixels.numpy())
        except QuadranasError as error:  # raised here, it would lose its hint on the way
            return error
        return pixels

    def _room(self, shape: tuple[int, ...]) -> Tensor:
        """The buffer whose turn it is, or a new one while there are few or it is too small."""
        size = math.prod(shape)
        buffer = self._buffers[0] if len(self._buffers) == BUFFERS else None
        if buffer is None or buffer.nbytes() < size:
            buffer = torch.UntypedStorage._new_shared(size)
        self._buffers.append(buffer)  # the first one leaves
        return torch.empty(0, dtype=torch.uint8).set_(buffer)[:size].view(shape)


def share_of_workers(workers: int | None, loaders: int = 1) -> int:
    """The number of workers of one of several loaders that work at the same time.

    Args:
        workers: the number of all; None for `automatic_workers`.
    """
    total = automatic_workers() if workers is None else workers
    return max(1, total // loaders) if total else 0


def automatic_workers() -> int:
    """One worker for every core but one, which trains or drives the accelerator.

    The cores are shared between the processes of a machine, whose number torchrun gives.
    """
    processes = environment_number("LOCAL_WORLD_SIZE", 1, 1)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(DEFAULT_WORKERS, (cores or 1) // processes - 1))


def _lost_workers(error: RuntimeError) -> QuadranasError:
    reason = str(error).splitlines()[0]
    return QuadranasError(
        f"a worker process that decodes images could not start or has ended: {reason}",
        "If a script of your own calls quadranas, put the call under "
        "`if __name__ == '__main__':`. If memory (or /dev/shm in a container) is short, lower "
        "--workers; 0 decodes in the main process.",
    )
