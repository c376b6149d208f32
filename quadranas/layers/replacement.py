"""Replacement of layers in a network, as described by its `LayerChange` records."""

import copy
import functools
from collections.abc import Callable, Collection, Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from quadranas.errors import QuadranasError, nearest
from quadranas.layers.adapted import AdaptedLayer
from quadranas.layers.quadratic import QUADRATIC_CONVS, QuadraticLayer, QuadraticLinear
from quadranas.layers.references import check_functions, redirect
from quadranas.layers.resizing import resized_layers
from quadranas.space.architecture import Architecture, LayerChange

Model = TypeVar("Model", bound=nn.Module)
FIRST_ORDER = (nn.Linear, *QUADRATIC_CONVS)
"""Types of the layers that have a quadratic version, without their subclasses, which may compute
something else."""


def is_first_order(module: nn.Module) -> bool:
    """Whether a module is a layer that can be replaced by a quadratic or an adapted one."""
    padded_with_zeros = getattr(module, "padding_mode", "zeros") == "zeros"
    return type(module) in FIRST_ORDER and padded_with_zeros


def _quadratic(change: LayerChange, layer: nn.Module) -> nn.Module:
    options: dict[str, Any] = {"form": change.form, "norm": change.norm}
    bias = layer.bias is not None
    if isinstance(layer, nn.Linear):
        return QuadraticLinear(layer.in_features, layer.out_features, bias, **options)
    assert isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d)
    quadratic: nn.Module = QUADRATIC_CONVS[type(layer)](
        layer.in_channels,
        layer.out_channels,
        layer.kernel_size,
        layer.stride,
        layer.padding,
        layer.dilation,
        layer.groups,
        bias,
        **options,
    )
    return quadratic


def _adapted(change: LayerChange, layer: nn.Module) -> nn.Module:
    try:
        return AdaptedLayer(layer, rank=change.rank, dilation=change.dilation)
    except QuadranasError as error:
        raise QuadranasError(
            f"layer {change.name!r}: {error.message}",
            "Choose a lower rank, or exclude this layer.",
        ) from error


def _removed(change: LayerChange, layer: nn.Module) -> nn.Module:
    return nn.Identity()


class Zeros(nn.Module):
    """Zeros in the shape of the input, for a layer whose output is added to its input."""

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: any, to the same."""
        return torch.zeros_like(x)


def _zeroed(change: LayerChange, layer: nn.Module) -> nn.Module:
    return Zeros()


REPLACEMENTS: dict[str, Callable[[LayerChange, nn.Module], nn.Module]] = {
    "quadratic": _quadratic,
    "adapted": _adapted,
    "removed": _removed,
    "zeroed": _zeroed,
}
"""Per kind of change, a function that builds the new layer, with PyTorch's global generator.

An adapted layer contains the layer it replaces; the others discard its weights.
"""


def changed(model: Model, changes: Iterable[LayerChange]) -> Model:
    """A copy of a network with some layers replaced, in the order of the changes.

    If the network has an `architecture`, that of the copy lists the changes too. Attributes that
    were added to a layer are kept.

    Raises:
        QuadranasError: unknown layer, or a layer that cannot be replaced in this way.
    """
    changes = tuple(changes)
    model = copied(
        model, [name for change in changes for name in (change.name, *change.followers)]
    )
    for change in changes:
        layer = find_layer(model, change.name)
        if change.kind in ("kernel", "hidden"):
            for name, resized in list(resized_layers(model, change)):
                put_layer(model, name, resized)
            continue
        if change.kind not in ("removed", "zeroed") and not is_first_order(layer):
            kind = type(layer).__name__
            padding = getattr(layer, "padding_mode", "zeros")
            detail = f" padded with {padding!r}" if padding != "zeros" else ""
            raise QuadranasError(
                f"layer {change.name!r} is a {kind}{detail}, which has no quadratic version; "
                "accepted: Linear, and Conv1d, Conv2d or Conv3d padded with zeros"
            )
        new = REPLACEMENTS[change.kind](change, layer)
        parameter = next(layer.parameters(), None)
        if parameter is not None:
            new.to(parameter.device, parameter.dtype)
        if isinstance(new, QuadraticLayer | AdaptedLayer):
            new.path = change.name
            _keep_attributes(layer, new)
        put_layer(model, change.name, new.train(layer.training))
    architecture = getattr(model, "architecture", None)
    if isinstance(architecture, Architecture):
        update = {"changes": (*architecture.changes, *changes)}
        model.architecture = architecture.model_copy(update=update)  # type: ignore[assignment]
    return model


def find_layer(model: nn.Module, name: str) -> nn.Module:
    """Find a layer by its path.

    Raises:
        QuadranasError: unknown path; the nearest is suggested.
    """
    layers: dict[str, nn.Module] = dict(model.named_modules(remove_duplicate=False))
    if name not in layers or not name:
        raise QuadranasError(
            f"the network has no layer {name!r}{nearest(name, layers)}",
            "Print the model to see the names of its layers.",
        )
    return layers[name]


def copied(model: Model, names: Collection[str]) -> Model:
    """A copy of a network in which some layers can be replaced.

    Raises:
        QuadranasError: it cannot be copied, or the copy would compute with these layers of the
            original.
    """
    try:
        copy_ = copy.deepcopy(model)
    except Exception as error:  # of PyTorch, or of what the network holds
        lines = str(error).splitlines() or [type(error).__name__]
        raise QuadranasError(
            f"the network cannot be copied: {lines[0]}",
            "Remove what copy.deepcopy refuses, such as the old torch.nn.utils.weight_norm, "
            "which torch.nn.utils.parametrizations.weight_norm replaces.",
        ) from error
    check_functions(copy_, names, model)
    return copy_


def _keep_attributes(old: nn.Module, new: nn.Module) -> None:
    """Give a new layer the attributes that others have added to the old one."""
    for name, value in vars(old).items():
        if name not in _plain_attributes() and not hasattr(new, name):
            setattr(new, name, value)


@functools.cache
def _plain_attributes() -> frozenset[str]:
    """Names of the attributes that PyTorch gives to the layers with a quadratic version."""
    plain = [nn.Linear(1, 1, device="meta")]
    convs = [conv(1, 1, 1, device="meta") for conv in QUADRATIC_CONVS]
    return frozenset(name for layer in (*plain, *convs) for name in vars(layer))


def put_layer(model: nn.Module, name: str, layer: nn.Module) -> None:
    """Replace a layer, wherever the network refers to it.

    Raises:
        QuadranasError: a function in the network refers to it.
    """
    old = model.get_submodule(name)
    for path, module in list(model.named_modules(remove_duplicate=False)):
        if module is old:
            parent, _, leaf = path.rpartition(".")
            setattr(model.get_submodule(parent), leaf, layer)
    redirect(model, old, layer, name)


def quadratic_layers(model: nn.Module) -> dict[str, QuadraticLayer]:
    """The quadratic layers of a network, by path."""
    return {n: m for n, m in model.named_modules() if isinstance(m, QuadraticLayer)}


def set_memory_efficient(model: nn.Module, on: bool) -> None:
    """Switch the memory-efficient back-propagation of all quadratic layers on or off."""
    for layer in quadratic_layers(model).values():
        layer.memory_efficient = on
