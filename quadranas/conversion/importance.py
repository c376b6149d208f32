"""Importance of layers: their cost, and the accuracy lost by masking one at a time.

Source: QuadraLib, Xu et al., MLSys 2022 (arXiv:2204.01701), the auto-builder's second step: the
layers with the highest `RI = P_M * P_W / dA` are removed or reverted. P_M and P_W are a layer's
shares of the network's parameters and of its MACs, dA is the accuracy that is lost when the
layer's output is set to zero.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from typing import Annotated, Any, Literal, TypeAlias

import torch
from matplotlib.figure import Figure
from pydantic import BeforeValidator, PlainSerializer
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from quadranas.conversion.reduction import why_not_removable
from quadranas.data.task import accuracy_on
from quadranas.errors import QuadranasError
from quadranas.layers.replacement import find_layer, is_first_order, quadratic_layers
from quadranas.network.modes import evaluating
from quadranas.validation import Frozen

Evaluate: TypeAlias = Callable[[nn.Module], float]
Batches: TypeAlias = Iterable[tuple[Tensor, Tensor]]


def _index_from_json(value: Any) -> Any:
    return math.inf if value is None else value


def _index_to_json(value: float) -> float | None:
    return value if math.isfinite(value) else None


RelativeImportance = Annotated[
    float,
    BeforeValidator(_index_from_json),
    PlainSerializer(_index_to_json, float | None, when_used="json"),
]
"""A number that may be infinite; in JSON, which has no infinity, that is null."""


class RankedLayer(Frozen):
    """The cost of a layer and its effect on the accuracy.

    Args:
        name, kind: path and class of the layer.
        params, macs: number of its parameters, and of its multiply-accumulates for the example.
        params_share, macs_share: its share of the parameters (P_M) and of the multiply-accumulates
            (P_W).
        accuracy_drop: dA: the accuracy of the network minus that with the layer masked, as a
            fraction.
        ri: P_M * P_W / dA, high for an expensive layer with little effect; infinite if masking
            does not reduce the accuracy.
        obstacle: why the layer cannot be removed; empty if it can.
    """

    name: str
    kind: str
    params: int
    macs: int
    params_share: float
    macs_share: float
    accuracy_drop: float
    ri: RelativeImportance
    obstacle: str


def rank_layers(
    model: nn.Module,
    data: Evaluate | Batches,
    example: Tensor | None = None,
    names: Sequence[str] | None = None,
) -> list[RankedLayer]:
    """Rank the layers of a trained network; the ones to remove or to revert come first.

    Infinite indices come first, in descending order of P_M * P_W; equal layers keep the network's
    order. The network is not changed.

    Args:
        data: batches of inputs and labels that can be iterated repeatedly, such as a DataLoader;
            or a function that returns the accuracy of a network, 0 to 1.
        example: an input to count MACs with. Default: the first input of the batches.
        names: the layers to rank. Default: the quadratic ones; in a network without any, the
            linear and convolutional ones.

    Raises:
        QuadranasError: an unknown layer, no layer to rank, no images, or an accuracy outside
            0 to 1.
    """
    layers = _layers(model, names)
    evaluate = data if callable(data) else _accuracy_on(data)
    if example is None:
        example = _first_input(data)
    macs, total_macs = _count_macs(model, layers, example)
    total_params = sum(parameter.numel() for parameter in model.parameters())
    accuracy = _checked(evaluate(model))
    ranked = []
    for name, layer in layers.items():
        params = sum(parameter.numel() for parameter in layer.parameters())
        drop = accuracy - _masked_accuracy(model, layer, evaluate)
        shares = (params / max(total_params, 1), macs[name] / max(total_macs, 1))
        ranked.append(
            RankedLayer(
                name=name,
                kind=type(layer).__name__,
                params=params,
                macs=macs[name],
                params_share=shares[0],
                macs_share=shares[1],
                accuracy_drop=drop,
                ri=shares[0] * shares[1] / drop if drop > 0 else math.inf,
                obstacle=why_not_removable(layer),
            )
        )
    return sorted(ranked, key=lambda r: (-r.ri, -r.params_share * r.macs_share))  # stable


def pick(
    ranking: Sequence[RankedLayer], count: int, verb: Literal["remove", "revert"]
) -> list[str]:
    """The names of the first `count` layers of a ranking that can be removed or reverted.

    Raises:
        QuadranasError: the ranking has fewer such layers.
    """
    names = [layer.name for layer in ranking if verb == "revert" or not layer.obstacle]
    if not 1 <= count <= len(names):
        fixed = [f"{layer.name}: {layer.obstacle}" for layer in ranking if layer.name not in names]
        raise QuadranasError(
            f"cannot {verb} {count} layers: {len(names)} of the {len(ranking)} ranked layers can "
            f"be {verb}{'d' if verb == 'remove' else 'ed'}",
            "; ".join([*fixed[:5], f"choose 1 to {len(names)}" if names else "convert others"]),
        )
    return names[:count]


def plot_ranking(ranking: Sequence[RankedLayer]) -> Figure:
    """Bars of the shares, accuracy drops and indices of ranked layers, the first at the top."""
    figure = Figure(figsize=(10, 1.2 + 0.3 * len(ranking)), layout="constrained")
    shares, drops, indices = figure.subplots(1, 3, sharey=True)
    names = [layer.name for layer in ranking]
    rows = range(len(ranking))
    shares.barh([r - 0.2 for r in rows], [100 * r.params_share for r in ranking], 0.4, label="P_M")
    shares.barh([r + 0.2 for r in rows], [100 * r.macs_share for r in ranking], 0.4, label="P_W")
    shares.set(xlabel="share, %", yticks=list(rows), yticklabels=names)
    shares.legend()
    drops.barh(rows, [100 * layer.accuracy_drop for layer in ranking], color="tab:red")
    drops.set(xlabel="accuracy drop dA, %")
    finite = [layer.ri for layer in ranking if math.isfinite(layer.ri)]
    longest = max(finite, default=1.0) or 1.0
    for row, layer in enumerate(ranking):
        endless = math.isinf(layer.ri)
        bar = 1.1 * longest if endless else layer.ri
        indices.barh(row, bar, color="none" if endless else "tab:green", edgecolor="tab:green")
        if endless:
            indices.text(0.02 * longest, row, "infinite (dA <= 0)", va="center")
    indices.set(xlabel="RI = P_M P_W / dA")
    shares.invert_yaxis()
    return figure


def _layers(model: nn.Module, names: Sequence[str] | None) -> dict[str, nn.Module]:
    """The layers to rank, by their paths.

    Raises:
        QuadranasError: an unknown layer, or no layer to rank.
    """
    if names is not None:
        found = {name: find_layer(model, name) for name in names}
    else:
        found = dict(quadratic_layers(model))
        found = found or {n: m for n, m in model.named_modules() if n and is_first_order(m)}
    if not found:
        raise QuadranasError(
            "the network has no layer to rank", "Convert it with convert(), or pass names=[...]."
        )
    return found


def _accuracy_on(batches: Batches) -> Evaluate:
    """Top-1 accuracy on batches, as a function of the network."""
    if isinstance(batches, Iterator):
        raise QuadranasError(
            "the batches can be iterated only once", "Pass a list or a DataLoader."
        )

    return lambda model: accuracy_on(model, batches)


def _first_input(data: Evaluate | Batches) -> Tensor:
    if callable(data):
        raise QuadranasError(
            "cannot count MACs without an example input", "Pass one with example=INPUT."
        )
    for inputs, _ in data:
        return inputs[:1]
    raise QuadranasError("the batches to rank layers on are empty")


@torch.no_grad()
def _count_macs(
    model: nn.Module, layers: dict[str, nn.Module], example: Tensor
) -> tuple[dict[str, int], int]:
    """Multiply-accumulates of some layers, and of the whole network."""
    macs, entered = dict.fromkeys(layers, 0), dict.fromkeys(layers, 0)
    hooks = ExitStack()

    def watch(name: str, layer: nn.Module) -> None:
        def enter(*_: object) -> None:
            entered[name] = counter.get_total_flops()

        def leave(*_: object) -> None:
            macs[name] += (counter.get_total_flops() - entered[name]) // 2

        hooks.enter_context(layer.register_forward_pre_hook(enter))
        hooks.enter_context(layer.register_forward_hook(leave))

    with hooks, evaluating(model), FlopCounterMode(display=False) as counter:
        for name, layer in layers.items():
            watch(name, layer)
        model(example)
    return macs, counter.get_total_flops() // 2


def _masked_accuracy(model: nn.Module, layer: nn.Module, evaluate: Evaluate) -> float:
    """The accuracy with a layer's output set to zero."""
    with layer.register_forward_hook(lambda module, args, output: torch.zeros_like(output)):
        return _checked(evaluate(model))


def _checked(accuracy: float) -> float:
    if not 0 <= accuracy <= 1:
        raise QuadranasError(f"an accuracy must be between 0 and 1, got {accuracy}")
    return accuracy
