"""Gate training: one architecture step on held-out images."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from quadranas.acceleration.engine import Engine
from quadranas.data.batch import Batch
from quadranas.data.task import StepResult, joined, step_result
from quadranas.network.modes import batch_norms, frozen, frozen_statistics
from quadranas.runs.config import GateConfig
from quadranas.supernet.budget_controller import BudgetController, combine
from quadranas.supernet.expected_latency import ExpectedLatency
from quadranas.supernet.gates import Gates
from quadranas.supernet.supernet import Supernet


class GateTrainer:
    """Architecture steps: a task gradient through binarized gates, latencies held at the budgets.

    In `two_path` mode task and latency gradients act only on the pair sampled for each gate; after
    the step the pair is shifted so that the probabilities of all others stay the same. In `full`
    mode both gradients act on all candidates.

    A step waits for the accelerator once: to read the gradients in the gates, which are float64
    on the processor.

    Args:
        further: expected latencies on further devices, and the controllers of their budgets.
    """

    def __init__(
        self,
        supernet: Supernet,
        expected: ExpectedLatency,
        controller: BudgetController,
        config: GateConfig,
        engine: Engine | None = None,
        further: Sequence[tuple[ExpectedLatency, BudgetController]] = (),
    ) -> None:
        self.supernet, self.gates = supernet, supernet.gates
        self.expected, self.controller, self.config = expected, controller, config
        self.terms = ((expected, controller), *further)
        self.engine = engine or Engine()
        self.optimizer = build_gate_optimizer(self.gates, config.learning_rate)
        self.norms = batch_norms(supernet)

    def step(self, batch: Batch, generator: torch.Generator) -> StepResult:
        """One architecture step on held-out images."""
        full = self.config.mode == "full"
        sample = self.gates.sample_full(generator) if full else self.gates.sample_pair(generator)
        self.supernet.set_sample(sample, recompute=full)
        with frozen(self.supernet.active_parameters()), frozen_statistics(self.norms):
            results, path_gradients, reached = self._passed(batch)
        path_gradients, reached = self._reduced(path_gradients, reached)
        task = self.gates.task_gradient(path_gradients, reached)
        latencies = self.latency_gradients(None if full else sample.involved)
        before = self.gates.alpha.detach().clone()
        self.gates.alpha.grad = combine(
            [controller for _, controller in self.terms],
            task,
            [gradient for gradient, _ in latencies],
            [expected_ms for _, expected_ms in latencies],
        )
        self.optimizer.step()
        self.gates.alpha.grad = None
        if not full:
            self.gates.keep_mass(before, sample.involved)
        return joined(results)

    def _passed(self, batch: Batch) -> tuple[list[StepResult], Tensor, Tensor]:
        """The results of the parts of a batch, and the gradients in the gates over all of them."""
        results, totals = [], []
        for part in batch.parts():
            logits = self.engine.logits(self.supernet, part.images)
            loss = functional.cross_entropy(logits, part.targets)
            if self.gates.infos:
                self.engine.backward(loss, part.weight)
            gradients, reached = self.supernet.path_gradients()
            totals.append(gradients)
            results.append(step_result(loss, logits, part))
        return results, sum(totals[1:], start=totals[0]), reached

    def _reduced(self, gradients: Tensor, reached: Tensor) -> tuple[Tensor, Tensor]:
        """The gradients in the gates of all processes together, without the scale of the loss.

        In fp16 a gradient may have overflowed; it is then as if no gradient had reached the gate.
        """
        self.engine.processes.add_up([gradients])
        scale = self.engine.scaler.get_scale()
        gradients = gradients / scale if scale != 1 else gradients
        is_usable = gradients.isfinite()
        if self.engine.scaler.is_enabled() and not is_usable.all():
            gradients = gradients.nan_to_num(0.0, 0.0, 0.0)
            reached = reached & is_usable.all(1, keepdim=True)
        return gradients, reached

    def latency_gradients(self, within: Tensor | None) -> list[tuple[Tensor, float]]:
        """Per budget the gradient of `log(E/budget)` in alpha, and E in milliseconds.

        Args:
            within: the candidates that the gradients act on; all candidates if None.
        """
        found = []
        for expected, _ in self.terms:
            expected_ms = expected(self.gates.probabilities(within))
            (gradient,) = torch.autograd.grad(expected_ms.log(), self.gates.alpha)
            found.append((gradient, float(expected_ms.detach())))
        return found

    def state(self) -> dict[str, Any]:
        """The state to save in a checkpoint, besides the supernet's tensors."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "multiplier": self.controller.multiplier,
            "task_size": self.controller.task_size,
            "further_multipliers": [c.multiplier for _, c in self.terms[1:]],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Restore the state saved in a checkpoint."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.controller.multiplier = state["multiplier"]
        self.controller.task_size = state["task_size"]
        # Checkpoints of earlier versions have one budget only.
        multipliers = state.get("further_multipliers", [])
        for (_, controller), multiplier in zip(self.terms[1:], multipliers, strict=True):
            controller.multiplier = multiplier


def build_gate_optimizer(gates: Gates, learning_rate: float) -> torch.optim.Adam:
    """Adam without momentum, so that only sampled candidates move (ProxylessNAS)."""
    return torch.optim.Adam([gates.alpha], lr=learning_rate, betas=(0.0, 0.999), eps=1e-8)
