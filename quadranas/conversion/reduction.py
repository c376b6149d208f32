"""Reduction: removing layers of a network, and making quadratic layers first-order again.

Source: QuadraLib, Xu et al., MLSys 2022 (arXiv:2204.01701): the auto-builder's treatment of the
least important layers.
"""

import copy
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm
from torch.nn.modules.conv import _ConvNd as Conv

from quadranas.errors import QuadranasError
from quadranas.layers.first_order import Convolution
from quadranas.layers.quadratic import QuadraticLayer
from quadranas.layers.replacement import changed, copied, find_layer, put_layer
from quadranas.space.architecture import Architecture, LayerChange

Model = TypeVar("Model", bound=nn.Module)
Layer = nn.Linear | Conv | QuadraticLayer


def why_not_removable(layer: nn.Module) -> str:
    """Why a layer's input cannot replace its output; empty if it can."""
    if not isinstance(layer, Layer):
        return f"{type(layer).__name__} is neither linear, nor convolutional, nor quadratic"
    if getattr(layer, "transposed", False):
        return f"{type(layer).__name__} may change the size of its input"
    of = "features" if hasattr(layer, "in_features") else "channels"
    inputs, outputs = getattr(layer, f"in_{of}"), getattr(layer, f"out_{of}")
    if inputs != outputs:
        return f"it turns {inputs} {of} into {outputs}"
    window = layer.operator if isinstance(layer, QuadraticLayer) else layer
    if isinstance(window, Conv | Convolution) and not _keeps_size(window):
        return "it changes the size of the image"
    return ""


def _keeps_size(window: Conv | Convolution) -> bool:
    if max(window.stride) > 1 or window.padding == "same":
        return max(window.stride) == 1
    padding = (0,) * len(window.stride) if isinstance(window.padding, str) else window.padding
    spans = zip(padding, window.dilation, window.kernel_size, strict=True)
    return all(2 * margin == dilation * (kernel - 1) for margin, dilation, kernel in spans)


def remove(model: Model, names: Sequence[str]) -> Model:
    """A copy of a network without some layers: their inputs become their outputs.

    The normalisation and the activation after a removed layer are kept.

    Raises:
        QuadranasError: an unknown layer, a layer whose output has another shape than its input,
            or no layer would be left.
    """
    _check_names(names, "remove")
    for name in names:
        obstacle = why_not_removable(find_layer(model, name))
        if obstacle:
            raise QuadranasError(
                f"layer {name!r} cannot be removed: {obstacle}",
                "Remove layers whose output has the shape of their input.",
            )
    gone = {id(find_layer(model, name)) for name in names}
    if all(id(layer) in gone for layer in _layers(model)):
        raise QuadranasError(
            f"removing {', '.join(names)} would leave no layer with weights",
            "Keep at least one.",
        )
    return changed(model, [LayerChange(name=name, kind="removed") for name in names])


def _layers(model: nn.Module) -> list[nn.Module]:
    """The layers of a network, without the branches inside quadratic ones."""
    quadratic = [m for m in model.modules() if isinstance(m, QuadraticLayer)]
    inside = {id(part) for layer in quadratic for part in layer.modules() if part is not layer}
    return [m for m in model.modules() if isinstance(m, Layer) and id(m) not in inside]


def revert(model: Model, names: Sequence[str]) -> Model:
    """A copy of a network in which some quadratic layers are first-order again.

    The weights of the linear term (branch c) are kept; forms without a linear term keep those of
    branch a. A BatchNorm on the branch is folded into the weights; its shift only if the layer
    has a bias, because a layer without a bias is usually followed by a normalisation. The network
    needs further training.

    Raises:
        QuadranasError: an unknown layer, a layer that is not quadratic, or one without branches.
    """
    _check_names(names, "revert")
    model = copied(model, names)
    quadratic = {name: find_layer(model, name) for name in names}
    for name, layer in quadratic.items():
        obstacle = why_not_revertible(layer)
        if obstacle:
            raise QuadranasError(
                f"layer {name!r} cannot be reverted: {obstacle}",
                "Name layers that convert() has made quadratic.",
            )
    for name, layer in quadratic.items():
        if find_layer(model, name) is layer:  # not yet replaced under another path
            assert isinstance(layer, QuadraticLayer)
            put_layer(model, name, first_order(layer).train(layer.training))
    architecture = getattr(model, "architecture", None)
    if isinstance(architecture, Architecture):
        model.architecture = _without_changes(architecture, names)  # type: ignore[assignment]
    return model


def _without_changes(architecture: Architecture, names: Sequence[str]) -> Architecture | None:
    """The architecture of a network with some layers reverted.

    None where a layer is quadratic in the architecture's own operations: no architecture
    describes these with a first-order layer.
    """
    if not set(names) <= {change.name for change in architecture.changes}:
        return None
    kept = tuple(change for change in architecture.changes if change.name not in names)
    return architecture.model_copy(update={"changes": kept})


def why_not_revertible(layer: nn.Module) -> str:
    """Why a layer cannot be made first-order again; empty if it can."""
    if not isinstance(layer, QuadraticLayer):
        return f"{type(layer).__name__} is not a quadratic layer"
    return "" if layer.branches else f"form {layer.form!r} has no first-order branch"


def first_order(layer: QuadraticLayer) -> nn.Module:
    """The first-order layer that replaces a quadratic one; see `revert`."""
    name = "c" if "c" in layer.branches else "a"
    branch = copy.deepcopy(layer.branches[name])
    if len(layer.norms):
        norm = layer.norms[name]
        assert isinstance(norm, BatchNorm)
        _fold(branch, norm)
    return branch


@torch.no_grad()
def _fold(branch: nn.Module, norm: BatchNorm) -> None:
    """Fold a BatchNorm, as in evaluation, into the weights before it."""
    assert isinstance(norm.running_mean, Tensor)
    assert isinstance(norm.running_var, Tensor)
    assert isinstance(branch.weight, Tensor)
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    branch.weight.mul_(scale.view(-1, *(1 for _ in branch.weight.shape[1:])))
    if isinstance(branch.bias, Tensor):
        branch.bias.sub_(norm.running_mean).mul_(scale).add_(norm.bias)


def _check_names(names: Sequence[str], verb: str) -> None:
    if isinstance(names, str) or not names:
        raise QuadranasError(
            f"there is no layer to {verb}: got {names!r}", "Pass a list of names of layers."
        )
