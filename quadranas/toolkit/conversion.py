"""Making the layers of any network quadratic.

Source: QuadraLib, Xu et al., MLSys 2022 (arXiv:2204.01701), the auto-builder's first step: every
first-order layer becomes its quadratic version.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TypeAlias, TypeVar

from torch import nn
from torch.nn.modules.conv import _ConvNd as Conv
from torch.nn.utils.parametrize import ParametrizationList

from quadranas.architecture import LayerChange
from quadranas.errors import QuadranasError
from quadranas.layers.algebra import find_form
from quadranas.layers.quadratic import QuadraticLayer
from quadranas.layers.replacement import changed, is_first_order

Model = TypeVar("Model", bound=nn.Module)
Selector: TypeAlias = str | type[nn.Module] | Callable[[str, nn.Module], bool]
Select: TypeAlias = Selector | Iterable[Selector] | None

READERS = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)
"""Modules that read the tensors of the layers inside them, which therefore have to stay."""


@dataclass(frozen=True, kw_only=True)
class LayerReport:
    """What a conversion does with one layer.

    Args:
        name: its path, the first one where the network holds it in several places.
        kind: its class.
        change: how it is replaced; none where it stays.
        reason: why it stays; empty where it is replaced.
    """

    name: str
    kind: str
    change: LayerChange | None = None
    reason: str = ""


def convert(
    model: Model,
    form: str = "hadamard",
    select: Select = None,
    norm: bool = False,
    keep_ends: bool = True,
) -> Model:
    """A copy of a network with its linear and convolutional layers made quadratic.

    The new layers draw their weights from PyTorch's generator; all others keep theirs. A layer
    that the network holds in several places is replaced by one new layer in all of them.

    Args:
        form: the neuron, a key of `quadranas.layers.algebra.FORMS`.
        select: which layers: types; patterns of their paths as in a shell, in which `*` also
            passes dots (`features.*`); predicates of path and layer; or several of these, of
            which a layer has to meet one. All, if not given.
        norm: BatchNorm on every branch of the new layers.
        keep_ends: leave the first and the last layer, in the order of registration, as they are.

    Raises:
        QuadranasError: unknown form, or a selector that no replaceable layer meets; it lists the
            kinds of layers found that have no quadratic version.
    """
    report = plan_conversion(model, form, select, norm, keep_ends)
    return changed(model, [layer.change for layer in report if layer.change])


def plan_conversion(
    model: nn.Module,
    form: str = "hadamard",
    select: Select = None,
    norm: bool = False,
    keep_ends: bool = True,
) -> list[LayerReport]:
    """What `convert` would do with every layer of a network that has weights, in order.

    Normalisations, and the branches of quadratic layers, are not listed.

    Raises:
        QuadranasError: as `convert`.
    """
    if find_form(form).branches == ("c",) and not find_form(form).matrix:
        raise QuadranasError(
            f"form {form!r} is the first-order one, which the layers have already",
            "Name a second-order form, such as hadamard.",
        )
    layers = _weight_layers(model)
    obstacles = {name: _obstacle(model, name, layer) for name, layer in layers.items()}
    chosen = _chosen(layers, obstacles, select)
    ends = {name for name in (*list(layers)[:1], *list(layers)[-1:]) if keep_ends}
    report = []
    for name, layer in layers.items():
        reason = obstacles[name] or ("" if name in chosen else "not selected")
        reason = reason or ("the first or last layer" if name in ends else "")
        change = LayerChange(name=name, kind="quadratic", form=form, norm=norm)
        report.append(
            LayerReport(
                name=name,
                kind=type(layer).__name__,
                change=None if reason else change,
                reason=reason,
            )
        )
    if not any(layer.change for layer in report):
        raise QuadranasError(
            f"no layer would be replaced: those selected are the network's first or last one "
            f"({', '.join(sorted(ends & chosen))}), which stay",
            "Select others; in Python, keep_ends=False converts these too.",
        )
    return report


def matching(names: Sequence[str], patterns: Sequence[str]) -> list[str]:
    """The names that fit one of some patterns, as in a shell; all of them without patterns.

    Raises:
        QuadranasError: a pattern that no name fits.
    """
    for pattern in patterns:
        if names and not any(fnmatchcase(name, pattern) for name in names):
            raise QuadranasError(
                f"no layer fits the pattern {pattern!r}", f"Layers: {', '.join(names[:8])} ..."
            )
    fits = (lambda name: any(fnmatchcase(name, p) for p in patterns)) if patterns else bool
    return [name for name in names if fits(name)]


def _weight_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers with weights of two axes or more, by their first paths."""
    return {
        name: module
        for name, module in model.named_modules()
        if name and not isinstance(_owner(model, name), QuadraticLayer) and _has_weights(module)
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
        if isinstance(owner, (QuadraticLayer, *READERS)):
            return owner
    return None


def _obstacle(model: nn.Module, name: str, layer: nn.Module) -> str:
    """Why a layer cannot be replaced; empty where it can."""
    kind = type(layer).__name__
    if isinstance(layer, QuadraticLayer):
        return "it is quadratic already"
    owner = _owner(model, name)
    if owner is not None:
        return f"{type(owner).__name__} reads its weights itself"
    if isinstance(layer, nn.modules.lazy.LazyModuleMixin):
        return f"{kind} knows its size only after a first batch"
    padding = getattr(layer, "padding_mode", "zeros")
    if padding != "zeros":
        return f"{kind} padded with {padding!r} has no quadratic version"
    if not is_first_order(layer):
        return f"{kind} has no quadratic version"
    if isinstance(layer, Conv) and layer.padding == "same" and not _has_middle(layer):
        return f"{kind} pads two sides differently, having a kernel without a middle"
    if layer._forward_hooks or layer._forward_pre_hooks:
        return "it has hooks, such as a weight normalisation, that would be lost"
    weights = set(map(id, layer.parameters()))
    for other_name, other in model.named_modules():
        if other is not layer and weights & set(map(id, other.parameters(recurse=False))):
            return f"it shares its weight with {other_name or 'the network itself'}"
    return ""


def _has_middle(conv: Conv) -> bool:
    spans = zip(conv.dilation, conv.kernel_size, strict=True)
    return all(dilation * (kernel - 1) % 2 == 0 for dilation, kernel in spans)


def _chosen(layers: dict[str, nn.Module], obstacles: dict[str, str], select: Select) -> set[str]:
    """The layers that meet a selector.

    Raises:
        QuadranasError: one of the selectors meets no layer that can be replaced.
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
            "Leave it out to convert all layers.",
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
    """The error for a selector that meets no layer that can be replaced."""
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
