"""Training steps: weights of a network or supernet, and architecture parameters.

All random draws are stateless: each comes from a generator seeded with the run's seed, a purpose
and the step, so that a resumed run draws the same numbers as an uninterrupted one.
"""

from collections.abc import Callable, Sequence

import torch
from torch import nn

from quadranas.acceleration.engine import Engine
from quadranas.data.batch import Batch
from quadranas.data.task import StepResult, joined, step_result
from quadranas.runs.config import WeightConfig
from quadranas.training.distillation import Loss, label_loss


def weight_step(
    network: nn.Module,
    parameters: Sequence[nn.Parameter],
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    config: WeightConfig,
    learning_rate: float,
    engine: Engine | None = None,
    begin: Callable[[Batch], None] | None = None,
    loss: Loss | None = None,
) -> StepResult:
    """One training step of the weights on the current path.

    Args:
        optimizer: its groups may have an `lr_factor`, by which their rate is multiplied.
        parameters: those on the current path; the others have no gradient and do not change.
        engine: the hardware on which network and batch lie; by default the processor.
        begin: called before each part of the batch passes through the network.
        loss: the loss to minimise; by default that of the labels.
    """
    engine = engine or Engine()
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group.get("lr_factor", 1.0)
    loss, results = loss or label_loss(config), []
    for part in batch.parts():
        if begin is not None:
            begin(part)
        logits = engine.logits(network, part.images)
        value = loss(logits, part)
        engine.backward(value, part.weight)
        results.append(step_result(value, logits, part))
    engine.update(optimizer, parameters, config.clip_norm)
    return joined(results)
