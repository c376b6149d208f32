"""Optimisers: which parameters decay, and the learning rate over the steps."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from quadranas.runs.config import WeightConfig
from quadranas.space.search_space import SearchSpace
from quadranas.supernet.supernet import build_supernet
from quadranas.training.optimizers import build_optimizer, learning_rate_at


@given(num_steps=st.integers(1, 3000), fraction=st.floats(0, 0.5))
def test_the_learning_rate_rises_linearly_and_falls_by_a_cosine(
    num_steps: int, fraction: float
) -> None:
    config = WeightConfig(learning_rate=0.1, warmup_fraction=fraction)
    rates = [learning_rate_at(step, num_steps, config) for step in range(num_steps)]
    warmup = max(1, round(fraction * num_steps))
    for step, rate in enumerate(rates):
        if step < warmup:
            assert rate == pytest.approx(0.1 * (step + 1) / warmup)
        else:
            share = (step - warmup) / (num_steps - warmup)
            assert rate == pytest.approx(0.05 * (1 + math.cos(math.pi * share)))
    assert max(rates) == pytest.approx(0.1)
    assert min(rates) > 0


def test_norms_biases_and_scales_do_not_decay(space: SearchSpace) -> None:
    supernet = build_supernet(space, seed=0)
    optimizer = build_optimizer(supernet, WeightConfig(weight_decay=0.3))
    names = {parameter: name for name, parameter in supernet.named_parameters()}
    decaying, plain = optimizer.param_groups
    assert (decaying["weight_decay"], plain["weight_decay"]) == (0.3, 0.0)
    assert all(names[p].endswith("weight") and p.ndim > 1 for p in decaying["params"])
    assert all(p.ndim == 1 for p in plain["params"])
    optimised = {names[p] for group in optimizer.param_groups for p in group["params"]}
    assert optimised == set(names.values()) - {"gates.alpha"}


def test_a_weight_that_is_called_alpha_is_trained_too() -> None:
    layer = nn.Module()
    layer.alpha = nn.Parameter(torch.ones(3))
    optimizer = build_optimizer(nn.Sequential(layer), WeightConfig())
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 1
