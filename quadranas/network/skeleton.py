"""The skeleton of networks; supernets fill it with mixed operations, subnets with chosen ones."""

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Self

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from quadranas.errors import QuadranasError
from quadranas.layers import build_op
from quadranas.layers.replacement import changed
from quadranas.network.feature_maps import feature_maps
from quadranas.network.modes import batch_norms, kept_statistics
from quadranas.network.own_model import build_own
from quadranas.space.architecture import Architecture, Block
from quadranas.space.own_space_file import REST


class Network(nn.Module):
    """Blocks applied in order; each adds its own residual.

    Images are channels_last, the faster layout on CPU and on tensor cores. Weights are contiguous,
    so that the tensors of `state_dict()` can be saved by safetensors as they are.

    Args:
        blocks: the modules by their names.
        architecture: the architecture that the modules were built from; None for a supernet,
            whose blocks hold many candidates.

    Attributes:
        architecture: as given; `reset_classifier` and the functions that replace layers
            (`quadranas.conversion`) keep it up to date. None if no architecture describes the
            network.
        checkpointing: in training, store only the inputs of blocks for the backward pass, which
            computes the blocks again. Random numbers inside of blocks have to be set before.
        frozen: names of blocks that are always in evaluation mode.
        feature_channels: number of channels of every feature map that `features` returns.
        feature_strides: ratio of the images' size to that of each map.
    """

    def __init__(
        self, blocks: Mapping[str, nn.Module], architecture: Architecture | None = None
    ) -> None:
        super().__init__()
        try:
            self.blocks = nn.ModuleDict(blocks)
        except KeyError as error:  # a name such as `keys`, which torch reserves
            raise QuadranasError(f"a block has an impossible name: {error}") from error
        self.architecture = architecture
        self.checkpointing = False
        self.frozen: frozenset[str] = frozenset()
        has_stages = architecture is not None and architecture.model is None
        maps = feature_maps(architecture) if architecture and has_stages else ()
        self.feature_channels = tuple(found.channels for found in maps)
        self.feature_strides = tuple(found.stride for found in maps)
        self._feature_blocks = tuple(found.block for found in maps)

    def forward(self, images: Tensor) -> Tensor:
        """Shapes: (B, 3, H, W) to (B, num_classes)."""
        x = images.contiguous(memory_format=torch.channels_last)
        stores = not (self.checkpointing and self.training and torch.is_grad_enabled())
        for block in self.blocks.values():
            x = block(x) if stores else _checkpointed(block, x)
        return x

    def train(self, mode: bool = True) -> Self:
        """Set the mode of all blocks but the frozen ones."""
        super().train(mode)
        for name in self.frozen:
            self.blocks[name].eval()
        return self

    def features(self, images: Tensor) -> list[Tensor]:
        """The feature maps of the stages, highest resolution first; the head is not computed.

        A stage ends before each block that downsamples, and before the head. The maps can be used
        as input of a detection or segmentation head.

        Shapes: (B, 3, H, W) to (B, C, H / S, W / S) for each C of `feature_channels` and S of
        `feature_strides`.

        Raises:
            QuadranasError: the network was built without an architecture.
        """
        if not self._feature_blocks:
            raise QuadranasError(
                "this network has no stages, and so no feature maps",
                "Build it from an architecture, with build_subnet or create_model.",
            )
        x = images.contiguous(memory_format=torch.channels_last)
        maps = []
        for name, block in self.blocks.items():
            x = block(x)
            if name in self._feature_blocks:
                maps.append(x)
            if name == self._feature_blocks[-1]:
                break
        return maps

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the last linear layer by a new one, for another number of classes.

        It is initialised as in `build_subnet`; if the layer was made quadratic or adapted, so is
        the new one. All other layers keep their weights.

        Raises:
            QuadranasError: the network was built without an architecture, or an impossible number
                of classes.
        """
        if self.architecture is None or self.architecture.model is not None:
            raise QuadranasError(
                "no architecture describes this network's classifier",
                "Build it from an architecture, with build_subnet or create_model.",
            )
        block, kind = self.architecture.blocks[-1].name, self.architecture.blocks[-1].ops[-1].kind
        linear = f"blocks.{block}.{kind}.linear"
        changes = [c for c in self.architecture.changes if (c.name, c.kind) != (linear, "removed")]
        wanted = self.architecture.adapted(num_classes=num_classes)
        new = changed(
            Network({block: SubnetBlock(wanted.blocks[-1], wanted.layer_scale)}),
            [change for change in changes if change.name.startswith(f"blocks.{block}.")],
        ).get_submodule(linear)
        parameter = next(self.parameters())
        new.to(parameter.device, parameter.dtype)
        self.get_submodule(f"blocks.{block}.{kind}").linear = new.train(self.training)
        self.architecture = wanted.model_copy(update={"changes": tuple(changes)})


def _checkpointed(block: nn.Module, x: Tensor) -> Tensor:
    """The output of a block, which the backward pass computes again; averages change once."""
    norms = batch_norms(block)
    output: Tensor = checkpoint(
        block,
        x,
        use_reentrant=False,
        preserve_rng_state=False,
        context_fn=lambda: (nullcontext(), kept_statistics(norms)),
    )
    return output


class SubnetBlock(nn.ModuleDict):
    """The chosen operations of one block, keyed by their kind."""

    def __init__(self, block: Block, layer_scale: float) -> None:
        super().__init__({op.kind: build_op(op, layer_scale) for op in block.ops})

    def forward(self, x: Tensor) -> Tensor:
        """Apply the operations in order."""
        for op in self.values():
            x = op(x)
        return x


def build_on_meta(architecture: Architecture) -> Network:
    """The network without memory for its weights: enough to list its layers and to count.

    Raises:
        QuadranasError: see `build_subnet`.
    """
    if architecture.model is not None:  # it has its weights already
        return build_subnet(architecture).to("meta")
    with torch.device("meta"):
        return build_subnet(architecture)


def build_subnet(architecture: Architecture) -> Network:
    """The network an architecture describes, with PyTorch's default initialisation.

    A network that is made from a user's own model has the weights of that.

    Raises:
        QuadranasError: it is made from a model that was not given to this process.
    """
    scale = architecture.layer_scale
    blocks: dict[str, nn.Module]
    if architecture.model is not None:
        blocks = {REST: build_own(architecture)}
    else:
        blocks = {block.name: SubnetBlock(block, scale) for block in architecture.blocks}
    network = Network(
        blocks,
        architecture.model_copy(update={"changes": ()}),  # `changed` adds them
    )
    if not architecture.changes:
        return network
    return changed(network, architecture.changes)
