"""Selection of the layers to make quadratic, and the reasons why some cannot be."""

from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase
from typing import TypeAlias

from torch import nn
from torch.nn.modules.conv import _ConvNd as Conv
from torch.nn.utils.parametrize import ParametrizationList

from quadranas.errors import QuadranasError
from quadranas.layers.adapted import AdaptedLayer
from quadranas.layers.quadratic import QuadraticLayer
from quadranas.layers.replacement import is_first_order

Selector: TypeAlias = str | type[nn.Module] | Callable[[str, nn.Module], bool]
Select: TypeAlias = Selector | Iterable[Selector] | None
"""Types of layers; shell-style patterns of their paths, in which `*` also matches dots
(`features.*`); functions of path and layer; or several of these, of which a layer has to match
one. None selects all layers."""

SECOND_ORDER = (QuadraticLayer, AdaptedLayer)
"""Layers with a quadratic term; the first-order layers inside them are parts of their neurons."""

READERS = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)
"""Modules that read the tensors of the layers inside them, which cannot be replaced."""


def select_layers(model: nn.Module, select: Select = None) -> list[str]:
    """The paths of the selected first-order layers of a network, in its order.

    Raises:
        QuadranasError: a selector that matches no layer which can be made quadratic.
    """
    layers = weight_layers(model)
    obstacles = {name: obstacle(model, name, layer) for name, layer in layers.items()}
    chosen = chosen_layers(layers, obstacles, select)
    return [name for name in layers if name in chosen and not obstacles[name]]


def matching(names: Sequence[str], patterns: Sequence[str]) -> list[str]:
    """The names that match one of some shell-style patterns; all names without patterns.

    Raises:
        QuadranasError: a pattern that matches no name.
    """
    for pattern in patterns:
        if names and not any(fnmatchcase(name, pattern) for name in names):
            raise QuadranasError(
                f"no layer matches the pattern {pattern!r}", f"Layers: {', '.join(names[:8])} ..."
            )
    fits = (lambda name: any(fnmatchcase(name, p) for p in patterns)) if patterns else bool
    return [name for name in names if fits(name)]


def weight_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers with weights of two or more dimensions, by their first paths."""
    return {
        name: module
        for name, module in model.named_modules()
        if name and not isinstance(_owner(model, name), SECOND_ORDER) and _has_weights(module)
    }


def _has_weights(module: nn.Module) -> bool:
    if isinstance(module, Conv | nn.Linear | QuadraticLayer):
        return True
    if isinstance(module, ParametrizationList):  # which holds the weight of the layer around it
        return False
    own = module.parameters(recurse=False)
    return any(isinstance(p, nn.UninitializedParameter) or p.ndim > 1 for p in own)


def _owner(model: nn.Module, name: str) -> nn.Module | None:
    """The innermost module around a layer that replacing the layer would break."""
    while name:
        name = name.rpartition(".")[0]
        owner = model.get_submodule(name)
        if isinstance(owner, (*SECOND_ORDER, *READERS)):
            return owner
    return None


def obstacle(model: nn.Module, name: str, layer: nn.Module) -> str:
    """Why a layer cannot be replaced; empty if it can."""
    kind = type(layer).__name__
    if isinstance(layer, QuadraticLayer):
        return "already quadratic"
    owner = _owner(model, name)
    if owner is not None:
        return f"{type(owner).__name__} reads its weights directly"
    if isinstance(layer, nn.modules.lazy.LazyModuleMixin):
        return f"the size of {kind} is unknown before a first batch"
    padding = getattr(layer, "padding_mode", "zeros")
    if padding != "zeros":
        return f"{kind} padded with {padding!r} has no quadratic version"
    if not is_first_order(layer):
        return f"{kind} has no quadratic version"
    if isinstance(layer, Conv) and layer.padding == "same" and not _has_middle(layer):
        return f"{kind} has an even kernel, so it pads the two sides differently"
    if addition := _addition(layer):
        return addition
    weights = set(map(id, layer.parameters()))
    for other_name, other in model.named_modules():
        if other is not layer and weights & set(map(id, other.parameters(recurse=False))):
            return f"it shares its weight with {other_name or 'the network itself'}"
    return ""


def _addition(layer: nn.Module) -> str:
    """What was added to a layer and a replacement would lose; empty if nothing was."""
    kind = type(layer).__name__
    if layer._forward_hooks or layer._forward_pre_hooks:
        return "its hooks, such as a weight normalisation, would be lost"
    if "forward" in vars(layer):
        return f"its forward is not that of {kind}"
    if set(layer.state_dict()) - {"weight", "bias"} or len(list(layer.children())):
        return f"{kind} holds more than weight and bias"
    return ""


def _has_middle(conv: Conv) -> bool:
    spans = zip(conv.dilation, conv.kernel_size, strict=True)
    return all(dilation * (kernel - 1) % 2 == 0 for dilation, kernel in spans)


def chosen_layers(
    layers: dict[str, nn.Module], obstacles: dict[str, str], select: Select
) -> set[str]:
    """The layers that match a selector.

    Raises:
        QuadranasError: one of the selectors matches no layer that can be replaced.
    """
    chosen: set[str] = set()
    for selector in _selectors(select):
        met = {name for name, layer in layers.items() if _meets(selector, name, layer)}
        if not any(not obstacles[name] for name in met):
            raise _nothing(layers, obstacles, None if select is None else selector, met)
        chosen |= met
    return chosen


def _selectors(select: Select) -> list[Selector]:
    if select is None:
        return ["*"]
    if isinstance(select, str | type) or callable(select):
        return [select]
    selectors = list(select) if isinstance(select, Iterable) else []
    if not selectors:
        raise QuadranasError(
            f"select {select!r} names no layer; accepted: layer types, patterns, functions of "
            "path and layer, or a list of these",
            "Omit it to convert all layers.",
        )
    return selectors


def _meets(selector: Selector, name: str, layer: nn.Module) -> bool:
    if isinstance(selector, str):
        return fnmatchcase(name, selector)
    if isinstance(selector, type):
        return isinstance(layer, selector)
    return bool(selector(name, layer))


def _nothing(
    layers: dict[str, nn.Module],
    obstacles: dict[str, str],
    selector: Selector | None,
    met: Iterable[str],
) -> QuadranasError:
    """The error for a selector that matches no layer which can be replaced."""
    named = selector.__name__ if isinstance(selector, type) else repr(selector)
    what = "the network" if selector is None else f"select {named}"
    found = "; ".join(sorted({f"{name}: {obstacles[name]}" for name in met})[:5])
    stuck = [layers[name] for name, why in obstacles.items() if why]
    unsupported = sorted({type(m).__name__ for m in stuck if not isinstance(m, QuadraticLayer)})
    ready = [name for name, why in obstacles.items() if not why]
    return QuadranasError(
        f"{what} has no layer that can be made quadratic"
        + (f" ({found})" if found else "")
        + f"; unsupported kinds found: {', '.join(unsupported) or 'none'}; accepted: Linear, and "
        "Conv1d, Conv2d or Conv3d padded with zeros",
        f"Layers that can be: {', '.join(ready[:5])}{' ...' if len(ready) > 5 else ''}"
        if ready
        else "Build the network of such layers.",
    )
