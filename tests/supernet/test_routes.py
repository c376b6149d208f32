"""The passage through a gate: which paths run, and what is measured of them."""

import pytest
import torch
from torch import Tensor, nn

from quadranas.supernet.routes import Route, take
from tests.supernet.toy import generator


class Counting(nn.Module):
    """A path that counts its passes and notes whether they were recorded for a backward pass."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(factor, dtype=torch.float64))
        self.recorded: list[bool] = []

    def forward(self, x: Tensor) -> Tensor:
        self.recorded.append(torch.is_grad_enabled())
        return torch.sin(self.weight * x)


@pytest.fixture
def paths() -> list[Counting]:
    return [Counting(factor) for factor in (0.5, 1.0, 2.0)]


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 3, 4, 4, generator=generator(), dtype=torch.float64, requires_grad=True)


def test_outside_of_an_architecture_step_only_the_active_path_runs(
    paths: list[Counting], x: Tensor
) -> None:
    output = take(Route(active=1), paths, x)
    assert [path.recorded for path in paths] == [[], [True], []]
    torch.testing.assert_close(output, torch.sin(x))
    output.sum().backward()
    assert [path.weight.grad is None for path in paths] == [True, False, True]


@pytest.mark.parametrize("recompute", [False, True])
def test_without_gradients_only_the_active_path_runs(
    paths: list[Counting], x: Tensor, recompute: bool
) -> None:
    route = Route(active=1, inactive=(0, 2), recompute=recompute)
    with torch.no_grad():
        take(route, paths, x)
    assert [path.recorded for path in paths] == [[], [False], []]


@pytest.mark.parametrize("recompute", [False, True])
def test_inner_products_with_every_involved_path(
    paths: list[Counting], x: Tensor, recompute: bool
) -> None:
    route = Route(active=2, inactive=(0,), recompute=recompute)
    target = torch.randn(x.shape, generator=generator(1), dtype=torch.float64)
    loss = ((take(route, paths, x) - target) ** 2).sum()
    in_forward = [] if recompute else [False]
    assert [path.recorded for path in paths] == [in_forward, [], [True]]
    loss.backward()
    assert [path.recorded for path in paths] == [[False], [], [True]]
    assert x.grad is not None

    grad = 2 * (torch.sin(2 * x) - target).detach()
    assert set(route.gradients) == {0, 2}
    for index, factor in ((0, 0.5), (2, 2.0)):
        expected = float((torch.sin(factor * x.detach()) * grad).sum())
        assert float(route.gradients[index]) == pytest.approx(expected, rel=1e-12)
    torch.testing.assert_close(x.grad, grad * 2 * torch.cos(2 * x.detach()))
    assert paths[0].weight.grad is None


@pytest.mark.parametrize("recompute", [False, True])
def test_frozen_paths_behind_a_plain_input_are_measured_too(
    paths: list[Counting], x: Tensor, recompute: bool
) -> None:
    # The first gate of a supernet in an architecture step: nothing in front of it has a graph.
    for path in paths:
        path.requires_grad_(False)
    route = Route(active=0, inactive=(1, 2), recompute=recompute)
    take(route, paths, x.detach()).sum().backward()
    assert set(route.gradients) == {0, 1, 2}


@pytest.mark.parametrize("recompute", [False, True])
def test_a_memory_layout_does_not_change_the_inner_product(
    paths: list[Counting], x: Tensor, recompute: bool
) -> None:
    found = []
    for layout in (torch.contiguous_format, torch.channels_last):
        route = Route(active=0, inactive=(1,), recompute=recompute)
        images = x.detach().to(memory_format=layout)
        take(route, paths, images).cumsum(3).square().sum().backward()
        found.append([float(route.gradients[index]) for index in (0, 1)])
    assert found[0] == pytest.approx(found[1], rel=1e-12)
