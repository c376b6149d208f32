"""Effect of rounding to 8 bits on a network, simulated in PyTorch for all runtimes.

A tensor is rounded to 256 equal steps over its range, which includes zero; a weight to 255 steps
around zero for each output channel. Both are what ONNX Runtime and OpenVINO do.
Layout: B images, C channels, H, W.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from quadranas.deployment.manifest import BranchRange
from quadranas.layers import algebra
from quadranas.layers.first_order import FirstOrderMap
from quadranas.layers.quadratic import QuadraticLayer, QuadraticLinear
from quadranas.network.modes import evaluating

Images = Sequence[NDArray[np.float32]]

STEPS = 255
TYPICAL = 0.99
BEST_DB = 150.0
"""The signal-to-noise ratio of a tensor that rounding does not change."""

ROUNDED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, QuadraticLayer)
"""The layers that runtimes compute in 8 bits."""


def rounded(x: Tensor, minimum: float, maximum: float) -> Tensor:
    """A tensor on the 8-bit grid over a range."""
    low, high = min(minimum, 0.0), max(maximum, 0.0)
    scale = (high - low) / STEPS
    if scale == 0:
        return torch.zeros_like(x)
    zero = round(-low / scale)
    return ((x / scale).round() + zero).clamp(0, STEPS).sub(zero).mul(scale)


def rounded_weight(weight: Tensor) -> Tensor:
    """A weight on the 8-bit grids of its output channels, (outputs, ...)."""
    largest = weight.abs().amax(tuple(range(1, weight.dim())), keepdim=True)
    scale = (largest / (STEPS // 2)).clamp(min=torch.finfo(weight.dtype).tiny)
    return (weight / scale).round() * scale


@dataclass
class _Values:
    """Running statistics of one tensor, in two passes: the range, then what depends on it."""

    minimum: float = math.inf
    maximum: float = -math.inf
    count: int = 0
    signal: Tensor | float = 0.0
    noise: Tensor | float = 0.0
    largest: Tensor = field(default_factory=lambda: torch.empty(0))

    def see_range(self, values: Tensor) -> None:
        self.minimum = min(self.minimum, float(values.min()))
        self.maximum = max(self.maximum, float(values.max()))
        self.count += values.numel()

    def see_rounding(self, values: Tensor) -> None:
        exact = values.double().flatten(1)  # (C, everything else)
        difference = exact - rounded(exact, self.minimum, self.maximum)
        self.signal += exact.square().sum(1)
        self.noise += difference.square().sum(1)
        # The percentile is the smallest of the largest magnitudes, so only these are kept.
        num_top = self.count - math.ceil(TYPICAL * self.count) + 1
        top = torch.cat([self.largest, values.abs().flatten()])
        self.largest = top.topk(min(num_top, len(top))).values

    @property
    def signal_to_noise_db(self) -> float:
        """That of the median channel; over all channels, one with large values would dominate."""
        assert isinstance(self.signal, Tensor)
        ratio = (self.signal / self.noise).nan_to_num(nan=math.inf)  # zero stays zero
        return min(BEST_DB, 10 * math.log10(max(float(ratio.median()), 1e-15)))


@torch.no_grad()
def branch_ranges(network: nn.Module, images: Images) -> tuple[BranchRange, ...]:
    """The values inside the quadratic layers of a network on images, layer by layer.

    Args:
        images: inputs of the network, each (B, C, H, W).

    Returns: for each quadratic layer its branches, the product of a form that also has a linear
    term, and the output.
    """
    found: dict[tuple[str, str], _Values] = {}

    def watch(path: str, see: Callable[[_Values, Tensor], None]) -> Callable[..., None]:
        def hook(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            assert isinstance(layer, QuadraticLayer)
            axis = -1 if isinstance(layer, QuadraticLinear) else 1
            for part, values in (*_inside(layer, inputs[0]), ("output", output)):
                see(found.setdefault((path, part), _Values()), values.float().movedim(axis, 0))

        return hook

    for see in (_Values.see_range, _Values.see_rounding):
        with ExitStack() as hooks, evaluating(network):
            for path, layer in network.named_modules():
                if isinstance(layer, QuadraticLayer):
                    hooks.enter_context(layer.register_forward_hook(watch(path, see)))
            for batch in images:
                network(torch.from_numpy(batch))
    return tuple(
        BranchRange(
            layer=path,
            part=part,
            minimum=values.minimum,
            maximum=values.maximum,
            typical=float(values.largest.min()),
            signal_to_noise_db=values.signal_to_noise_db,
        )
        for (path, part), values in found.items()
    )


def _inside(layer: QuadraticLayer, x: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The branches' outputs and, if the form has a linear term too, the second-order term."""
    argument = x.square() if layer.form == "input_square" else x
    for name, branch in layer.branches.items():
        weights = algebra.Branch(branch.weight, branch.bias)  # type: ignore[arg-type]
        norms = [norm for key, norm in layer.norms.items() if key == name]
        yield name, algebra.direct("linear", layer.operator, argument, [weights], norms)  # type: ignore[arg-type]
    first, second = layer.terms(x)
    if first is not None and second is not None:
        yield "product", second


