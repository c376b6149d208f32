"""The published QuadraNets and their checkpoints."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from quadranas.errors import QuadranasError
from quadranas.layers.stochastic_depth import set_drop_path
from quadranas.network.checkpoint import matched
from quadranas.network.skeleton import Network, build_subnet
from quadranas.network.weights import load_tensors, read_tensors
from quadranas.space.architecture import Architecture
from quadranas.space.reference import reference_architecture

INIT_STD = 0.02


def create_model(
    model: str | Architecture,
    *,
    num_classes: int | None = None,
    resolution: int | None = None,
    drop_path: float = 0.0,
) -> Network:
    """Create an untrained network: a reference QuadraNet by its name, or that of an architecture.

    Reference models have the published initialisation: weights from a truncated normal of 0.02,
    biases of zero. Other networks have PyTorch's, with which `quadranas train` begins.

    Source: QuadraNet, Xu et al., ASP-DAC 2024 (arXiv:2311.17956), Tables I and V.

    Args:
        model: `quadranet25_t`, `25_b`, `36_t`, `36_s`, `36_b`; suffix `_q1` or `_q12` for
            quadratic pointwise layers. Or an architecture, such as `load_architecture` gives.
        num_classes: None for 1000, or for that of the architecture.
        resolution: a multiple of all strides together; the network itself accepts any. None for
            224, or for that of the architecture.
        drop_path: stochastic depth of the last block; it rises linearly from 0 at the first.

    Raises:
        QuadranasError: an unknown name, or an impossible resolution, number of classes or
            drop_path.
    """
    if not 0 <= drop_path < 1:
        raise QuadranasError(f"drop_path must be at least 0 and below 1, got {drop_path}")
    architecture = model if isinstance(model, Architecture) else reference_architecture(str(model))
    network = build_subnet(architecture.adapted(num_classes=num_classes, resolution=resolution))
    if architecture is not model:
        _draw_weights(network)
    set_drop_path(network.blocks.values(), drop_path)
    return network


@torch.no_grad()
def _draw_weights(network: Network) -> None:
    """Draw initial weights; kernels in the order of channels_last, for the sake of old seeds."""
    for module in network.modules():
        if not isinstance(module, nn.Conv2d | nn.Linear):
            continue
        layout = torch.channels_last if module.weight.dim() == 4 else torch.preserve_format
        drawn = torch.empty_like(module.weight, memory_format=layout)
        module.weight.copy_(nn.init.trunc_normal_(drawn, std=INIT_STD))
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def load_published_weights(model: Network, path: str | Path) -> None:
    """Fill a reference model, in place, from a published checkpoint; every tensor is used.

    Reads `.safetensors`, or a `.pth` with `weights_only=True`; the tensors may be under one of
    the keys `checkpoint.CONTAINERS`.

    Raises:
        QuadranasError: the file cannot be read, its tensors do not fit the model, or the model is
            no QuadraNet.
    """
    load_published_tensors(model, read_tensors(Path(path)).tensors, str(path))


def load_published_tensors(model: nn.Module, tensors: Mapping[str, Tensor], source: str) -> str:
    """Like `load_published_weights`, with tensors that are already loaded.

    Returns: how the tensors were renamed; see `Found.note`.

    Raises:
        QuadranasError: as in `load_published_weights`.
    """
    try:
        renamed = {published_name(name): name for name in model.state_dict()}
    except ValueError as error:
        raise QuadranasError(
            f"{source} does not fit this model, since it is not a QuadraNet",
            "Published checkpoints exist for the models of create_model().",
        ) from error
    tensors, note = matched(tensors, renamed)
    missing = sorted(set(renamed) - set(tensors))
    unused = sorted(set(tensors) - set(renamed))
    if missing or unused:
        raise QuadranasError(
            f"{source} does not fit this model: {len(missing)} tensors missing "
            f"{missing[:3]}, {len(unused)} unexpected {unused[:3]}",
            "Create the model that the checkpoint belongs to.",
        )
    load_tensors(model, {renamed[name]: tensor for name, tensor in tensors.items()}, source)
    return note


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
    """The name of a tensor in the published checkpoints, from its name in this package.

    Args:
        parts: the names of the parts of a block in the checkpoint.

    Raises:
        ValueError: the tensor does not belong to a QuadraNet.
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
