"""The supernet of a user's own model: the model itself, with its parts mixed in place.

The candidates of a part share the weights of the model: smaller kernels are the centres of its
kernels, smaller hidden widths its most important hidden units, and a quadratic layer has the
model's layer as its linear term, with a quadratic term that is zero at the start.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from quadranas.layers.adapted import AdaptedLayer
from quadranas.layers.hidden_units import importance
from quadranas.layers.quadratic import QuadraticLayer
from quadranas.layers.replacement import find_layer, put_layer
from quadranas.network.own_model import changed_part, given_model
from quadranas.space.operation import OpSpec
from quadranas.space.own_space_file import REST
from quadranas.space.search_space import SearchSpace
from quadranas.supernet.nested import NestedCandidate

SECOND_ORDER = ("quadratic", "adapted")


def own_parts(space: SearchSpace) -> tuple[nn.Module, dict[str, tuple[nn.Module, ...]]]:
    """A copy of the user's model, and per block the largest candidate and all candidates."""
    assert space.model is not None
    model, parts = given_model(space.model), {}
    for block in space.blocks[:-1]:
        specs = block.slots[0].candidates
        part = find_layer(model, specs[0].own_part.layer)
        shared = _largest(part, specs)
        candidates = tuple(_candidate(spec, part, shared) for spec in specs)
        parts[block.name] = (shared, *candidates)
    return model, parts


def put_parts(model: nn.Module, space: SearchSpace, parts: Mapping[str, nn.Module]) -> None:
    """Put the mixed blocks in the places of the parts."""
    for block in space.blocks[:-1]:
        put_layer(model, block.slots[0].candidates[0].own_part.layer, parts[block.name])


def _largest(part: nn.Module, specs: tuple[OpSpec, ...]) -> nn.Module:
    """The part with all second-order terms of its candidates, and sorted hidden units."""
    layer, changes = specs[0].own_part.layer, [c for spec in specs for c in spec.own_part.changes]
    sorted_part = changed_part(part, layer, ())
    for change in {c.name: c for c in changes if c.kind == "hidden"}.values():
        names = (change.name, *change.followers)
        _sort_hidden([_inside(sorted_part, layer, name) for name in names])
    terms = {c.name: c for c in changes if c.kind in SECOND_ORDER}
    whole = changed_part(sorted_part, layer, terms.values())
    for name, change in terms.items():
        if change.kind == "quadratic":
            _inherit(_inside(whole, layer, name), _inside(sorted_part, layer, name))
    return whole


def _inside(part: nn.Module, layer: str, name: str) -> nn.Module:
    """The layer of a path in the model, in a part of the model."""
    return part.get_submodule(name[len(layer) + 1 :])


@torch.no_grad()
def _inherit(quadratic: nn.Module, layer: nn.Module) -> None:
    """Compute what the first-order layer does: it is the linear term, and factor `a` is zero."""
    assert isinstance(quadratic, QuadraticLayer)
    branches = quadratic.branches
    branches["c"].load_state_dict(layer.state_dict())
    for parameter in branches["a"].parameters():
        nn.init.zeros_(parameter)


@torch.no_grad()
def _sort_hidden(layers: list[nn.Module]) -> None:
    """Order the hidden units between the first and the last layer by importance.

    This changes no output.
    """
    tensors, axes, eps = {}, {}, {}
    for number, layer in enumerate(layers):
        is_last = layer is layers[-1]
        for leaf, tensor in layer.state_dict().items():
            name = f"{number}.{leaf}"
            tensors[name] = tensor
            if tensor.ndim and not (is_last and leaf == "bias"):
                axes[name] = 1 if is_last else 0
        if isinstance(layer, BatchNorm):
            eps[f"{number}.running_var"] = layer.eps
    order = importance(tensors, axes, eps).argsort(descending=True, stable=True)
    for name, axis in axes.items():
        tensors[name].copy_(tensors[name].index_select(axis, order))


def _candidate(spec: OpSpec, part: nn.Module, shared: nn.Module) -> NestedCandidate:
    own = spec.own_part
    form = changed_part(part, own.layer, own.changes).to("meta")
    sources = {}
    for name in (*dict(form.named_parameters()), *dict(form.named_buffers())):
        path, _, leaf = name.rpartition(".")
        try:
            module = shared.get_submodule(path)
        except AttributeError:
            continue
        # A first-order layer is the linear term of its second-order version.
        inner = {QuadraticLayer: "c", AdaptedLayer: "first_order"}
        for kind, term in inner.items():
            if isinstance(module, kind) and not isinstance(form.get_submodule(path), kind):
                sources[name] = ".".join(filter(None, (path, term, leaf)))
    return NestedCandidate(form, shared, sources)


class Rest(nn.Module):
    """Everything in a user's own model that no search changes, as a candidate without a gate.

    Args:
        model: the model, in which the parts of the search are mixed.
        parts: paths of these parts.
    """

    def __init__(self, model: nn.Module, parts: tuple[str, ...]) -> None:
        super().__init__()
        self._model, self._parts = (model,), tuple(f"{part}." for part in parts)

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Parameter]]:
        """Those of the model outside the parts."""
        for name, parameter in self._model[0].named_parameters(*args, **kwargs):
            if not name.startswith(self._parts):
                yield name, parameter

    def state_dict(  # type: ignore[override]
        self, *args: Any, **kwargs: Any
    ) -> dict[str, Tensor]:
        """The tensors of the model outside the parts."""
        whole = self._model[0].state_dict(*args, **kwargs).items()
        return {name: tensor for name, tensor in whole if not name.startswith(self._parts)}


def prefix_of(block: str, spec: OpSpec) -> str:
    """What begins the names of an operation's tensors in a network."""
    if spec.own is None:
        return f"blocks.{block}.{spec.kind}."
    return f"blocks.{REST}.{spec.own.layer}{'.' if spec.own.layer else ''}"
