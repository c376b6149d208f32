"""Weight steps: what moves, what stays, and what a step reports."""

import copy
import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import nn

from quadranas.data.batch import Batch
from quadranas.runs.config import WeightConfig
from quadranas.seeds import generator_for
from quadranas.space.search_space import SearchSpace
from quadranas.supernet.supernet import build_supernet
from quadranas.training.optimizers import build_optimizer
from quadranas.training.steps import weight_step
from tests.small_supernets import SPACES, batch_for


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_what_is_not_sampled_has_no_gradient_no_momentum_and_no_decay(
    space: SearchSpace, kind: str
) -> None:
    supernet = build_supernet(space, seed=0).train()
    config = WeightConfig.model_validate(
        {"optimizer": kind, "learning_rate": 0.01, "weight_decay": 0.5}
    )
    optimizer = build_optimizer(supernet, config)
    ever_used: set[nn.Parameter] = set()
    missed_later = False
    for step in range(6):
        supernet.set_sample(supernet.gates.sample_path(generator_for(0, "path", step)))
        used = set(supernet.active_parameters())
        missed_later |= bool(ever_used - used)
        before = {p: p.detach().clone() for p in supernet.parameters()}
        states = copy.deepcopy({id(p): state for p, state in optimizer.state.items()})
        weight_step(supernet, list(used), optimizer, batch_for(space, step), config, 0.01)
        for parameter, old in before.items():
            assert parameter.grad is None
            if parameter in used:
                assert not torch.equal(parameter, old)
                assert optimizer.state[parameter]
                continue
            assert torch.equal(parameter, old)
            assert_same_state(optimizer.state.get(parameter, {}), states.get(id(parameter), {}))
        ever_used |= used
        assert {p for p, state in optimizer.state.items() if state} == ever_used
    assert missed_later
    assert ever_used < set(supernet.network.parameters())


def assert_same_state(actual: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    assert actual.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(torch.as_tensor(actual[key]), torch.as_tensor(value)), key


def test_a_weight_step_is_the_step_of_its_path_alone() -> None:
    # The optimiser of a plain network of the same weights does the very same.
    space = SPACES["small-quadra"]
    supernet = build_supernet(space, seed=0).train()
    supernet.set_sample(supernet.gates.sample_path(generator_for(0, "path", 3)))
    path = nn.ModuleList(copy.deepcopy(list(supernet.active_modules())))
    network = nn.Sequential(*path).train()
    config, batch = WeightConfig(clip_norm=0.05), batch_for(space)
    results = [
        weight_step(net, weights, build_optimizer(net, config), batch, config, 0.01)
        for net, weights in (
            (supernet, supernet.active_parameters()),
            (network, list(network.parameters())),
        )
    ]
    assert results[0] == results[1]
    pairs = zip(supernet.active_parameters(), network.parameters(), strict=True)
    assert all(torch.equal(ours, plain) for ours, plain in pairs)


def test_the_gradient_of_the_path_is_clipped() -> None:
    space = SPACES["small-quadra"]
    moves = []
    for clip_norm in (1e-3, 1e-4):
        supernet = build_supernet(space, seed=0).train()
        supernet.set_sample(supernet.gates.sample_path(generator_for(0, "path", 0)))
        config = WeightConfig(optimizer="sgd", weight_decay=0.0, clip_norm=clip_norm)
        weights = supernet.active_parameters()
        before = [p.detach().clone() for p in weights]
        optimizer = build_optimizer(supernet, config)
        weight_step(supernet, weights, optimizer, batch_for(space), config, 1.0)
        pairs = zip(weights, before, strict=True)
        moves.append(math.sqrt(sum(float((p - old).square().sum().detach()) for p, old in pairs)))
    # Nesterov momentum of 0.9 takes 1.9 times the first gradient.
    assert moves == pytest.approx([1.9e-3, 1.9e-4], rel=1e-2)


def test_a_step_reports_loss_and_accuracy() -> None:
    space = SPACES["small-quadra"]
    supernet = build_supernet(space, seed=0)
    with torch.no_grad():
        head = next(module for name, module in supernet.candidates() if name.startswith("head"))
        assert isinstance(head.linear, nn.Linear)
        head.linear.weight.zero_()
        head.linear.bias.copy_(torch.tensor([0.0, 0.0, 5.0, 0.0]))
    targets = nn.functional.one_hot(torch.tensor([2, 2, 2, 0]), 4).float()
    batch = Batch(torch.randn(4, 3, 16, 16), targets)
    config = WeightConfig(label_smoothing=0.0)
    optimizer = build_optimizer(supernet, config)
    result = weight_step(supernet, supernet.active_parameters(), optimizer, batch, config, 0.1)
    right = math.log(math.exp(5) + 3) - 5
    assert result.loss == pytest.approx((3 * right + right + 5) / 4, rel=1e-5)
    assert result.accuracy == 0.75
    assert optimizer.param_groups[0]["lr"] == 0.1
