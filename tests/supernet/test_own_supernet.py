"""The supernet of a user's own model computes what the model and its changed copies compute."""

from typing import Any

import pytest
import torch

from quadranas.conversion.own_space import own_space
from quadranas.network.own_model import given_model
from quadranas.network.skeleton import build_subnet
from quadranas.network.weights import load_tensors
from quadranas.space.sampling import random_architectures
from quadranas.space.search_space import SearchSpace
from quadranas.supernet.supernet import Supernet, build_supernet
from tests.own_models import SIZE, WHERE, build

IMAGES = torch.randn(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


def space_of(name: str) -> SearchSpace:
    where: Any = WHERE[name]
    example = torch.zeros(1, 3, SIZE, SIZE)
    return own_space(build(name), example, where, name="mine", source="test", widths=[0.5]).space()


def largest(space: SearchSpace) -> dict[str, tuple[int, ...] | None]:
    return {
        block.name: tuple(len(s.candidates) - 1 for s in block.slots) for block in space.blocks
    }


@pytest.mark.parametrize("name", WHERE)
@torch.no_grad()
def test_the_largest_network_computes_what_the_model_does(name: str) -> None:
    space = space_of(name)
    supernet = build_supernet(space, seed=0).eval()
    supernet.set_choices(largest(space))
    assert space.model is not None
    expected = given_model(space.model)(IMAGES)
    torch.testing.assert_close(supernet(IMAGES), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", WHERE)
@torch.no_grad()
def test_networks_inherit_what_the_supernet_computes(name: str) -> None:
    space = space_of(name)
    supernet = build_supernet(space, seed=0)
    for parameter in supernet.network.parameters():
        parameter.add_(0.05 * torch.randn_like(parameter))
    supernet.train()
    supernet(IMAGES)
    supernet.eval()
    for architecture in random_architectures(space, 6, "test"):
        supernet.set_choices(space.choices_of(architecture))
        network = build_subnet(architecture).eval()
        load_tensors(network, supernet.subnet_tensors(architecture), "supernet")
        torch.testing.assert_close(network(IMAGES), supernet(IMAGES), rtol=1e-5, atol=1e-5)


def test_weights_are_shared_and_reached() -> None:
    supernet: Supernet = build_supernet(space_of("mobilenet"), seed=0)
    supernet.train()
    supernet.set_choices({**largest(supernet.space), "features_1": (0,), "features_3": None})
    supernet(IMAGES).sum().backward()
    names = {id(p): n for n, p in supernet.network.named_parameters()}
    active = {names[id(p)] for p in supernet.active_parameters()}
    assert len(active) == len(supernet.active_parameters())
    assert not any(".3." in name.partition("features")[2][:3] for name in active)
    depthwise = next(p for n, p in supernet.network.named_parameters() if "shared.conv.3.w" in n)
    assert depthwise.grad is not None
    reached = depthwise.grad.abs().sum((1, 2, 3)) > 0
    assert reached.tolist() == [True] * 8 + [False] * 8
    border = depthwise.grad.clone()
    border[:, :, 1:-1, 1:-1] = 0
    assert not border.any()
