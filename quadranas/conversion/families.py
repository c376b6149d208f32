"""Checkpoints of well-known networks, as architectures and tensors of this package.

Sources: QuadraNet, Xu et al., ASP-DAC 2024 (arXiv:2311.17956), under its published names;
ConvNeXt, Liu et al., CVPR 2022 (arXiv:2201.03545), under the official names and those of timm and
torchvision; MobileNetV2, Sandler et al., CVPR 2018 (arXiv:1801.04381), under those of timm and
torchvision. A tensor's name and shape say everything but the strides of MobileNetV2, which are
those of its Table 2.
"""

import re
from collections.abc import Callable, Mapping
from math import prod
from typing import Any, NamedTuple

from pydantic import ValidationError
from torch import Tensor

from quadranas.errors import QuadranasError, some
from quadranas.network.checkpoint import outline
from quadranas.space.architecture import Architecture, Block
from quadranas.space.operation import OpSpec
from quadranas.validation import describe_faults

RESOLUTION = 224
"""Image size of an architecture that is read from tensors, which say nothing about it."""

OWN_NAME = re.compile(r"^blocks\.(\w+)\.(\w+)\.(.+)$")
OWN_BLOCK = re.compile(r"^stage([1-9]\d{0,2})_(?:entry|block([1-9]\d{0,2}))$")

MOBILENET_DEPTHS = (1, 2, 3, 4, 3, 3, 1)
MOBILENET_STRIDES = (1, 2, 2, 2, 1, 2, 1)
"""Number of blocks and stride of each stage of MobileNetV2 (Table 2)."""


class Recognised(NamedTuple):
    """A checkpoint that belongs to a known family.

    Args:
        family: its name, for messages.
        tensors: by the names of this package.
        architecture: the network; factors of quadratic layers may have no tensors.
    """

    family: str
    tensors: dict[str, Tensor]
    architecture: Architecture


Rename = Callable[[str], str]
"""From a name in a checkpoint to that of this package; unknown names stay as they are."""


def recognise(
    tensors: Mapping[str, Tensor], source: str, resolution: int = RESOLUTION
) -> Recognised:
    """Find the family of a checkpoint by the names of its tensors.

    Args:
        tensors: without prefixes of wrappers.
        source: the checkpoint, for messages.
        resolution: image size, in pixels; it is lowered to a multiple of the total stride.

    Raises:
        QuadranasError: none of the known families, or tensors that its networks do not have.
    """
    names = list(tensors)
    for family, marks, rename in FAMILIES:
        if any(re.match(marks, name) for name in names):
            renamed = {rename(name): tensor for name, tensor in tensors.items()}
            return _recognised(family, renamed, source, resolution)
    raise QuadranasError(
        f"{source} belongs to no known family of networks: its names begin with {outline(names)}",
        "Accepted: QuadraNets of this package or published ones, ConvNeXt and MobileNetV2 "
        "(official names, timm's or torchvision's), and run folders.",
    )


def _recognised(
    family: str, tensors: dict[str, Tensor], source: str, resolution: int
) -> Recognised:
    foreign = [name for name in tensors if not OWN_NAME.match(name)]
    if foreign:
        raise QuadranasError(
            f"{source} looks like a {family}, but has tensors that none has: {some(foreign, 3)}",
            "Only networks of exactly this family can be embedded.",
        )
    try:
        architecture = _architecture(family, tensors, resolution)
    except ValidationError as error:
        fault = describe_faults(OpSpec, error)[0]
        raise QuadranasError(
            f"{source} is not a {family} of a known form: {fault}",
            "Only networks of exactly this family can be embedded.",
        ) from error
    except _IncompleteError as error:
        raise QuadranasError(
            f"{source} looks like a {family}, but is incomplete: {error}",
            "Save the state dict of the whole network.",
        ) from error
    return Recognised(family, tensors, architecture)


class _IncompleteError(Exception):
    """Tensors are missing without which the architecture is unknown; says which."""


