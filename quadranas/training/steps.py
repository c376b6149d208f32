"""Training steps: weights of a network or supernet, and architecture parameters.

Randomness never has a state to lose: every draw comes from a generator seeded with the run's
seed, what it is for, and the step, so a resumed run draws what the uninterrupted one would have
drawn.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from quadranas.runs.config import GateConfig, WeightConfig
from quadranas.supernet.gates import Gates
from quadranas.supernet.objective import BudgetController, ExpectedLatency
from quadranas.supernet.supernet import Supernet, frozen


def derived_seed(seed: int, *purpose: str | int) -> int:
    """A seed for one purpose at one step, independent of all others."""
    text = "/".join(map(str, (seed, *purpose)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7])


def generator_for(seed: int, *purpose: str | int) -> torch.Generator:
    """A generator for one purpose at one step."""
    return torch.Generator().manual_seed(derived_seed(seed, *purpose))


def build_optimizer(network: nn.Module, config: WeightConfig) -> torch.optim.Optimizer:
    """AdamW or SGD with Nesterov momentum; norms, biases and layer scales do not decay.

    Parameters without a gradient are left alone: no momentum, no decay. (SGD is not `fused`:
    with momentum, torch 2.13 then fails on parameters without gradient.)
    """
    parameters = [p for name, p in network.named_parameters() if name != "gates.alpha"]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.99), fused=True)
    return torch.optim.SGD(
        groups, lr=config.learning_rate, momentum=0.9, nesterov=True, foreach=True
    )


def learning_rate_at(step: int, num_steps: int, config: WeightConfig) -> float:
    """Linear warm-up, then a cosine to zero."""
    warmup = max(1, round(config.warmup_fraction * num_steps))
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, num_steps - warmup)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


@dataclass(frozen=True)
class Batch:
    """Normalised images (B, 3, R, R) and soft targets (B, num_classes)."""

    images: Tensor
    targets: Tensor


@dataclass(frozen=True)
class StepResult:
    """Loss and share of right answers of one step."""

    loss: float
    accuracy: float


def weight_step(
    network: nn.Module,
    parameters: Sequence[nn.Parameter],
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    config: WeightConfig,
    learning_rate: float,
) -> StepResult:
    """One step of the weights in use.

    Args:
        parameters: those on the current path; all others have no gradient and stay as they are.
    """
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    logits = network(batch.images)
    loss = functional.cross_entropy(logits, batch.targets, label_smoothing=config.label_smoothing)
    loss.backward()
    nn.utils.clip_grad_norm_(parameters, config.clip_norm)
    optimizer.step()
    for parameter in parameters:
        parameter.grad = None
    return _result(loss, logits, batch)


def _result(loss: Tensor, logits: Tensor, batch: Batch) -> StepResult:
    right = logits.detach().argmax(1) == batch.targets.argmax(1)
    return StepResult(float(loss.detach()), float(right.float().mean()))


class GateTrainer:
    """Architecture steps: task gradient by binarized gates, latency held at the budget.

    In `two_path` mode task and latency act on each gate's sampled pair alone, and the pair is
    shifted together after the step: the probabilities of the others stay as they were. In
    `full` mode both act on all candidates.
    """

    def __init__(
        self,
        supernet: Supernet,
        expected: ExpectedLatency,
        controller: BudgetController,
        config: GateConfig,
    ) -> None:
        self.supernet, self.gates = supernet, supernet.gates
        self.expected, self.controller, self.config = expected, controller, config
        self.optimizer = build_gate_optimizer(self.gates, config.learning_rate)
        self.norms = batch_norms(supernet)

    def step(self, batch: Batch, generator: torch.Generator) -> StepResult:
        """One architecture step on held-out images."""
        full = self.config.mode == "full"
        sample = self.gates.sample_full(generator) if full else self.gates.sample_pair(generator)
        self.supernet.set_sample(sample, recompute=full)
        with frozen(self.supernet.active_parameters()), frozen_statistics(self.norms):
            logits = self.supernet(batch.images)
            loss = functional.cross_entropy(logits, batch.targets)
            if self.gates.infos:
                loss.backward()
        path_gradients, reached = self.supernet.path_gradients()
        task = self.gates.task_gradient(path_gradients, reached)
        latency, expected_ms = self.latency_gradient(None if full else sample.involved)
        before = self.gates.alpha.detach().clone()
        self.gates.alpha.grad = self.controller.combine(task, latency, expected_ms)
        self.optimizer.step()
        self.gates.alpha.grad = None
        if not full:
            self.gates.keep_mass(before, sample.involved)
        return _result(loss, logits, batch)

    def latency_gradient(self, within: Tensor | None) -> tuple[Tensor, float]:
        """Gradient of `log(E/budget)` in alpha, and E in milliseconds.

        Args:
            within: the candidates it may act on; all if none.
        """
        expected_ms = self.expected(self.gates.probabilities(within))
        (gradient,) = torch.autograd.grad(expected_ms.log(), self.gates.alpha)
        return gradient, float(expected_ms.detach())

    def state(self) -> dict[str, Any]:
        """What a checkpoint needs besides the supernet's tensors."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "multiplier": self.controller.multiplier,
            "task_size": self.controller.task_size,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.controller.multiplier = state["multiplier"]
        self.controller.task_size = state["task_size"]


def build_gate_optimizer(gates: Gates, learning_rate: float) -> torch.optim.Adam:
    """Adam without momentum: a candidate that was not sampled does not move (ProxylessNAS)."""
    return torch.optim.Adam([gates.alpha], lr=learning_rate, betas=(0.0, 0.999), eps=1e-8)


def batch_norms(network: nn.Module) -> list[nn.BatchNorm2d]:
    """Every BatchNorm of a network."""
    return [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]


@contextmanager
def frozen_statistics(norms: Sequence[nn.BatchNorm2d]) -> Iterator[None]:
    """A context in which BatchNorm uses the batch but leaves its running averages alone."""
    tracking = [norm.track_running_stats for norm in norms]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm, tracked in zip(norms, tracking, strict=True):
            norm.track_running_stats = tracked
