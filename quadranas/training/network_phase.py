"""Training one network: the last phase of a search, and the only one of `quadranas train`."""

from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from typing import Any

import torch

from quadranas.data.augmentation import Augmenter
from quadranas.data.batch import Batch
from quadranas.data.dataset import Dataset
from quadranas.data.splits import epoch_batches
from quadranas.inspection.inspector import Inspector
from quadranas.inspection.records import RECORDS_FILE, Alarm, StepRecord
from quadranas.layers.replacement import quadratic_layers
from quadranas.network.skeleton import Network
from quadranas.runs.config import WeightConfig
from quadranas.runs.records import Metrics
from quadranas.seeds import derived_seed
from quadranas.training.optimizers import build_optimizer, learning_rate_at
from quadranas.training.steps import weight_step

MAX_ALARMS = 5
"""Maximum number of alarms printed per epoch."""


class NetworkTraining:
    """Epochs over all training images.

    Args:
        inspected: whether to record distributions in the last step of every epoch: of the
            quadratic layers, or of all layers in a network without any.
    """

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
        inspected: bool = False,
    ) -> None:
        self.name, self.network, self.dataset, self.augmenter = name, network, dataset, augmenter
        self.weights, self.batch_size, self.seed = weights, batch_size, seed
        self.parameters = list(network.parameters())
        self.steps_per_epoch = len(self._batches(0))
        self.num_steps = num_epochs * self.steps_per_epoch
        self.optimizer = build_optimizer(network, weights)
        self._alarms: list[Alarm] = []
        self.inspector: Inspector | None = None
        if inspected:
            self.inspector = Inspector(
                network,
                all_layers=not quadratic_layers(network),
                every=self.steps_per_epoch,
                on_alarm=self._alarms.append,
            )

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
        with self.inspector.step(number + 1) if self.inspector else nullcontext():
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

    def inspection(self) -> StepRecord | None:
        """The record of the last step, if distributions are recorded."""
        return self.inspector.records.pop() if self.inspector else None

    def alarms(self, metrics: Metrics) -> Iterable[str]:
        """The alarms of the inspection; the loop itself checks that the loss is finite."""
        found = [alarm.text for alarm in self._alarms]
        self._alarms.clear()
        if len(found) > MAX_ALARMS:
            found[MAX_ALARMS:] = [f"{len(found) - MAX_ALARMS} more such alarms in {RECORDS_FILE}"]
        return found

    def state(self) -> dict[str, Any]:
        """Weights, optimiser, and the history that inspections are compared with."""
        state = {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}
        return state | ({"watch": self.inspector.watch.state()} if self.inspector else {})

    def restore(self, state: Mapping[str, Any]) -> None:
        """The reverse of `state`."""
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.inspector:
            self.inspector.watch.restore(state["watch"])