class _Shapes(NamedTuple):
    """The shapes of one operation's tensors, by their names within it."""

    place: str
    known: Mapping[str, tuple[int, ...]]

    def of(self, *names: str, axes: int) -> tuple[int, ...]:
        """The shape of the first of these tensors that is there.

        Raises:
            _IncompleteError: there is none, or it has another number of axes.
        """
        for name in names:
            if name in self.known:
                if len(self.known[name]) != axes:
                    raise _IncompleteError(
                        f"{self.place}.{name} has shape {self.known[name]}, expected {axes} axes"
                    )
                return self.known[name]
        raise _IncompleteError(f"there is no {self.place}.{names[0]}")


def _architecture(family: str, tensors: Mapping[str, Tensor], resolution: int) -> Architecture:
    """The architecture by the shapes of tensors under the names of this package."""
    shapes: dict[str, dict[str, dict[str, tuple[int, ...]]]] = {}
    for name, tensor in tensors.items():
        block, kind, rest = OWN_NAME.match(name).groups()  # type: ignore[union-attr]
        shapes.setdefault(block, {}).setdefault(kind, {})[rest] = tuple(tensor.shape)
    blocks, stride = [], _total_stride(shapes)
    size = resolution = max(1, resolution // stride) * stride
    for block in sorted(shapes, key=_position):
        ops = []
        for kind in sorted(shapes[block], key=_order):
            found = _Shapes(f"blocks.{block}.{kind}", shapes[block][kind])
            if kind not in READ:
                raise _IncompleteError(f"the strides of {kind} operations are unknown")
            ops.append(OpSpec(kind=kind, resolution=size, **READ[kind](found, block)))
            size = ops[-1].out_resolution
        blocks.append(Block(name=block, ops=tuple(ops)))
    classes = blocks[-1].ops[-1].out_channels
    return Architecture(
        name=family.lower(), resolution=resolution, num_classes=classes, blocks=tuple(blocks)
    )


def _position(block: str) -> tuple[int, int]:
    """The place of a block in the network by its name."""
    fixed = {"stem_block1": (0, 0), "last_block1": (1000, 0), "head": (1001, 0)}
    if block in fixed:
        return fixed[block]
    match = OWN_BLOCK.match(block)
    if match is None:
        raise _IncompleteError(f"the place of block {block!r} is unknown")
    return int(match[1]), int(match[2] or 0)


def _order(kind: str) -> int:
    """The place of an operation in its block."""
    return int(kind == "feed_forward")


def _total_stride(shapes: Mapping[str, Mapping[str, Mapping[str, tuple[int, ...]]]]) -> int:
    """The product of the sizes of all patches; other convolutions take images of any size."""
    kernels = [
        found["conv.weight"][-1]
        for ops in shapes.values()
        for kind, found in ops.items()
        if kind in ("patch_stem", "downsample") and len(found.get("conv.weight", ())) == 4
    ]
    return max(1, prod(kernels))


def _patches(shapes: _Shapes, block: str) -> dict[str, Any]:
    cout, cin, kernel, _ = shapes.of("conv.weight", axes=4)
    return {"in_channels": cin, "out_channels": cout, "kernel_size": kernel, "stride": kernel}


def _quadratic_depthwise(shapes: _Shapes, block: str) -> dict[str, Any]:
    channels, _, kernel, _ = shapes.of("conv.c.weight", axes=4)
    return {"in_channels": channels, "out_channels": channels, "kernel_size": kernel}


def _feed_forward(shapes: _Shapes, block: str) -> dict[str, Any]:
    hidden, channels = shapes.of("expand.weight", "expand.c.weight", axes=2)
    number = sum(f"{layer}.c.weight" in shapes.known for layer in ("expand", "project"))
    return {
        "in_channels": channels,
        "out_channels": channels,
        "expand_ratio": _ratio(hidden, channels),
        "num_quadratic": number,
    }


def _conv_bn(shapes: _Shapes, block: str) -> dict[str, Any]:
    cout, cin, kernel, _ = shapes.of("0.weight", axes=4)
    stride = 2 if block.startswith("stem") else 1
    return {"in_channels": cin, "out_channels": cout, "kernel_size": kernel, "stride": stride}


def _mbconv(shapes: _Shapes, block: str) -> dict[str, Any]:
    """An inverted bottleneck; without an expansion its first convolution is the depthwise one."""
    first, inside, _, kernel = shapes.of("layers.0.weight", axes=4)
    expands = "layers.6.weight" in shapes.known
    if expands:
        *_, kernel = shapes.of("layers.3.weight", axes=4)
    project = "layers.6.weight" if expands else "layers.3.weight"
    cout, *_ = shapes.of(project, axes=4)
    cin = inside if expands else first
    stage, number = _position(block)
    return {
        "in_channels": cin,
        "out_channels": cout,
        "kernel_size": kernel,
        "stride": MOBILENET_STRIDES[stage - 1] if number == 1 else 1,
        "expand_ratio": _ratio(first, cin),
    }


def _head(shapes: _Shapes, block: str) -> dict[str, Any]:
    cout, cin = shapes.of("linear.weight", axes=2)
    return {"in_channels": cin, "out_channels": cout}


READ: dict[str, Callable[[_Shapes, str], dict[str, Any]]] = {
    "patch_stem": _patches,
    "downsample": _patches,
    "quadratic_depthwise": _quadratic_depthwise,
    "feed_forward": _feed_forward,
    "norm_head": _head,
    "conv_bn": _conv_bn,
    "mbconv": _mbconv,
    "linear_head": _head,
}
"""Per kind of operation, a function that reads the other fields of its `OpSpec` from shapes."""


def _ratio(hidden: int, channels: int) -> int | float:
    """The expansion of a number of hidden channels; a whole number where it is one."""
    ratio = hidden / max(1, channels)
    return int(ratio) if ratio == int(ratio) else ratio


def _replaced(rules: Mapping[str, str | Callable[[re.Match[str]], str]]) -> Rename:
    """Rename by the first pattern that matches."""

    def rename(name: str) -> str:
        for pattern, target in rules.items():
            renamed, number = re.subn(f"^{pattern}", target, name)
            if number:
                return renamed
        return name

    return rename


def _stage(match: re.Match[str]) -> str:
    """The name of a block by two indices from 0, that of the stage and that of the block."""
    return f"blocks.stage{int(match[1]) + 1}_block{int(match[2]) + 1}."


def _entry(match: re.Match[str]) -> str:
    """The name of a stage's downsampling by the stage's index from 0."""
    return f"blocks.stage{int(match[1]) + 1}_entry.downsample."


def _part(place: Callable[[re.Match[str]], str], part: str) -> Callable[[re.Match[str]], str]:
    return lambda match: place(match) + part


PATCHES: dict[str, str | Callable[[re.Match[str]], str]] = {
    r"downsample_layers\.0\.0\.": "blocks.stage1_entry.patch_stem.conv.",
    r"downsample_layers\.0\.1\.": "blocks.stage1_entry.patch_stem.norm.",
    r"downsample_layers\.(\d+)\.0\.": _part(_entry, "norm."),
    r"downsample_layers\.(\d+)\.1\.": _part(_entry, "conv."),
    r"norm\.": "blocks.head.norm_head.norm.",
    r"head\.(?=weight|bias)": "blocks.head.norm_head.linear.",
}
"""Stem, downsampling and head of QuadraNet and ConvNeXt under the official names."""

BLOCK = r"stages\.(\d+)\.(\d+)\."
QUADRANET = {
    f"{BLOCK}{part}": _part(_stage, own)
    for part, own in {
        r"norm1\.": "quadratic_depthwise.norm.",
        r"QuadraConv\.conv1\.": "quadratic_depthwise.conv.a.",
        r"QuadraConv\.conv2\.": "quadratic_depthwise.conv.b.",
        r"QuadraConv\.conv3\.": "quadratic_depthwise.conv.c.",
        r"norm2\.": "feed_forward.norm.",
        r"pwconv1\.": "feed_forward.expand.",
        r"pwconv2\.": "feed_forward.project.",
        "gamma1$": "quadratic_depthwise.gamma",
        "gamma2$": "feed_forward.gamma",
    }.items()
}


FAMILIES: tuple[tuple[str, str, Rename], ...] = (
    ("QuadraNet", r"blocks\.\w+\.(?:quadratic_depthwise|feed_forward)\.", lambda name: name),
    ("QuadraNet", rf"{BLOCK}QuadraConv\.", _replaced(PATCHES | QUADRANET)),
)
"""Name of each family, a pattern that names of its tensors alone match, and their renaming."""
