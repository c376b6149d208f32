"""The choice of an epoch: the best one by held-out images, and when to stop."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from quadranas.data.task import Assessment
from quadranas.runs.config import TrainingConfig


class EpochChoice:
    """Remembers the best epoch of a phase, and whether to stop.

    An epoch is better if its accuracy on the held-out images is higher, or equal with a lower
    loss.

    Args:
        keeps_best: keep the weights of the best epoch; otherwise only its number.
        patience: number of epochs without a better one after which the phase ends; 0: never.
    """

    def __init__(self, *, keeps_best: bool = False, patience: int = 0) -> None:
        self.keeps_best, self.patience = keeps_best, patience
        self.best: Assessment | None = None
        self.num_epochs, self.best_epoch = 0, 0
        self._tensors: dict[str, Tensor] = {}

    @classmethod
    def of(cls, config: TrainingConfig) -> "EpochChoice":
        """The configured choice."""
        return cls(keeps_best=config.keep == "best", patience=config.patience)

    @property
    def is_over(self) -> bool:
        """Whether to stop."""
        return 0 < self.patience <= self.num_epochs - self.best_epoch

    @torch.no_grad()
    def note(self, network: nn.Module, found: Assessment) -> None:
        """Take note of an epoch that has ended with these weights."""
        self.num_epochs += 1
        best = self.best
        if best and (found.accuracy, -found.loss) <= (best.accuracy, -best.loss):
            return
        self.best, self.best_epoch = found, self.num_epochs
        if self.keeps_best:
            self._tensors = {name: t.clone() for name, t in network.state_dict().items()}

    def apply(self, network: nn.Module) -> None:
        """Put the weights of the best epoch into a network, if they are kept."""
        if self._tensors:
            network.load_state_dict(self._tensors)

    def state(self) -> dict[str, Any]:
        """The state for a checkpoint."""
        best = (self.best.loss, self.best.accuracy) if self.best else None
        return {
            "best": best,
            "best_epoch": self.best_epoch,
            "num_epochs": self.num_epochs,
            "tensors": self._tensors,
        }

    def restore(self, state: Mapping[str, Any], device: torch.device) -> None:
        """The reverse of `state`; the weights go to a device."""
        self.best = Assessment(*state["best"]) if state["best"] else None
        self.best_epoch, self.num_epochs = state["best_epoch"], state["num_epochs"]
        self._tensors = {name: tensor.to(device) for name, tensor in state["tensors"].items()}
