"""Operators that no runtime can execute, because their operands do not fit each other."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from quadranas.errors import printable
from quadranas.prediction.tensors import Shape

CONVOLUTIONS = frozenset({"Conv", "ConvTranspose"})
WINDOWS = CONVOLUTIONS | {"MaxPool", "AveragePool", "LpPool", "DepthToSpace", "SpaceToDepth"}
REARRANGES = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose"})
PADS = "auto_pad"
AUTOMATIC_PADS = ("NOTSET", "SAME_LOWER", "SAME_UPPER", "VALID")
Known = Mapping[str, Shape]

MOST_SHOWN = 16
"""Number of sizes that a message shows; a file can hold millions."""


def fault_of_operands(node: Any, known: Known) -> str:
    """Why the inputs of an operator do not fit; empty if they do, or if their shapes are unknown.

    Shape inference compares the operands of the other operators.

    Args:
        node: an operator of ONNX's own domain.
        known: shapes by the names of the tensors.
    """
    found = next((a.s.decode(errors="replace") for a in node.attribute if a.name == PADS), "")
    if found and found not in AUTOMATIC_PADS:
        return f"its {PADS} is {printable(found[:40])!r}; accepted: {', '.join(AUTOMATIC_PADS)}"
    check = CHECKS.get(node.op_type)
    if check is None:
        return ""
    attributes = {a.name: a.i if a.HasField("i") else list(a.ints) for a in node.attribute}
    return check([known.get(name) for name in node.input], attributes)


def fault_of_results(node: Any, known: Known, results: Mapping[str, list[int]]) -> str:
    """Why the results of an operator are impossible; empty if they are not.

    Args:
        results: their sizes; those that are not known are left out of the mapping.
    """
    for shape in results.values():
        if any(size < 0 for size in shape) or (node.op_type in WINDOWS and 0 in shape):
            return f"its result would have the shape {_text(shape)}"
        if node.op_type in REARRANGES and node.input and node.input[0] in known:
            before = known[node.input[0]]
            if math.prod(before) != math.prod(shape):
                return (
                    f"{_text(before)} ({math.prod(before):,} elements) cannot become "
                    f"{_text(shape)} ({math.prod(shape):,})"
                )
    return ""


Shapes = list[Shape | None]


def _convolution(shapes: Shapes, attributes: Mapping[str, Any]) -> str:
    return _weighted(shapes, attributes, transposed=False)


def _transposed(shapes: Shapes, attributes: Mapping[str, Any]) -> str:
    return _weighted(shapes, attributes, transposed=True)


def _weighted(shapes: Shapes, attributes: Mapping[str, Any], *, transposed: bool) -> str:
    """The fault of a convolution; the weights of a transposed one begin with the inputs."""
    groups = attributes.get("group", 1)
    if groups < 1:
        return f"its number of groups is {groups}"
    image, weights, bias = (*shapes, None, None, None)[:3]
    if weights is None:
        return ""
    if len(weights) < 3:
        return f"its weights have the shape {_text(weights)}"
    first, second = weights[0], weights[1] * groups
    if first % groups:
        divided = "input channels" if transposed else "filters"
        return f"{first} {divided} cannot be divided into {groups} groups"
    kernel = attributes.get("kernel_shape", list(weights[2:]))
    if not transposed and kernel != list(weights[2:]):
        return f"its kernel is {_text(kernel)}, its weights {_text(weights)}"
    inputs, outputs = (first, second) if transposed else (second, first)
    return _convolution_of(image, inputs, len(weights)) or _vector(bias, outputs, "bias")


def _convolution_of(image: Shape | None, channels: int, rank: int) -> str:
    """The fault of a convolution's input, for the number of channels that its weights need."""
    if image is None:
        return ""
    if len(image) != rank:
        return f"its input has {len(image)} dimensions, its weights {rank}"
    if image[1] != channels:
        return f"its input has {image[1]} channels, its weights are for {channels}"
    return ""


def _vector(shape: Shape | None, size: int, what: str) -> str:
    if shape is None or shape == (size,):
        return ""
    return f"its {what} has the shape {_text(shape)} instead of {size}"


def _norm_per_channel(shapes: Shapes, attributes: Mapping[str, Any]) -> str:
    image = shapes[0] if shapes else None
    if image is None or len(image) < 2:
        return ""
    return next(filter(None, (_vector(s, image[1], "parameter") for s in shapes[1:])), "")


def _parameters(shapes: Shapes, attributes: Mapping[str, Any]) -> str:
    return _broadcast_into(shapes[1:], shapes[0]) if shapes and shapes[0] is not None else ""


def _broadcast_into(shapes: Shapes, whole: Shape) -> str:
    """The fault of parameters that do not broadcast to a shape."""
    for shape in shapes:
        if shape is None:
            continue
        pairs = zip(reversed(shape), reversed(whole), strict=False)
        if len(shape) > len(whole) or any(own not in (1, size) for own, size in pairs):
            return f"its parameter of the shape {_text(shape)} does not fit {_text(whole)}"
    return ""


def _permutation(shapes: Shapes, attributes: Mapping[str, Any]) -> str:
    order = attributes.get("perm")
    image = shapes[0] if shapes else None
    if order is None or image is None or sorted(order) == list(range(len(image))):
        return ""
    return f"its permutation {_text(order)} is not one of {len(image)} axes"


def _text(sizes: Any) -> str:
    shown = "x".join(map(str, sizes[:MOST_SHOWN])) or "()"
    return shown + "..." * (len(sizes) > MOST_SHOWN)


CHECKS: dict[str, Callable[[Shapes, Mapping[str, Any]], str]] = {
    "Conv": _convolution,
    "ConvTranspose": _transposed,
    "InstanceNormalization": _norm_per_channel,
    "LayerNormalization": _parameters,
    "PRelu": _parameters,
    "Transpose": _permutation,
}
