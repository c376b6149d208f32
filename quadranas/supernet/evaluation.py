"""Sub-networks judged with the weights of the supernet, on images that these were not trained on.

Source: once-for-all, Cai et al., ICLR 2020 (arXiv:1908.09791), which also computes the averages of
BatchNorm anew for every sub-network: in a supernet they mix those of all paths.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from quadranas.acceleration.engine import Engine
from quadranas.data.augmentation import Augmenter
from quadranas.data.image_set import ImageSet
from quadranas.data.splits import evenly_spaced
from quadranas.data.task import assess_in_turn, evaluate
from quadranas.network.modes import batch_norms
from quadranas.space.search_space import SKIPPED, Choices
from quadranas.supernet.supernet import Supernet

NUM_IMAGES = 2000
"""Maximum number of images that judge a sub-network: its accuracy has a standard deviation of at
most 1.1 points."""

NUM_CALIBRATION_BATCHES, CALIBRATION_BATCH = 20, 64


class SubnetEvaluator:
    """Judges sub-networks of a supernet; its weights, averages and gates stay the same.

    With several processes, each counts a part of the images, and all get the same accuracy.

    Args:
        images: the training images.
        held_out: indices of images that did not train the weights.
        trained_on: indices of images that did, for the averages of BatchNorm.
        judged_on: the images that `held_out` refers to; by default the training images.
    """

    def __init__(
        self,
        supernet: Supernet,
        images: ImageSet,
        augmenter: Augmenter,
        engine: Engine,
        *,
        held_out: Tensor,
        trained_on: Tensor,
        judged_on: ImageSet | None = None,
    ) -> None:
        self.supernet, self.images = supernet, images
        self.augmenter, self.engine = augmenter, engine
        self.judged_on = judged_on or images
        self.held_out = held_out[evenly_spaced(len(held_out), NUM_IMAGES)]
        number = NUM_CALIBRATION_BATCHES * CALIBRATION_BATCH
        self.calibration = trained_on[evenly_spaced(len(trained_on), number)]
        self.norms = batch_norms(supernet)

    def accuracy(self, choices: Choices) -> float:
        """Top-1 accuracy of a sub-network on the held-out images, from 0 to 1."""
        with self._restoring():
            self.calibrate(choices)
            return evaluate(
                *(self.supernet, self.judged_on, self.augmenter, self.engine),
                indices=self.held_out,
            )

    def accuracies(self, many: Sequence[Choices]) -> list[float]:
        """The accuracy of each sub-network; what the first blocks of several compute is shared."""
        if self.norms or self.supernet.space.model is not None:
            return [self.accuracy(choices) for choices in many]
        passes = _SharedPasses(self.supernet)
        order = sorted(range(len(many)), key=lambda number: passes.key(many[number]))
        found = assess_in_turn(
            passes,
            [partial(passes.set_choices, many[number]) for number in order],
            *(self.judged_on, self.augmenter, self.engine),
            indices=self.held_out,
        )
        accuracies = {number: one.accuracy for number, one in zip(order, found, strict=True)}
        return [accuracies[number] for number in range(len(many))]

    @torch.no_grad()
    def calibrate(self, choices: Choices) -> None:
        """Route through a sub-network, and set the averages of BatchNorm to its own."""
        self.supernet.set_choices(choices)
        if not self.norms:
            return
        self.supernet.train()
        norms = [norm for norm in self.norms if norm.training]  # the others are frozen
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the average over all batches
        for indices in self.calibration.split(CALIBRATION_BATCH):
            part = self.engine.processes.part(len(indices))
            pixels = self.engine.accelerator.put(self.images.batch(indices[part.start : part.end]))
            self.engine.logits(self.supernet, self.augmenter.plain(pixels))
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum

    @contextmanager
    def _restoring(self) -> Iterator[None]:
        """Afterwards the averages of BatchNorm are as before."""
        buffers = [buffer for norm in self.norms for buffer in norm.buffers()]
        before = [buffer.clone() for buffer in buffers]
        try:
            yield
        finally:
            for buffer, old in zip(buffers, before, strict=True):
                buffer.copy_(old)


class _SharedPasses(nn.Module):
    """A supernet that computes, of every network, only the blocks that differ from the last one.

    Blocks count from the first one that differs, as long as the images are the same tensor.
    """

    def __init__(self, supernet: Supernet) -> None:
        super().__init__()
        self.supernet = supernet
        self._images: Tensor | None = None
        self._choices: list[tuple[int, ...]] = []
        self._inputs: list[Tensor] = []  # of every block, then the logits

    def key(self, choices: Choices) -> list[tuple[int, ...]]:
        """The choices in the order of the blocks; networks with a common start are neighbours."""
        chosen = (choices[name] for name in self.supernet.network.blocks)
        return [() if choice is SKIPPED else choice for choice in chosen]

    def set_choices(self, choices: Choices) -> None:
        """Route the next pass through one architecture."""
        new = self.key(choices)
        pairs = enumerate(zip(self._choices, new, strict=False))
        same = next((number for number, (old, now) in pairs if old != now), len(self._choices))
        del self._inputs[same + 1 :]
        self._choices = new
        self.supernet.set_choices(choices)

    def forward(self, images: Tensor) -> Tensor:
        """Shapes: (B, 3, H, W) to (B, num_classes)."""
        if images is not self._images:
            self._images = images
            self._inputs = [images.contiguous(memory_format=torch.channels_last)]
        blocks = list(self.supernet.network.blocks.values())
        for block in blocks[len(self._inputs) - 1 :]:
            self._inputs.append(block(self._inputs[-1]))
        return self._inputs[-1]
