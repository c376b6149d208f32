"""Training steps: weights of a network or supernet, and architecture parameters.

All random draws are stateless: each comes from a generator seeded with the run's seed, a purpose
and the step, so that a resumed run draws the same numbers as an uninterrupted one.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Size, Tensor, nn

from quadranas.acceleration.engine import Engine
from quadranas.data.batch import Batch
from quadranas.data.task import StepResult, joined, step_result
from quadranas.layers.resizing import part_of
from quadranas.runs.config import WeightConfig
from quadranas.supernet.gates import Sample
from quadranas.supernet.supernet import Supernet
from quadranas.training.distillation import Loss, imitation_loss, label_loss


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
    set_learning_rate(optimizer, learning_rate)
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


def joint_weight_step(
    supernet: Supernet,
    paths: Sequence[Sample],
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    config: WeightConfig,
    learning_rate: float,
    engine: Engine,
    loss: Loss,
    *,
    distillation: bool,
) -> StepResult:
    """One training step of the weights of several networks on the same images.

    Source: BigNAS, Yu et al., ECCV 2020 (arXiv:2003.11142), Sec. 3.1. The loss is the mean over
    the networks, and so is the result.

    Args:
        paths: the networks, the largest first.
        loss: the loss of the largest network, and of the others without distillation.
        distillation: whether the others learn the outputs of the largest one.
    """
    set_learning_rate(optimizer, learning_rate)
    parts: dict[nn.Parameter, Size] = {}
    results = []
    for part in batch.parts():
        wanted: Tensor | None = None
        for path in paths:
            supernet.set_sample(path)
            for parameter, shape in supernet.active_parts().items():
                parts[parameter] = Size(map(max, parts.get(parameter, shape), shape))
            logits = engine.logits(supernet, part.images)
            value = loss(logits, part) if wanted is None else imitation_loss(logits, wanted)
            engine.backward(value, part.weight / len(paths))
            results.append(step_result(value, logits, part))
            if distillation and wanted is None:
                wanted = logits.detach()
    gradients = [part_of(p.grad, shape) for p, shape in parts.items() if p.grad is not None]
    engine.update(optimizer, list(parts), config.clip_norm, gradients)
    total = joined(results)
    return StepResult(total.loss / len(paths), total.accuracy / len(paths))


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Have the next step of an optimiser use a learning rate, times the factor of each group."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group.get("lr_factor", 1.0)
