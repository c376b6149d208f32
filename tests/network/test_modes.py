"""Modes: what a context changes in a network is as before at its end."""

import copy
from collections.abc import Sequence

import pytest
import torch
from torch import nn

from quadranas.network.counting import count_network
from quadranas.network.modes import batch_norms, evaluating, frozen, frozen_statistics
from tests.networks import state_of


def network() -> nn.Sequential:
    """A network in training whose norm is kept in evaluation mode."""
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout(), nn.Flatten())
    model[1].eval()
    return model


def modes(model: nn.Module) -> Sequence[bool]:
    return [module.training for module in model.modules()]


def test_every_module_gets_its_own_mode_back() -> None:
    model = network()
    before = modes(model)
    assert len(set(before)) == 2
    with evaluating(model):
        assert not any(modes(model))
    assert modes(model) == before
    count_network(model, 8)
    assert modes(model) == before


def test_modes_come_back_after_a_failure() -> None:
    model = network()
    before = modes(model)
    with pytest.raises(RuntimeError, match="stop"), evaluating(model):
        raise RuntimeError("stop")
    assert modes(model) == before


def test_only_what_was_trained_is_trained_again() -> None:
    model = network()
    model[0].bias.requires_grad_(False)
    before = [p.requires_grad for p in model.parameters()]
    with frozen(list(model.parameters())):
        assert not any(p.requires_grad for p in model.parameters())
    assert [p.requires_grad for p in model.parameters()] == before


@pytest.mark.parametrize(
    ("norm", "shape"),
    [
        (nn.BatchNorm1d(4), (8, 4)),
        (nn.BatchNorm2d(4), (8, 4, 2, 2)),
        (nn.BatchNorm3d(4), (8, 4, 2, 2, 2)),
    ],
)
def test_running_statistics_stay_for_norms_of_any_dimension(
    norm: nn.Module, shape: tuple[int, ...]
) -> None:
    model = nn.Sequential(norm)
    (found,) = batch_norms(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with frozen_statistics([found]):
        assert model(torch.randn(shape) + 3).mean().abs() < 1e-5  # the batch's own statistics
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    model(torch.randn(shape))
    assert found.num_batches_tracked == 1


def test_frozen_statistics_end_with_their_context() -> None:
    norm = nn.BatchNorm2d(3, momentum=0.2).train()
    x = torch.randn(4, 3, 5, 5)
    with torch.no_grad():
        expected = copy.deepcopy(norm)(x)
        before = state_of(norm)
        with frozen_statistics([norm]):
            assert torch.equal(norm(x), expected)
        assert all(torch.equal(tensor, before[n]) for n, tensor in state_of(norm).items())
        norm(x)
    assert not torch.equal(norm.running_mean, before["running_mean"])  # type: ignore[arg-type]
    assert int(norm.num_batches_tracked or 0) == 1
    assert norm.momentum == 0.2


def test_frozen_ends_with_its_context() -> None:
    layer = nn.Linear(2, 2)
    with frozen(list(layer.parameters())):
        assert not any(parameter.requires_grad for parameter in layer.parameters())
    assert all(parameter.requires_grad for parameter in layer.parameters())
