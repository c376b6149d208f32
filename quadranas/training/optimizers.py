"""Optimisers and their learning rate."""

import math

import torch
from torch import nn

from quadranas.runs.config import WeightConfig


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
