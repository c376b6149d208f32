"""Epochs of training one network, after a search or by itself."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException

from quadranas.acceleration.batch_norm import synchronize
from quadranas.acceleration.engine import Engine
from quadranas.data.augmentation import Augmenter
from quadranas.data.batch import Batch
from quadranas.data.dataset import Dataset
from quadranas.data.task import assess
from quadranas.errors import QuadranasError
from quadranas.inspection.inspector import Inspector
from quadranas.inspection.records import RECORDS_FILE, Alarm, StepRecord
from quadranas.layers.replacement import quadratic_layers
from quadranas.layers.stochastic_depth import draw_masks, residual_blocks, set_drop_path
from quadranas.network.skeleton import Network
from quadranas.runs.config import DistillationConfig, TrainingConfig, WeightConfig
from quadranas.runs.records import Metrics
from quadranas.seeds import derived_seed, generator_for
from quadranas.training.average import WeightAverage
from quadranas.training.batches import Batches
from quadranas.training.distillation import loss_for
from quadranas.training.optimizers import build_optimizer, learning_rate_at
from quadranas.training.second_order import SecondOrderWarmup
from quadranas.training.selection import EpochChoice
from quadranas.training.steps import weight_step
from quadranas.training.teacher import Teacher

MakeOptimizer = Callable[[Network, WeightConfig], torch.optim.Optimizer]

MAX_ALARMS = 5
"""Maximum number of alarms printed per epoch."""


class NetworkTraining:
    """Epochs over the training images.

    Args:
        network: one of this package, or any other; without `blocks`, no path is dropped.
        num_images: number of images per epoch, more than there are for several passes over them;
            None for all.
        optimizer: an optimiser to continue with; None for a new one.
        rate: the learning rate of a step; None for that of the configuration.
        metrics: values that replace those of `epoch_metrics`.
        inspected: whether to record distributions in the last step of every epoch: of the
            quadratic layers, or of all layers in a network without any.
        engine: the hardware that trains; by default the processor.
        compiled: compile the network with `torch.compile`.
        choice: remembers the best epoch by the held-out images; by default the last one is kept.
        num_parts: number of parts in which a batch is computed, one after the other.
        checkpointing: compute the blocks again in the backward pass instead of storing them.
        is_new: whether the weights are untrained, so that second-order terms are warmed up.
        teacher, distillation: a network to learn from, and how.
        make_optimizer: makes the optimiser of a network.
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
        num_images: int | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        rate: Callable[[int], float] | None = None,
        metrics: Metrics | None = None,
        inspected: bool = False,
        engine: Engine | None = None,
        compiled: bool = False,
        choice: EpochChoice | None = None,
        num_parts: int = 1,
        checkpointing: bool = False,
        is_new: bool = False,
        teacher: Teacher | None = None,
        distillation: DistillationConfig | None = None,
        make_optimizer: MakeOptimizer = build_optimizer,
    ) -> None:
        self.name, self.dataset, self.augmenter = name, dataset, augmenter
        self.engine, self.is_compiled = engine or Engine(), compiled
        self.network = self._placed(network)
        self._metrics: Metrics = {"phase": name, **(metrics or {})}
        self.weights, self.batch_size, self.seed = weights, batch_size, seed
        self.parameters, self.is_inspected = list(network.parameters()), inspected
        self._forward = cast("nn.Module", torch.compile(network)) if compiled else network
        self.batches = self._batches_of(num_images or len(dataset.train), num_parts)
        self.steps_per_epoch = self.batches.per_epoch
        self.num_steps = self.batches.num_steps = num_epochs * self.steps_per_epoch
        self.make_optimizer = make_optimizer
        self.optimizer = optimizer or make_optimizer(network, weights)
        self.rate = rate or (lambda step: learning_rate_at(step, self.num_steps, weights))
        self.choice, self.teacher = choice or EpochChoice(), teacher
        self.distillation = distillation or DistillationConfig()
        self._loss = loss_for(weights, teacher, self.distillation, augmenter)
        network.checkpointing = checkpointing
        self.average = WeightAverage(network, weights.ema) if weights.ema else None
        warmup_steps = round(weights.second_order_warmup * self.num_steps) if is_new else 0
        self.warmup = SecondOrderWarmup(network, warmup_steps, self.engine.accelerator.put)
        set_drop_path(getattr(network, "blocks", {}).values(), weights.drop_path)
        self._residual_blocks = residual_blocks(network)
        self._alarms: list[Alarm] = []
        self.inspector = self._new_inspector() if inspected else None

    def _batches_of(self, num_images: int, num_parts: int) -> Batches:
        available = len(self.dataset.train)
        indices = torch.arange(max(num_images, available)) % available
        return Batches(
            *(self.dataset, self.augmenter, self.engine, indices),
            batch_size=self.batch_size,
            seed_of=partial(derived_seed, self.seed, self.name),
            limit=max(1, num_images // self.batch_size),
            num_parts=num_parts,
        )

    def _new_inspector(self) -> Inspector:
        return Inspector(
            self.network,
            all_layers=not quadratic_layers(self.network),
            every=self.steps_per_epoch,
            on_alarm=self._alarms.append,
        )

    @classmethod
    def configured(
        cls,
        name: str,
        network: Network,
        dataset: Dataset,
        config: TrainingConfig,
        *,
        num_epochs: int,
        engine: Engine,
        teacher: Teacher | None,
        is_new: bool = False,
        make_optimizer: MakeOptimizer = build_optimizer,
    ) -> "NetworkTraining":
        """The training that the configuration of a run describes."""
        return cls(
            *(name, network, dataset, Augmenter.of(dataset, config.augment), config.weights),
            num_epochs=num_epochs,
            batch_size=config.batch_size,
            seed=config.seed,
            inspected=config.inspect,
            engine=engine,
            compiled=config.compile,
            choice=EpochChoice.of(config),
            num_parts=config.accumulate,
            checkpointing=config.checkpointing,
            is_new=is_new,
            teacher=teacher,
            distillation=config.distillation,
            make_optimizer=make_optimizer,
        )

    def _placed(self, network: Network) -> Network:
        """The network on the accelerator, equal in all processes."""
        processes = self.engine.processes
        if not processes.is_alone:
            synchronize(network)
        self.engine.accelerator.place(network)
        processes.share([*network.parameters(), *network.buffers()])
        return network

    def step(self, number: int) -> Mapping[str, Tensor]:
        """One step of the weights."""
        self.network.train()
        self.warmup.begin(number)
        seed = derived_seed(self.seed, self.name, "augment", number)
        inspection = self.inspector.step(number + 1) if self.inspector else nullcontext()
        with inspection, _compiling():
            result = weight_step(
                self._forward,
                self.parameters,
                self.optimizer,
                self.batches.augmented(number, seed=seed),
                self.weights,
                self.rate(number),
                self.engine,
                partial(self._begin, number),
                self._loss,
            )
        if self.average:
            self.average.update()
        return {"loss": result.loss, "accuracy": result.accuracy}

    def _begin(self, number: int, batch: Batch) -> None:
        """Draw which of these images skip which residual branches in a step."""
        draw_masks(
            self._residual_blocks,
            generator_for(self.seed, self.name, "drop_path", number),
            size=batch.size or len(batch.images),
            part=slice(batch.start, batch.start + len(batch.images)),
            put=self.engine.accelerator.put,
        )

    def epoch_metrics(self, epoch: int) -> Metrics:
        """Phase, epoch and learning rate."""
        last_step = (epoch + 1) * self.steps_per_epoch - 1
        return {"epoch": epoch + 1, "learning_rate": self.rate(last_step)} | self._metrics

    def validation(self) -> Mapping[str, float]:
        """Loss and accuracy on the held-out images, which decide about the best epoch."""
        if self.dataset.validation is None:
            return {}
        self.warmup.end()
        with self.average.applied() if self.average else nullcontext():
            found = assess(self.network, self.dataset.validation, self.augmenter, self.engine)
            self.choice.note(self.network, found)
        return {"val_loss": found.loss, "val_accuracy": found.accuracy}

    @property
    def is_over(self) -> bool:
        """Whether the validation has not become better for a while."""
        return self.choice.is_over

    def finish(self) -> None:
        """Use the average of the weights, if there is one, and go back to the best epoch."""
        self.warmup.end()
        if self.average:
            self.average.apply()
        self.choice.apply(self.network)

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

    def fingerprint(self) -> bytes:
        """The bits of the weights."""
        tensors = [p.detach() for p in self.parameters]
        if self.average:
            tensors += self.average.tensors().values()
        return b"".join(tensor.cpu().numpy().tobytes() for tensor in tensors)

    def state(self) -> dict[str, Any]:
        """Weights, optimiser, engine, and the history that inspections are compared with."""
        state = {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "engine": self.engine.state(),
            "choice": self.choice.state(),
        }
        if self.average:
            state["average"] = self.average.state()
        return state | ({"watch": self.inspector.watch.state()} if self.inspector else {})

    def restore(self, state: Mapping[str, Any]) -> None:
        """The reverse of `state`."""
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.engine.restore(state.get("engine", {}))
        if self.average:
            self.average.restore(state["average"])
        if "choice" in state:
            self.choice.restore(state["choice"], self.engine.accelerator.device)
        if self.inspector:
            self.inspector.watch.restore(state["watch"])


@contextmanager
def _compiling() -> Iterator[None]:
    """Turn an error of `torch.compile`, which compiles in the first step, into a message."""
    try:
        yield
    except TorchDynamoException as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise QuadranasError(
            f"torch.compile cannot compile the network: {reason[0]}",
            "Install a C++ compiler, or omit --compile.",
        ) from error
