"""Training steps: weights of a network or supernet, and architecture parameters.

All random draws are stateless: each comes from a generator seeded with the run's seed, a purpose
and the step, so that a resumed run draws the same numbers as an uninterrupted one.
"""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

from quadranas.acceleration.engine import Engine
from quadranas.data.batch import Batch
from quadranas.data.task import StepResult, step_result
from quadranas.runs.config import WeightConfig


def weight_step(
    network: nn.Module,
    parameters: Sequence[nn.Parameter],
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    config: WeightConfig,
    learning_rate: float,
    engine: Engine | None = None,
) -> StepResult:
    """One training step of the weights on the current path.

    Args:
        parameters: those on the current path; the others have no gradient and do not change.
        engine: the hardware on which network and batch lie; by default the processor.
    """
    engine = engine or Engine()
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    logits = engine.logits(network, batch.images)
    loss = functional.cross_entropy(logits, batch.targets, label_smoothing=config.label_smoothing)
    engine.backward(loss, batch.weight)
    engine.update(optimizer, parameters, config.clip_norm)
    return step_result(loss, logits, batch)
