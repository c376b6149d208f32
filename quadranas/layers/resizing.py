"""Layers with a part of their weights: the centre of a kernel, the first of their channels."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Size, Tensor, nn

from quadranas.errors import QuadranasError
from quadranas.space.operation import LayerChange

CHANNELWISE = (nn.BatchNorm1d, nn.BatchNorm2d)
"""Layers that treat every channel by itself, besides depthwise convolutions."""

MIXING = (nn.Linear, nn.Conv2d)
"""Layers whose outputs each depend on all inputs, unless they are grouped."""


def part_of(tensor: Tensor, shape: Size) -> Tensor:
    """The centre of a kernel's height and width, and the first entries of all other axes.

    Args:
        shape: the shape of the part; a kernel has four axes.
    """
    for axis, (have, want) in enumerate(zip(tensor.shape, shape, strict=True)):
        is_spatial = tensor.ndim == 4 and axis >= 2
        tensor = tensor.narrow(axis, (have - want) // 2 if is_spatial else 0, want)
    return tensor


def is_depthwise(layer: nn.Module) -> bool:
    """Whether a layer is a convolution of every channel by itself."""
    return type(layer) is nn.Conv2d and 1 < layer.groups == layer.in_channels == layer.out_channels


def is_mixing(layer: nn.Module) -> bool:
    """Whether a layer is one whose outputs each depend on all inputs."""
    return type(layer) in MIXING and getattr(layer, "groups", 1) == 1


def resized_layers(model: nn.Module, change: LayerChange) -> Iterator[tuple[str, nn.Module]]:
    """The layers that a change of kind `kernel` or `hidden` replaces, by path, and the new ones.

    Raises:
        QuadranasError: a layer that cannot be resized in this way.
    """
    names = (change.name, *change.followers)
    modules = dict(model.named_modules(remove_duplicate=False))
    layers = [modules.get(name, nn.Identity()) for name in names]
    if change.kind == "kernel":
        if not (is_depthwise(layers[0]) and fits_kernel(layers[0], change.kernel_size)):
            raise _refusal(change, names[0], layers[0])
        yield change.name, _resized(layers[0], kernel_size=change.kernel_size)
        return
    first, *middle, last = layers
    if not layers[1:] or not is_mixing(first) or change.width > out_width(first):
        raise _refusal(change, names[0], first)
    width, whole = change.width, out_width(first)
    yield names[0], _resized(first, outputs=width)
    for name, layer in zip(names[1:-1], middle, strict=True):
        is_own = is_depthwise(layer) or type(layer) in CHANNELWISE
        if not is_own or out_width(layer) != whole:
            raise _refusal(change, name, layer)
        yield name, _resized(layer, inputs=width, outputs=width)
    if not is_mixing(last) or in_width(last) != whole:
        raise _refusal(change, names[-1], last)
    yield names[-1], _resized(last, inputs=width)


def _refusal(change: LayerChange, name: str, layer: nn.Module) -> QuadranasError:
    return QuadranasError(
        f"layer {name!r} ({layer}) cannot be resized by the change {change} of {change.name!r}",
        "The model is not the one that the space was made from; make the space again.",
    )


def fits_kernel(conv: nn.Module, size: int) -> bool:
    """Whether the centre of a convolution's kernel of a size gives outputs of the same shape."""
    assert isinstance(conv, nn.Conv2d)
    height, width = conv.kernel_size
    if conv.padding_mode != "zeros" or height != width or not height % 2 or not size % 2:
        return False
    same = tuple(d * (height - 1) // 2 for d in conv.dilation)
    return size <= height and conv.padding in ("same", same)


def out_width(layer: nn.Module) -> int:
    """The number of channels that a layer returns."""
    return int(_size(layer, ("out_channels", "out_features", "num_features")))


def in_width(layer: nn.Module) -> int:
    """The number of channels that a layer reads."""
    return int(_size(layer, ("in_channels", "in_features", "num_features")))


def _size(layer: nn.Module, names: tuple[str, ...]) -> Any:
    return next(getattr(layer, name) for name in names if hasattr(layer, name))


def _resized(
    layer: Any,
    *,
    inputs: int | None = None,
    outputs: int | None = None,
    kernel_size: int | None = None,
) -> nn.Module:
    """A layer with a part of the weights of another."""
    first = next(layer.parameters(), None)
    place = {} if first is None else {"device": first.device, "dtype": first.dtype}
    new: nn.Module
    if type(layer) in CHANNELWISE:
        options = (layer.eps, layer.momentum, layer.affine, layer.track_running_stats)
        new = type(layer)(outputs, *options, **place)
    elif isinstance(layer, nn.Linear):
        ends = (inputs or layer.in_features, outputs or layer.out_features)
        new = nn.Linear(*ends, layer.bias is not None, **place)
    else:
        cin, size = inputs or layer.in_channels, kernel_size or layer.kernel_size
        padding = layer.padding
        if kernel_size is not None and padding != "same":
            padding = tuple(d * (kernel_size - 1) // 2 for d in layer.dilation)
        groups = cin if is_depthwise(layer) else 1
        sizes = (cin, outputs or layer.out_channels, size, layer.stride, padding, layer.dilation)
        new = nn.Conv2d(*sizes, groups, layer.bias is not None, layer.padding_mode, **place)
    with torch.no_grad():
        own = layer.state_dict()
        for name, tensor in new.state_dict().items():
            tensor.copy_(part_of(own[name], tensor.shape))
    for name, parameter in layer.named_parameters():
        new.get_parameter(name).requires_grad_(parameter.requires_grad)
    return new.train(layer.training)
