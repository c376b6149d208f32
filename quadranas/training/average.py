"""The exponential moving average of a network's weights.

Source: Polyak and Juditsky, 1992; with a decay that grows in the first steps, as in TensorFlow's
ExponentialMovingAverage and timm's ModelEmaV3.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class WeightAverage:
    """The average of the weights and of the statistics of norms, on the network's device.

    After update n, counted from 0, `average <- d average + (1 - d) weights` with
    `d = min(decay, (1 + n) / (10 + n))`. Integers are not averaged.

    Args:
        network: on the device where it is trained, since its tensors are referred to.
        decay: between 0 and 1.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay, self.num_updates = decay, 0
        floats = {n: t for n, t in network.state_dict().items() if t.is_floating_point()}
        self._names, self._weights = tuple(floats), list(floats.values())
        self._average = [tensor.clone() for tensor in self._weights]

    @torch.no_grad()
    def update(self) -> None:
        """Take the current weights into the average."""
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        torch._foreach_lerp_(self._average, self._weights, 1 - decay)
        self.num_updates += 1

    @torch.no_grad()
    def apply(self) -> None:
        """Replace the weights by the average."""
        torch._foreach_copy_(self._weights, self._average)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """A context in which the network has the average as its weights."""
        weights = [tensor.clone() for tensor in self._weights]
        self.apply()
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(self._weights, weights)

    def tensors(self) -> dict[str, Tensor]:
        """The average by the names of the weights."""
        return dict(zip(self._names, self._average, strict=True))

    def state(self) -> dict[str, Any]:
        """The state for a checkpoint."""
        return {"num_updates": self.num_updates, "average": self.tensors()}

    @torch.no_grad()
    def restore(self, state: Mapping[str, Any]) -> None:
        """The reverse of `state`."""
        self.num_updates = state["num_updates"]
        for name, tensor in zip(self._names, self._average, strict=True):
            tensor.copy_(state["average"][name])
