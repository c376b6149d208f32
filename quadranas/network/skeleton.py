"""Network: the one skeleton, filled with mixed operations (supernet) or chosen ones (subnet)."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from quadranas.errors import QuadranasError
from quadranas.layers import build_op
from quadranas.layers.replacement import changed
from quadranas.space.architecture import Architecture, Block


class Network(nn.Module):
    """Blocks applied in order; each adds its own residual.

    The layout is channels_last, the faster one on CPU and on tensor cores.
    """

    def __init__(self, blocks: Mapping[str, nn.Module]) -> None:
        super().__init__()
        try:
            self.blocks = nn.ModuleDict(blocks)
        except KeyError as error:  # a name such as `keys`, which torch has taken
            raise QuadranasError(f"a block has a name that it cannot have: {error}") from error
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload] # torch 2.13

    def forward(self, images: Tensor) -> Tensor:
        """Shapes: (B, 3, H, W) to (B, num_classes)."""
        x = images.contiguous(memory_format=torch.channels_last)
        for block in self.blocks.values():
            x = block(x)
        return x


class SubnetBlock(nn.ModuleDict):
    """The chosen operations of one block, keyed by their kind."""

    def __init__(self, block: Block, layer_scale: float) -> None:
        super().__init__({op.kind: build_op(op, layer_scale) for op in block.ops})

    def forward(self, x: Tensor) -> Tensor:
        """Apply the operations in order."""
        for op in self.values():
            x = op(x)
        return x


def build_subnet(architecture: Architecture) -> Network:
    """The network an architecture describes, with PyTorch's default initialisation."""
    scale = architecture.layer_scale
    network = Network({block.name: SubnetBlock(block, scale) for block in architecture.blocks})
    if not architecture.changes:
        return network
    changed_network = changed(network, architecture.changes)
    changed_network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return changed_network
