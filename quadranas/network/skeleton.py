"""Network: the one skeleton, filled with mixed operations (supernet) or chosen ones (subnet)."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from quadranas.errors import QuadranasError
from quadranas.layers import build_op
from quadranas.layers.quadranet import ResidualBranch
from quadranas.layers.replacement import changed
from quadranas.network.weights import read_tensors
from quadranas.space.architecture import Architecture, Block
from quadranas.space.reference import reference_architecture

INIT_STD = 0.02


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


def count_network(network: nn.Module, resolution: int) -> tuple[int, int]:
    """Parameters of any network of images, and its MACs at batch 1.

    For a network of plain operations `cost.py` counts the same from its description alone.
    """
    parameter = next(network.parameters())
    image = torch.zeros(1, 3, resolution, resolution, device=parameter.device)
    was_training = network.training
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network.eval()(image.to(parameter.dtype))
    network.train(was_training)
    macs = counter.get_total_flops() // 2
    return sum(parameter.numel() for parameter in network.parameters()), macs


def create_model(
    name: str, *, num_classes: int = 1000, resolution: int = 224, drop_path: float = 0.0
) -> Network:
    """A reference QuadraNet, initialised as published: truncated normal of 0.02, biases zero.

    Source: QuadraNet, Xu et al., ASP-DAC 2024 (arXiv:2311.17956), Tables I and V.

    Args:
        name: `quadranet25_t`, `25_b`, `36_t`, `36_s`, `36_b`; suffix `_q1` or `_q12` for
            quadratic pointwise layers.
        resolution: multiple of 32 (the network itself takes any; this one is checked).
        drop_path: stochastic depth of the last block, rising linearly from 0 at the first.

    Raises:
        QuadranasError: unknown name, or a resolution, number of classes or drop_path that does
            not fit.
    """
    if not 0 <= drop_path < 1:
        raise QuadranasError(f"drop_path must be at least 0 and below 1, got {drop_path}")
    model = build_subnet(
        reference_architecture(name, num_classes=num_classes, resolution=resolution)
    )
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.trunc_normal_(module.weight, std=INIT_STD)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    branches = [module for module in model.modules() if isinstance(module, ResidualBranch)]
    for index, branch in enumerate(branches):
        branch.drop_probability = drop_path * (index // 2) / max(len(branches) // 2 - 1, 1)
    return model


def load_published_weights(model: Network, path: str | Path) -> None:
    """Fill a reference model from a published checkpoint, in place, using every tensor.

    Reads `.safetensors`, or a `.pth` with `weights_only=True`; the tensors may stand alone or
    under the key `model` or `state_dict`.

    Raises:
        QuadranasError: unreadable, or tensors missing, left over, or of another shape; or no
            QuadraNet, so that no such checkpoint exists.
    """
    load_published_tensors(model, read_tensors(Path(path)), str(path))


def load_published_tensors(model: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """The same with tensors that were read already.

    Raises:
        QuadranasError: as there.
    """
    try:
        renamed = {published_name(name): name for name in model.state_dict()}
    except ValueError as error:
        raise QuadranasError(
            f"{source} does not fit this model, which is no QuadraNet",
            "Published checkpoints exist for the models of create_model().",
        ) from error
    missing = sorted(set(renamed) - set(tensors))
    unused = sorted(set(tensors) - set(renamed))
    if missing or unused:
        raise QuadranasError(
            f"{source} does not fit this model: {len(missing)} tensors missing "
            f"{missing[:3]}, {len(unused)} left over {unused[:3]}",
            "Create the model whose checkpoint this is.",
        )
    load_tensors(model, {renamed[name]: tensor for name, tensor in tensors.items()}, source)


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Fill a network from a safetensors file that `quadranas` wrote, in place.

    Raises:
        QuadranasError: unreadable, or tensors missing, left over, or of another shape.
    """
    load_tensors(model, read_tensors(Path(path)), str(path))


def load_tensors(model: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Fill a network from named tensors, all of them or none.

    Raises:
        QuadranasError: names the first tensor that does not fit.
    """
    wanted = model.state_dict()
    for name in (*wanted, *tensors):
        if name not in tensors or name not in wanted:
            state = "lacks" if name not in tensors else "has the unexpected"
            raise QuadranasError(
                f"{source} does not fit this network: it {state} tensor {name!r}",
                "Use the weights that were trained for this architecture.",
            )
        if tensors[name].shape != wanted[name].shape:
            raise QuadranasError(
                f"{source} does not fit this network: {name!r} has shape "
                f"{tuple(tensors[name].shape)}, expected {tuple(wanted[name].shape)}",
                "Check the number of classes and the architecture.",
            )
    model.load_state_dict(dict(tensors))


PUBLISHED_PARTS = {
    "quadratic_depthwise.norm": "norm1",
    "quadratic_depthwise.conv.a": "QuadraConv.conv1",
    "quadratic_depthwise.conv.b": "QuadraConv.conv2",
    "quadratic_depthwise.conv.c": "QuadraConv.conv3",
    "feed_forward.norm": "norm2",
    "feed_forward.expand": "pwconv1",
    "feed_forward.project": "pwconv2",
}


def published_name(name: str, parts: Mapping[str, str] = PUBLISHED_PARTS) -> str:
    """A tensor's name in the published checkpoints for its name in ours.

    Args:
        parts: what the parts of a block are called there.

    Raises:
        ValueError: the tensor is no part of a QuadraNet.
    """
    _, block, rest = name.split(".", 2)
    if block == "head":
        part = rest.removeprefix("norm_head.")
        return part if part.startswith("norm.") else part.replace("linear.", "head.")
    stage, _, position = block.removeprefix("stage").partition("_")
    index = int(stage) - 1
    op, part = rest.split(".", 1)
    if position == "entry":
        slot = ("conv.", "norm.") if op == "patch_stem" else ("norm.", "conv.")
        number = next(i for i, prefix in enumerate(slot) if part.startswith(prefix))
        return f"downsample_layers.{index}.{number}.{part.split('.', 1)[1]}"
    prefix = f"stages.{index}.{int(position.removeprefix('block')) - 1}"
    if part == "gamma":
        return f"{prefix}.gamma{1 if op == 'quadratic_depthwise' else 2}"
    group, _, leaf = rest.rpartition(".")
    return f"{prefix}.{parts.get(group, group)}.{leaf}"
