"""The first phase of a search: training the supernet and its gates."""

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from quadranas.acceleration.engine import Engine
from quadranas.data.augmentation import Augmenter
from quadranas.data.dataset import Dataset
from quadranas.data.splits import split_halves
from quadranas.runs.records import Metrics
from quadranas.seeds import derived_seed, generator_for
from quadranas.strategies.limits import reachable_ms
from quadranas.supernet.budget_controller import BudgetController, latency_weights
from quadranas.supernet.evaluation import SubnetEvaluator
from quadranas.supernet.expected_latency import ExpectedLatency
from quadranas.supernet.gate_training import GateTrainer
from quadranas.supernet.path_sampler import PathSampler
from quadranas.supernet.self_check import check_gradients
from quadranas.supernet.supernet import Supernet
from quadranas.training.batches import Batches
from quadranas.training.distillation import loss_for
from quadranas.training.inheritance import Inheritance
from quadranas.training.optimizers import build_optimizer, learning_rate_at
from quadranas.training.search_setup import SearchSetup
from quadranas.training.second_order import SecondOrderWarmup
from quadranas.training.steps import joint_weight_step
from quadranas.training.teacher import Teacher

COLLAPSED = 0.05
"""Entropy of the gates, from 0 to 1, below which they count as collapsed."""

TOLERATED = 0.05
"""Relative deviation of the final expected latency from the budget, above which a warning is
printed."""


def search_halves(dataset: Dataset, seed: int) -> tuple[Tensor, Tensor]:
    """Indices of the training images that train weights, and of those that train gates."""
    return split_halves(dataset.train.labels, derived_seed(seed, "halves"))


def subnet_evaluator(
    supernet: Supernet, dataset: Dataset, seed: int, engine: Engine
) -> SubnetEvaluator:
    """Judges sub-networks on held-out images; without any, on those that train only the gates.

    Args:
        dataset: the images of the search, some perhaps held out.
        seed: that of the search.
    """
    weight_half, gate_half = search_halves(dataset, seed)
    validation = dataset.validation
    return SubnetEvaluator(
        *(supernet, dataset.train, Augmenter.of(dataset), engine),
        held_out=gate_half if validation is None else torch.arange(len(validation)),
        trained_on=weight_half,
        judged_on=validation,
    )


def latency_terms(
    setup: SearchSetup, supernet: Supernet, expected: ExpectedLatency
) -> list[tuple[ExpectedLatency, BudgetController]]:
    """Per device whose budget some network exceeds, expected latency and controller.

    Args:
        expected: the expected latency on the main device.
    """
    found = []
    for number, goal in enumerate(setup.goals):
        if goal.decoding_ms < reachable_ms(setup.space, goal.table)[1]:
            term = ExpectedLatency(setup.space, supernet.gates, goal.table) if number else expected
            found.append((term, BudgetController(goal.decoding_ms)))
    return found


