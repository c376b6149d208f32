"""Optimisers, their parameter groups and their learning rate."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from quadranas.runs.config import WeightConfig


def decay_groups(parameters: Iterable[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups with and without weight decay; norms, biases and layer scales have none."""
    parameters = list(parameters)
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


def build_optimizer(network: nn.Module, config: WeightConfig) -> torch.optim.Optimizer:
    """AdamW, or SGD with Nesterov momentum, on the groups of `decay_groups`.

    Parameters without a gradient are not changed: no momentum, no decay. (SGD is not `fused`:
    with momentum, torch 2.13 then fails on parameters without gradient.)
    """
    parameters = [p for name, p in network.named_parameters() if name != "gates.alpha"]
    return optimizer_of(decay_groups(parameters, config.weight_decay), config)


def optimizer_of(groups: list[dict[str, Any]], config: WeightConfig) -> torch.optim.Optimizer:
    """The configured optimiser of parameter groups; see `build_optimizer`.

    Args:
        groups: those with `lr_factor` have this factor of the learning rate
            (`quadranas.training.steps`).
    """
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.99), fused=True)
    return torch.optim.SGD(
        groups, lr=config.learning_rate, momentum=0.9, nesterov=True, foreach=True
    )


def learning_rate_at(step: int, num_steps: int, config: WeightConfig) -> float:
    """The learning rate of one step: a linear warm-up, then a cosine to zero."""
    warmup = max(1, round(config.warmup_fraction * num_steps))
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, num_steps - warmup)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))
