"""Training one network: the last phase of a search, and the whole of `quadranas train`."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from quadranas.augment import Augmenter
from quadranas.config import WeightConfig
from quadranas.data import Dataset, epoch_batches
from quadranas.loop import Metrics
from quadranas.network import Network
from quadranas.training import Batch, build_optimizer, derived_seed, learning_rate_at, weight_step


class NetworkTraining:
    """Epochs over all training images."""

    def __init__(
        self,
        name: str,
        network: Network,
        dataset: Dataset,
        augmenter: Augmenter,
        weights: WeightConfig,
        *,
        num_epochs: int,
        batch_size: int,
        seed: int,
    ) -> None:
        self.name, self.network, self.dataset, self.augmenter = name, network, dataset, augmenter
        self.weights, self.batch_size, self.seed = weights, batch_size, seed
        self.parameters = list(network.parameters())
        self.steps_per_epoch = len(self._batches(0))
        self.num_steps = num_epochs * self.steps_per_epoch
        self.optimizer = build_optimizer(network, weights)

    def _batches(self, epoch: int) -> list[torch.Tensor]:
        seed = derived_seed(self.seed, self.name, epoch)
        return epoch_batches(torch.arange(len(self.dataset.train)), self.batch_size, seed=seed)

    def step(self, number: int) -> Mapping[str, float]:
        """One step of the weights."""
        self.network.train()
        epoch, index = divmod(number, self.steps_per_epoch)
        indices = self._batches(epoch)[index]
        images, labels = self.dataset.train.batch(indices), self.dataset.train.labels[indices]
        seed = derived_seed(self.seed, self.name, "augment", number)
        result = weight_step(
            self.network,
            self.parameters,
            self.optimizer,
            Batch(*self.augmenter(images, labels, seed=seed)),
            self.weights,
            learning_rate_at(number, self.num_steps, self.weights),
        )
        return {"loss": result.loss, "accuracy": result.accuracy}

    def epoch_metrics(self, epoch: int) -> Metrics:
        """Phase, epoch and learning rate."""
        last_step = (epoch + 1) * self.steps_per_epoch - 1
        rate = learning_rate_at(last_step, self.num_steps, self.weights)
        return {"phase": self.name, "epoch": epoch + 1, "learning_rate": rate}

    def alarms(self, metrics: Metrics) -> Iterable[str]:
        """None: a loss that is no number stops the loop itself."""
        return ()

    def state(self) -> dict[str, Any]:
        """Weights and optimiser."""
        return {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """The reverse of `state`."""
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