@torch.no_grad()
def layer_errors(network: nn.Module, images: Images, layers: Sequence[str]) -> Mapping[str, float]:
    """The change of the logits when a single layer is rounded.

    Rounded are the layer's weights, its input, and the branches of a quadratic layer.

    Args:
        layers: paths in the network; for a part that exists only in the
            runtime's file, such as the joint convolution of three branches, the layer around it.

    Returns: root of the mean squared change, relative to the logits' own; by layer.
    """
    batches = [torch.from_numpy(batch) for batch in images]
    owners = {layer: _owner(network, layer) for layer in layers}
    measured: dict[str, float] = {}
    with evaluating(network):
        exact = torch.cat([network(batch) for batch in batches])
        for path in set(owners.values()) - {""}:
            with _rounding(network.get_submodule(path)):
                changed = torch.cat([network(batch) for batch in batches])
            error = (changed - exact).double().square().mean() / exact.double().square().mean()
            measured[path] = float(error.sqrt())
    return {layer: measured.get(owner, 0.0) for layer, owner in owners.items()}


def _owner(network: nn.Module, layer: str) -> str:
    """The path of the layer that a part of a file belongs to; empty if there is no such layer.

    Files of old ONNX opsets leave the outermost container out of the paths.
    """
    paths = [path for path, module in network.named_modules() if isinstance(module, ROUNDED)]
    while layer:
        found = [path for path in paths if f".{path}".endswith(f".{layer}")]
        if layer in paths or len(found) == 1:
            return layer if layer in paths else found[0]
        layer = layer.rpartition(".")[0]
    return ""


class _RoundedMap:
    """A layer's first-order map that rounds its result."""

    def __init__(self, operator: FirstOrderMap) -> None:
        self.operator = operator

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return _rounded_to_own_range(self.operator(x, weight, bias))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.operator, name)


def _rounded_to_own_range(x: Tensor) -> Tensor:
    return rounded(x, float(x.min()), float(x.max()))


@contextmanager
def _rounding(layer: nn.Module) -> Iterator[None]:
    """A context in which a layer has rounded weights, input and branches."""
    weights = [parameter for parameter in layer.parameters() if parameter.dim() > 1]
    before = [weight.data for weight in weights]
    operator = getattr(layer, "operator", None)

    def round_input(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (_rounded_to_own_range(inputs[0]), *inputs[1:])

    with layer.register_forward_pre_hook(round_input):
        try:
            for weight in weights:
                weight.data = rounded_weight(weight.data)
            if operator is not None:
                layer.operator = _RoundedMap(operator)  # type: ignore[assignment]
            yield
        finally:
            for weight, values in zip(weights, before, strict=True):
                weight.data = values
            if operator is not None:
                layer.operator = operator
