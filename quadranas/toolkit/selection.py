"""Naming the layers of a network that are to become quadratic: by type, by name, by a function."""

from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase

from torch import nn

from quadranas.errors import QuadranasError, nearest
from quadranas.layers.adapted import AdaptedLayer
from quadranas.layers.quadratic import QuadraticLayer
from quadranas.layers.replacement import is_first_order

Predicate = Callable[[str, nn.Module], bool]
Selection = str | type[nn.Module] | Predicate | Iterable[str | type[nn.Module]]
"""A type of layer, a pattern of names such as `blocks.*.expand`, several of them, or a function
of a layer's name and the layer."""

SECOND_ORDER = (QuadraticLayer, AdaptedLayer)
"""Layers with a quadratic term: the first-order layers inside them are parts of their neurons."""


def select_layers(
    model: nn.Module, select: Selection | None = None, *, keep_ends: bool = False
) -> list[str]:
    """The first-order layers of a network that are meant, by their paths, in its order.

    Linear layers and zero-padded convolutions are first-order layers, unless they are parts of a
    layer that is quadratic already.

    Args:
        select: which of them; all if not given.
        keep_ends: leave out the first and the last first-order layer of the network (its stem and
            its classifier), whatever `select` says.

    Raises:
        QuadranasError: none is meant, or one of several patterns or types fits none.
    """
    layers = first_order_layers(model)
    if select is None:
        meant = set(layers)
    elif callable(select) and not isinstance(select, type):
        meant = {name for name, layer in layers.items() if select(name, layer)}
    else:
        wanted = [select] if isinstance(select, str | type) else list(select)
        meant = {name for one in wanted for name in _fitting(layers, one)}
    ends = {next(iter(layers), None), next(reversed(layers), None)} if keep_ends else set()
    names = [name for name in layers if name in meant and name not in ends]
    if not names:
        ends_too = " besides the first and the last" if keep_ends else ""
        raise QuadranasError(f"none of the network's {len(layers)} layers is selected{ends_too}")
    return names


def first_order_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Linear layers and convolutions that can be made quadratic or adapted, by their paths."""
    modules = dict(model.named_modules())
    parts = {
        f"{name}.{inner}"
        for name, module in modules.items()
        if isinstance(module, SECOND_ORDER)
        for inner, _ in module.named_modules()
    }
    return {
        name: module
        for name, module in modules.items()
        if name and name not in parts and is_first_order(module)
    }


def _fitting(layers: dict[str, nn.Module], wanted: str | type[nn.Module]) -> list[str]:
    """The layers that one pattern or type means.

    Raises:
        QuadranasError: none; the nearest name or the types there are.
    """
    if isinstance(wanted, str):
        found = [name for name in layers if fnmatchcase(name, wanted)]
        problem = f"no layer of the network is named {wanted!r}{nearest(wanted, layers)}"
    else:
        found = [name for name, layer in layers.items() if isinstance(layer, wanted)]
        types = sorted({type(layer).__name__ for layer in layers.values()})
        problem = f"no layer is a {wanted.__name__}; there are: {', '.join(types) or 'none'}"
    if not found:
        raise QuadranasError(
            problem, "Linear layers and zero-padded convolutions can be selected; print the model."
        )
    return found
