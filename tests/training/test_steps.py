"""Weight steps: what moves, what stays, and what a step reports."""

import copy
import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import nn

from quadranas.acceleration.engine import Engine
from quadranas.data.batch import Batch
from quadranas.runs.config import WeightConfig
from quadranas.seeds import generator_for
from quadranas.space.search_space import SearchSpace
from quadranas.supernet.supernet import build_supernet
from quadranas.training.distillation import label_loss
from quadranas.training.optimizers import build_optimizer
from quadranas.training.steps import joint_weight_step, weight_step
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
    # The optimiser of a plain network of the same weights does the same, up to the rounding of the
    # gradient's norm, whose sum depends on where the gradients lie in memory.
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
    for ours, plain in zip(supernet.active_parameters(), network.parameters(), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-6, atol=1e-7)


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


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("distillation", [False, True])
def test_a_joint_step_is_the_mean_of_its_networks(
    space: SearchSpace, nested: bool, distillation: bool
) -> None:
    """Against gradients that are computed one network after the other."""
    supernet = build_supernet(space, seed=0, nested=nested).double().eval()
    paths = [supernet.gates.sample_path(generator_for(0, "path", i)) for i in range(3)]
    config = WeightConfig(optimizer="sgd", weight_decay=0.0, clip_norm=1e9, label_smoothing=0.1)
    batch = batch_for(space)
    batch = Batch(batch.images.double(), batch.targets.double())
    expected: dict[nn.Parameter, torch.Tensor] = {}
    losses, wanted = [], batch.targets
    for number, path in enumerate(paths):
        supernet.set_sample(path)
        logits = supernet(batch.images)
        smoothing = 0.0 if distillation and number else 0.1
        losses.append(nn.functional.cross_entropy(logits, wanted, label_smoothing=smoothing))
        used = list(dict.fromkeys(supernet.active_parameters()))
        for parameter, slope in zip(used, torch.autograd.grad(losses[-1], used), strict=True):
            expected[parameter] = expected.get(parameter, 0) + slope / len(paths)
        if distillation and not number:
            wanted = logits.detach().softmax(1)
    before = {p: p.detach().clone() for p in supernet.network.parameters()}
    result = joint_weight_step(
        *(supernet, paths, build_optimizer(supernet, config), batch, config, 0.01, Engine()),
        label_loss(config),
        distillation=distillation,
    )
    assert float(result.loss) == pytest.approx(sum(float(loss.detach()) for loss in losses) / 3)
    for parameter, old in before.items():
        change = 1.9 * 0.01 * expected.get(parameter, torch.zeros_like(old))
        torch.testing.assert_close(old - parameter.detach(), change)
        assert parameter.grad is None
