"""Stochastic depth: in training, random samples skip a residual branch.

Source: Huang et al., ECCV 2016 (arXiv:1603.09382); the probability rises linearly over the depth.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn


class StochasticDepth(nn.Module):
    """Base of blocks with a residual branch.

    Attributes:
        drop_probability: in training, the probability that a sample skips the branch; for the
            other samples the branch is scaled up to keep the expectation.
        mask: which samples take the branch, (B, 1, 1, 1), as `draw_masks` sets it; None to draw
            from the global generator of the device.
    """

    def __init__(self) -> None:
        super().__init__()
        self.drop_probability = 0.0
        self.mask: Tensor | None = None

    @property
    def has_branch(self) -> bool:
        """Whether there is a residual branch that samples can skip."""
        return True

    def _dropped(self, branch: Tensor) -> Tensor:
        """The output of the branch without the samples that skip it."""
        if not self.training or self.drop_probability <= 0:
            return branch
        kept = 1 - self.drop_probability
        if self.mask is not None:
            return branch * self.mask.to(branch.dtype) / kept
        shape = (branch.shape[0], 1, 1, 1)
        mask = torch.rand(shape, device=branch.device, dtype=branch.dtype) < kept
        return branch * mask / kept


def residual_blocks(network: nn.Module) -> list[StochasticDepth]:
    """The blocks with a residual branch, in the order of the network."""
    blocks = [module for module in network.modules() if isinstance(module, StochasticDepth)]
    return [block for block in blocks if block.has_branch]


def set_drop_path(blocks: Iterable[nn.Module], probability: float) -> None:
    """Set the probabilities of a network's blocks: from 0 at the first to that of the last.

    Args:
        blocks: modules in the order of the network; those inside of one have the same probability.
        probability: that of the last block with a residual branch.
    """
    found = [inside for inside in map(residual_blocks, blocks) if inside]
    for index, inside in enumerate(found):
        for block in inside:
            block.drop_probability = probability * index / max(len(found) - 1, 1)


def draw_masks(
    blocks: Iterable[StochasticDepth],
    generator: torch.Generator,
    *,
    size: int,
    part: slice,
    put: Callable[[Tensor], Tensor],
) -> None:
    """Draw which samples of a batch skip which block.

    The numbers are drawn on the processor for the whole batch, so that its parts skip the same
    blocks as within it.

    Args:
        size: number of images in the whole batch.
        part: those that pass through the network now.
        put: moves a tensor to the network's device.
    """
    dropping = [block for block in blocks if block.drop_probability > 0]
    if not dropping:
        return
    drawn = torch.rand(len(dropping), size, generator=generator)[:, part]
    kept = torch.tensor([1 - block.drop_probability for block in dropping])
    masks = put((drawn < kept[:, None]).float())
    for block, mask in zip(dropping, masks.unbind(), strict=True):
        block.mask = mask.view(-1, 1, 1, 1)
