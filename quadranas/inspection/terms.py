"""The terms of quadratic layers, as numbers and as images.

Source: QuadraLib, Xu et al., MLSys 2022 (arXiv:2204.01701), its pictures of the responses of
first-order and second-order terms to an image.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from quadranas.errors import QuadranasError
from quadranas.inspection.records import NUM_BINS, QUANTILES, Distribution
from quadranas.layers.quadratic import QuadraticLayer, QuadraticLinear
from quadranas.layers.replacement import quadratic_layers
from quadranas.network.modes import batch_norms, evaluating, frozen_statistics

MAX_SORTED = 2**17
"""Largest number of values to sort; of a larger tensor evenly spaced values are used."""


@dataclass(frozen=True)
class TermView:
    """One term of a layer's output for one image.

    Args:
        energy: mean square.
        image: mean absolute value over the channels, (H, W); None if the output does not have two
            spatial dimensions.
    """

    energy: float | None
    image: Tensor | None


@torch.no_grad()
def view_terms(
    model: nn.Module, image: Tensor
) -> dict[str, tuple[TermView | None, TermView | None]]:
    """The first-order and the second-order term of every quadratic layer for one image.

    The network runs in evaluation mode and is not changed. For a layer that is called several
    times, the last call counts.

    Args:
        image: (1, C, H, W), preprocessed as the network expects.

    Raises:
        QuadranasError: no quadratic layer is called.
    """
    found: dict[str, tuple[TermView | None, TermView | None]] = {}

    def hook_for(name: str) -> Callable[[nn.Module, Sequence[Tensor], Tensor], None]:
        def hook(layer: nn.Module, inputs: Sequence[Tensor], output: Tensor) -> None:
            assert isinstance(layer, QuadraticLayer)
            first, second = quiet_terms(layer, inputs[0])
            found[name] = (_view(layer, first), _view(layer, second))

        return hook

    with ExitStack() as hooks, evaluating(model):
        for name, layer in quadratic_layers(model).items():
            hooks.enter_context(layer.register_forward_hook(hook_for(name)))
        model(image)
    if not found:
        raise QuadranasError(
            "the network has no quadratic layer, so there are no terms to show",
            "Inspect a run whose architecture has quadratic layers.",
        )
    return found


def _view(layer: QuadraticLayer, term: Tensor | None) -> TermView | None:
    if term is None:
        return None
    channels_last = isinstance(layer, QuadraticLinear)
    image = term[0].abs().mean(-1 if channels_last else 0).float() if term.ndim == 4 else None
    return TermView(energy(term), image)


@torch.no_grad()
def quiet_terms(layer: QuadraticLayer, x: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """The terms of a layer; the running averages of its norms are not changed."""
    with frozen_statistics(batch_norms(layer)):
        return layer.terms(x)


@torch.no_grad()
def describe(tensor: Tensor) -> Distribution:
    """The distribution of a tensor's finite values."""
    values = tensor.detach().flatten()
    values = values if values.dtype == torch.float64 else values.float()
    finite = values[values.isfinite()]
    counts = {"num_values": len(values), "num_nonfinite": len(values) - len(finite)}
    if not len(finite):
        zeros = dict.fromkeys(("mean", "std", "max_abs", "low", "high"), 0.0)
        return Distribution(**counts, **zeros, quantiles=(0.0,) * len(QUANTILES), counts=())
    low, high = (float(bound) for bound in finite.aminmax())
    max_abs = max(abs(low), abs(high))
    # Scaled, so that the squares neither overflow nor underflow.
    scaled = finite / max_abs if max_abs else finite
    std, mean = torch.std_mean(scaled, correction=0)
    spread = scaled[:: -(-len(scaled) // MAX_SORTED)]
    quantiles = spread.quantile(torch.tensor(QUANTILES).to(spread))
    bins = torch.histc(scaled, NUM_BINS)  # over the range of the values
    return Distribution(
        **counts,
        mean=float(mean) * max_abs,
        std=float(std) * max_abs,
        max_abs=max_abs,
        quantiles=tuple(float(q) * max_abs for q in quantiles),
        low=low,
        high=high,
        counts=tuple(int(count) for count in bins),
    )


def energy(term: Tensor | None) -> float | None:
    """Mean square of a term; None without a term, or without finite values in it."""
    if term is None:
        return None
    found = describe(term)
    return None if found.num_nonfinite == found.num_values else found.mean_square