class SupernetTraining:
    """Warm-up with random paths, then weight steps alternating with architecture steps.

    Args:
        inheritance: which weights come from a pre-trained network; None if all are random.
    """

    name = "supernet"
    is_inspected = False

    def __init__(
        self,
        setup: SearchSetup,
        supernet: Supernet,
        engine: Engine | None = None,
        teacher: Teacher | None = None,
        inheritance: Inheritance | None = None,
    ) -> None:
        config, dataset = setup.config, setup.dataset
        self.engine = engine or Engine()
        if not self.engine.processes.is_alone:
            supernet.synchronize()
        self.config, self.dataset, self.supernet = config, dataset, supernet
        self.augmenter, self.teacher = setup.augmenter(), teacher
        self._loss = loss_for(config.weights, teacher, config.distillation, self.augmenter)
        halves = search_halves(dataset, config.seed)
        self.weight_batches, self.gate_batches = map(
            self._batches_of, halves, ("weights", "gates")
        )
        self.steps_per_epoch = self.weight_batches.per_epoch
        self.warmup_steps = config.schedule.warmup_epochs * self.steps_per_epoch
        epochs = config.schedule.warmup_epochs + config.schedule.search_epochs
        self.num_steps = self.weight_batches.num_steps = epochs * self.steps_per_epoch
        later = self.num_steps - self.warmup_steps
        self.gate_batches.num_steps = later // config.gates.weight_steps
        self.expected = ExpectedLatency(setup.space, supernet.gates, setup.table)
        self.budget_ms, self.has_further = setup.budget_ms, len(setup.goals) > 1
        self.paths = PathSampler(supernet, config.supernet, self.expected, self.budget_ms)
        self.terms = latency_terms(setup, supernet, self.expected)
        self.unbound = not self.terms
        if self.unbound:  # the controller has no effect
            controller = BudgetController(setup.budget_ms, rate=0.0, damping=0.0)
            self.terms = [(self.expected, controller)]
        supernet.place(self.engine.accelerator)
        self.warmup = SecondOrderWarmup(
            supernet,
            0 if inheritance else round(config.weights.second_order_warmup * self.num_steps),
            self.engine.accelerator.put,
        )
        self.inheritance = inheritance
        self.optimizer = self._optimizer()
        self.gate_trainer = GateTrainer(
            *(supernet, *self.terms[0], config.gates, self.engine),
            further=self.terms[1:],
        )

    def _batches_of(self, half: Tensor, purpose: str) -> Batches:
        return Batches(
            *(self.dataset, self.augmenter, self.engine, half),
            batch_size=self.config.batch_size,
            seed_of=partial(derived_seed, self.config.seed, purpose),
            loaders=2,
            num_parts=self.config.accumulate,
        )

    def _optimizer(self) -> torch.optim.Optimizer:
        """The optimiser of the weights; inherited ones become equal in all processes."""
        supernet, weights = self.supernet, self.config.weights
        if self.inheritance is None:
            return build_optimizer(supernet, weights)
        self.inheritance.freeze(supernet.network)
        tensors = [*supernet.network.parameters(), *supernet.network.buffers()]
        self.engine.processes.share(tensors)
        return self.inheritance.supernet_optimizer(supernet, weights)

    def evaluator(self) -> SubnetEvaluator:
        """Judges sub-networks on images that did not train the weights."""
        return subnet_evaluator(self.supernet, self.dataset, self.config.seed, self.engine)

    def check(self) -> None:
        """Check that gradients reach all parameters, before any training."""
        self.supernet.train()
        check_gradients(self.supernet, self.gate_trainer, self.gate_batches.plain(0))

    def step(self, number: int) -> Mapping[str, Tensor]:
        """One weight step and, after the warm-up, an architecture step when it is due."""
        self.supernet.train()
        self.warmup.begin(number)
        if self.inheritance is not None:
            self.inheritance.warm_up(self.optimizer, number, self.num_steps)
        seed, weights = self.config.seed, self.config.weights
        result = joint_weight_step(
            self.supernet,
            self.paths.draw(generator_for(seed, "path", number)),
            self.optimizer,
            self.weight_batches.augmented(number, seed=derived_seed(seed, "augment", number)),
            weights,
            learning_rate_at(number, self.num_steps, weights),
            self.engine,
            self._loss,
            distillation=self.config.supernet.distillation,
        )
        means = {"loss": result.loss, "accuracy": result.accuracy}
        done = number + 1 - self.warmup_steps
        every = self.config.gates.weight_steps
        if done > 0 and done % every == 0:
            generator = generator_for(seed, "gates", number)
            gate = self.gate_trainer.step(self.gate_batches.plain(done // every - 1), generator)
            means |= {"gate_loss": gate.loss, "gate_accuracy": gate.accuracy}
        return means

    def epoch_metrics(self, epoch: int) -> Metrics:
        """The state of the gates and the expected latency."""
        gates = self.supernet.gates
        warmup = self.config.schedule.warmup_epochs
        with torch.no_grad():
            expected_ms = float(self.expected(gates.probabilities()))
            each_ms = [float(term(gates.probabilities())) for term, _ in self.terms]
        controllers = [controller for _, controller in self.terms]
        weights = latency_weights(controllers, each_ms)
        uses = [ms / c.budget_ms for ms, c in zip(each_ms, controllers, strict=True)]
        last_step = (epoch + 1) * self.steps_per_epoch - 1
        return {
            "phase": "warmup" if epoch < warmup else "search",
            "epoch": epoch + 1 if epoch < warmup else epoch + 1 - warmup,
            "expected_ms": expected_ms,
            "budget_ms": self.budget_ms,
            "entropy": gates.entropy(),
            "skip_rate": gates.skip_rate(),
            "latency_weight": sum(weights) if epoch >= warmup else 0.0,
            "learning_rate": learning_rate_at(last_step, self.num_steps, self.config.weights),
            **({"budget_use": max(uses)} if self.has_further else {}),
        }

    is_over = False

    def validation(self) -> Mapping[str, float]:
        """None: the half of the images that trains the gates measures the supernet."""
        return {}

    def finish(self) -> None:
        """Compute the whole second-order terms; the weights are those of the last step."""
        self.warmup.end()

    def inspection(self) -> None:
        """None: the layers in use change from step to step."""

    def alarms(self, metrics: Metrics) -> Iterable[str]:
        """Gates that collapsed early, and an expected latency that ended away from the budget."""
        done, entropy = int(metrics["step"] or 0), float(metrics["entropy"] or 0.0)
        if self.supernet.gates.infos and entropy < COLLAPSED and done < 0.8 * self.num_steps:
            yield (
                f"the gates have collapsed: their entropy is {entropy:.3f} with "
                f"{1 - done / self.num_steps:.0%} of the steps to go; lower gates.learning_rate"
            )
        expected_ms = float(metrics["expected_ms"] or 0.0)
        off = float(metrics.get("budget_use") or expected_ms / self.budget_ms) - 1
        if done == self.num_steps and abs(off) > TOLERATED and not self.unbound:
            where = f"{abs(off):.0%} {'above' if off > 0 else 'below'} the"
            ended = (
                f"latencies ended {where} tightest budget"
                if self.has_further
                else f"latency ended at {expected_ms:.4g} ms, {where} budget"
            )
            yield (
                f"the expected {ended}; the derived network still keeps "
                "the budget, but a longer search may find a better one"
            )

    def fingerprint(self) -> bytes:
        """The bits of the gates."""
        return self.supernet.gates.alpha.detach().numpy().tobytes()

    def state(self) -> dict[str, Any]:
        """Weights, gates, optimisers, controller and engine."""
        return {
            "supernet": self.supernet.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "gates": self.gate_trainer.state(),
            "engine": self.engine.state(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """The reverse of `state`."""
        self.supernet.load_state_dict(state["supernet"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.gate_trainer.restore(state["gates"])
        self.engine.restore(state.get("engine", {}))
