"""The parts of QuadraNets against their equations, in float64."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import nn

from quadranas.layers import build_op
from quadranas.layers.quadranet import ChannelNorm, FeedForward, QuadraticDepthwise, ResidualBranch
from quadranas.layers.quadratic import QuadraticLinear
from tests import operations
from tests.operations import close

Scrambler = Callable[..., nn.Module]

pytestmark = pytest.mark.usefixtures("float64")

spec = partial(operations.spec, channels=6, resolution=8)


# ---------------------------------------------------------------- blocks


def test_channel_norm_is_over_the_channels_of_a_pixel(scramble: Scrambler) -> None:
    norm = ChannelNorm(6)
    scramble(norm)
    x = 3 * torch.randn(2, 6, 4, 5) + 1
    centred = x - x.sum(1, keepdim=True) / 6
    variance = (centred**2).sum(1, keepdim=True) / 6
    scaled = centred / (variance + 1e-6).sqrt()
    close(norm(x), scaled * norm.weight[:, None, None] + norm.bias[:, None, None])


@pytest.mark.parametrize("kind", ["quadratic_depthwise", "feed_forward"])
def test_gamma_scales_the_branch(kind: str, scramble: Scrambler) -> None:
    op = scramble(build_op(spec(kind), 0.5))
    assert isinstance(op, ResidualBranch)
    x = torch.randn(2, 6, 8, 8)
    with torch.no_grad():
        op.gamma.fill_(1)
        branch = op(x) - x
        assert branch.abs().mean() > 0.1
        op.gamma.copy_(torch.arange(6))
        close(op(x), x + torch.arange(6.0)[:, None, None] * branch)


@pytest.mark.parametrize("layer_scale", [1.0, 1e-6])
def test_layer_scale_is_the_initial_gamma(layer_scale: float) -> None:
    for kind in ("quadratic_depthwise", "feed_forward"):
        op = build_op(spec(kind), layer_scale)
        assert isinstance(op, ResidualBranch)
        close(op.gamma.detach(), torch.full((6,), layer_scale))


@pytest.mark.parametrize("num_quadratic", [0, 1, 2])
def test_which_layers_of_a_feed_forward_part_are_quadratic(
    num_quadratic: int, scramble: Scrambler
) -> None:
    op = scramble(build_op(spec("feed_forward", expand_ratio=2, num_quadratic=num_quadratic)))
    assert isinstance(op, FeedForward)
    assert isinstance(op.expand, QuadraticLinear) == (num_quadratic >= 1)
    assert isinstance(op.project, QuadraticLinear) == (num_quadratic == 2)
    x = torch.randn(2, 6, 8, 8)
    pixel = x[1, :, 3, 4]
    hidden = op.expand(op.norm(pixel))
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))
    close(op(x)[1, :, 3, 4], pixel + op.gamma * op.project(hidden))


def test_the_memory_format_does_not_change_the_result(scramble: Scrambler) -> None:
    x = torch.randn(2, 6, 8, 8)
    for kind in ("quadratic_depthwise", "feed_forward", "mbconv"):
        op = scramble(build_op(spec(kind))).eval()
        close(op(x), op(x.contiguous(memory_format=torch.channels_last)))


# ---------------------------------------------------------------- stochastic depth


@pytest.fixture
def branch(scramble: Scrambler) -> ResidualBranch:
    op = scramble(build_op(spec("quadratic_depthwise", channels=4, resolution=2)))
    assert isinstance(op, QuadraticDepthwise)
    return op


def test_dropped_samples_skip_the_branch_and_the_others_make_up_for_it(
    branch: ResidualBranch,
) -> None:
    one = torch.randn(1, 4, 2, 2)
    with torch.no_grad():
        full = branch.eval()(one) - one
        branch.drop_probability = 0.3
        x = one.expand(20_000, 4, 2, 2)
        added = branch.train()(x) - x
    dropped = added.flatten(1).abs().amax(1) == 0
    close(added[~dropped], (full / 0.7).expand_as(added[~dropped]))
    # 20,000 draws: a standard deviation is 0.0032, and the seed is fixed.
    assert dropped.double().mean().item() == pytest.approx(0.3, abs=0.01)
    torch.testing.assert_close(added.mean(0, keepdim=True), full, rtol=0.02, atol=0)


def test_evaluation_drops_nothing(branch: ResidualBranch) -> None:
    x = torch.randn(64, 4, 2, 2)
    branch.eval()
    expected = branch(x)
    branch.drop_probability = 0.9
    assert torch.equal(branch(x), expected)
    branch.train()
    assert not torch.equal(branch(x), expected)
    branch.drop_probability = 0.0
    assert torch.equal(branch(x), expected)
