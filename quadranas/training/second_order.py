"""Warm-up of the second-order terms, layer by layer.

A quadratic network begins as its first-order part, and its second-order terms join one layer after
the other: products of untrained factors do not disturb the first steps. The schedule is our own.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from quadranas.layers.quadratic import QuadraticLayer
from quadranas.layers.replacement import quadratic_layers


class SecondOrderWarmup:
    """Factors of the second-order terms that rise from 0 to 1 in the first steps.

    The factor of each layer rises linearly during half of the warm-up. The first layer begins with
    the first step, the last one after the other half, and those between at even distances. Layers
    without a linear term, and those that normalise their branches, are left alone.

    Args:
        network: its quadratic layers are warmed up in their order.
        num_steps: number of steps of the whole warm-up; 0 for none.
        put: moves a tensor to the network's device.
    """

    def __init__(
        self, network: nn.Module, num_steps: int, put: Callable[[Tensor], Tensor]
    ) -> None:
        self.num_steps, self._put = num_steps, put
        layers = quadratic_layers(network).values() if num_steps else ()
        self.layers: list[QuadraticLayer] = [layer for layer in layers if layer.has_factor]

    def factors(self, step: int) -> list[float]:
        """The factor of every layer in a step, from 0."""
        half, last = self.num_steps / 2, max(1, len(self.layers) - 1)
        starts = (half * index / last for index in range(len(self.layers)))
        return [min(1.0, max(0.0, (step - start) / half)) for start in starts]

    def begin(self, step: int) -> None:
        """Set the factors of a step."""
        if step >= self.num_steps:
            self.end()
            return
        factors = self._put(torch.tensor(self.factors(step))) if self.layers else ()
        for layer, factor in zip(self.layers, factors, strict=True):
            layer.second_order_factor = factor

    def end(self) -> None:
        """Compute the whole second-order terms, as the finished network does."""
        for layer in self.layers:
            layer.second_order_factor = None
