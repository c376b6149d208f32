"""Checkpoints of well-known networks, as architectures and tensors of this package.

Sources: QuadraNet, Xu et al., ASP-DAC 2024 (arXiv:2311.17956); ConvNeXt, Liu et al., CVPR 2022
(arXiv:2201.03545); MobileNetV2, Sandler et al., CVPR 2018 (arXiv:1801.04381). The names and
shapes of tensors say everything but the strides of MobileNetV2, which are those of its Table 2.
"""

import re
from collections.abc import Callable, Mapping
from math import prod
from typing import Any, NamedTuple

from pydantic import ValidationError
from torch import Tensor

from quadranas.conversion.known_names import FAMILIES, MOBILENET_DEPTHS
from quadranas.errors import QuadranasError, some
from quadranas.network.checkpoint import outline
from quadranas.space.architecture import ARCHITECTURE_FILE, Architecture, Block
from quadranas.space.operation import OpSpec
from quadranas.validation import describe_faults

RESOLUTION = 224
"""Image size of an architecture that is read from tensors, which say nothing about it."""

OWN_NAME = re.compile(r"^blocks\.([A-Za-z]\w*)\.([a-z]\w*)\.(.+)$")
OWN_BLOCK = re.compile(r"^stage([1-9]\d{0,2})_(?:entry|block([1-9]\d{0,2}))$")

MOBILENET_STRIDES = (1, 2, 2, 2, 1, 2, 1)
"""Stride of each stage of MobileNetV2 (Table 2)."""


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
    if any(re.match(r"blocks\.[A-Za-z]\w*\.(?:quadratic_)?mbconv\.", name) for name in names):
        raise QuadranasError(
            f"{source} holds inverted bottlenecks, whose strides its tensors do not tell",
            f"Name the run folder instead, with its {ARCHITECTURE_FILE}.",
        )
    for family, marks, rename in FAMILIES:
        if any(re.match(marks, name) for name in names):
            own = rename(names)
            renamed = {own[name]: _plain(own[name], t) for name, t in tensors.items()}
            return _recognised(family, renamed, source, resolution)
    raise QuadranasError(
        f"{source} belongs to no known family of networks: its names begin with {outline(names)}",
        "Accepted: QuadraNets of this package or published ones, ConvNeXt and MobileNetV2 "
        "(official names, timm's or torchvision's), and run folders.",
    )


def _plain(name: str, tensor: Tensor) -> Tensor:
    """A tensor in the shape that this package gives it.

    Some ConvNeXts have linear layers as 1x1 convolutions, and layer scales as (C, 1, 1).
    """
    is_linear = name.endswith((".expand.weight", ".project.weight"))
    if is_linear and tensor.ndim == 4 and tensor.shape[2:] == (1, 1):
        return tensor.flatten(1)
    is_scale = name.endswith(".gamma") and tensor.ndim == 3 and tensor.shape[1:] == (1, 1)
    return tensor.flatten() if is_scale else tensor


def _recognised(
    family: str, tensors: dict[str, Tensor], source: str, resolution: int
) -> Recognised:
    foreign = [name for name in tensors if not OWN_NAME.match(name)]
    if foreign:
        raise QuadranasError(
            f"{source} looks like a {family}, but has tensors that none has: {some(foreign, 3)}",
            "Only networks of exactly this family can be embedded.",
        )
    if family == "MobileNetV2":
        _check_depths(tensors, source)
    try:
        architecture = _architecture(family, tensors, resolution)
    except ValidationError as error:
        fault = describe_faults(OpSpec, error)[0]
        raise QuadranasError(
            f"the tensors of {source} do not make a whole {family}: {fault}",
            "Save the state dict of the whole network; only networks of exactly this family can "
            "be embedded.",
        ) from error
    except _IncompleteError as error:
        raise QuadranasError(
            f"{source} looks like a {family}, but is incomplete: {error}",
            "Save the state dict of the whole network.",
        ) from error
    return Recognised(family, tensors, architecture)


class _IncompleteError(Exception):
    """Tensors are missing without which the architecture is unknown; says which."""


def _check_depths(tensors: Mapping[str, Tensor], source: str) -> None:
    """Refuse networks with the same layers but other depths.

    Raises:
        QuadranasError: a stage has another number of blocks than in MobileNetV2.
    """
    blocks = {OWN_NAME.match(name)[1] for name in tensors}  # type: ignore[index]
    stages = [f"stage{n}" for n in range(1, len(MOBILENET_DEPTHS) + 1)]
    found = tuple(sum(block.startswith(f"{stage}_") for block in blocks) for stage in stages)
    if found != MOBILENET_DEPTHS:
        raise QuadranasError(
            f"{source} is not a MobileNetV2: its stages have {', '.join(map(str, found))} blocks, "
            f"those of MobileNetV2 {', '.join(map(str, MOBILENET_DEPTHS))}",
            "Other networks with the names of these layers have other strides and activations, "
            "so they cannot be embedded.",
        )


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


def _quadratic_convnext(shapes: _Shapes, block: str) -> dict[str, Any]:
    return _feed_forward(shapes, block) | _quadratic_depthwise(shapes, block)


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
    cout, *_ = shapes.of("layers.6.weight" if expands else "layers.3.weight", axes=4)
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
    "quadratic_convnext": _quadratic_convnext,
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
