"""The engine of a training step: forward pass, backward pass and update on any hardware."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from quadranas.acceleration.accelerator import CPU, Accelerator, Precision, find_accelerator
from quadranas.acceleration.processes import ALONE, Processes


@dataclass(frozen=True)
class Engine:
    """How steps are computed: on an accelerator, in a precision, by one or several processes.

    No method waits for the accelerator.

    Args:
        scaler: scales the loss so that small gradients survive in fp16; without effect in other
            precisions.
    """

    accelerator: Accelerator = CPU
    processes: Processes = ALONE
    scaler: torch.amp.GradScaler = field(default_factory=lambda: _scaler(CPU))

    @classmethod
    def of(cls, accelerator: Accelerator, processes: Processes = ALONE) -> "Engine":
        """The engine of an accelerator and processes."""
        return cls(accelerator, processes, _scaler(accelerator))

    def logits(self, network: nn.Module, images: Tensor) -> Tensor:
        """The output of a network in at least float32, (B, 3, R, R) to (B, num_classes)."""
        with self.accelerator.autocast():
            logits: Tensor = network(images)
        return logits if logits.dtype == torch.float64 else logits.float()

    def backward(self, loss: Tensor, weight: float) -> None:
        """Compute gradients.

        Args:
            loss: the mean over the images of this process.
            weight: share of the batch that this process computes.
        """
        if weight != 1:
            loss = loss * weight
        self.scaler.scale(loss).backward()

    def update(
        self,
        optimizer: torch.optim.Optimizer,
        parameters: Sequence[nn.Parameter],
        clip_norm: float,
        travelling: Sequence[Tensor] | None = None,
    ) -> None:
        """Add up the gradients of all processes, clip them, and change the parameters.

        Args:
            parameters: those with gradients.
            travelling: the parts of their gradients that are not zero, as views; by default all.
        """
        if travelling is None:
            travelling = [p.grad for p in parameters if p.grad is not None]
        self.processes.add_up(travelling)
        self.scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(parameters, clip_norm)
        self.scaler.step(optimizer)
        self.scaler.update()
        for parameter in parameters:
            parameter.grad = None

    def state(self) -> dict[str, Any]:
        """The state for a checkpoint."""
        return self.scaler.state_dict()

    def restore(self, state: Mapping[str, Any]) -> None:
        """The reverse of `state`."""
        if state:
            self.scaler.load_state_dict(dict(state))


def engine_for(accelerator: str, precision: Precision, processes: Processes) -> Engine:
    """The engine on the accelerator of a name.

    Raises:
        QuadranasError: there is no such accelerator, or it cannot compute in the precision.
    """
    found = find_accelerator(accelerator, precision, local_rank=processes.local_rank)
    return Engine.of(found, processes)


def _scaler(accelerator: Accelerator) -> torch.amp.GradScaler:
    return torch.amp.GradScaler(accelerator.device.type, enabled=accelerator.precision == "fp16")
