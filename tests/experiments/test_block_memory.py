"""The blocks of experiments/block_memory, against the formulas of the papers they come from."""

import importlib.util
from types import ModuleType

import pytest
import torch
from torch import nn

from quadranas.memory import profile_memory
from tests.command_line import CHECKOUT

KERNEL, WINDOW, PIXELS = 7, 7, 14


@pytest.fixture(scope="module")
def blocks() -> ModuleType:
    path = CHECKOUT / "experiments/block_memory/blocks.py"
    spec = importlib.util.spec_from_file_location("blocks", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def count_macs(block: nn.Module, channels: int, side: int) -> int:
    """Of one sample, by the profiler that the experiment uses."""
    return profile_memory(block, (1, channels, side, side)).macs


@pytest.mark.parametrize("channels", [64, 128])
def test_swin_costs_what_its_paper_says(blocks: ModuleType, channels: int) -> None:
    block = blocks.SwinBlock(channels, PIXELS)
    attention = 4 * channels**2 + 2 * WINDOW**2 * channels  # Swin, Eq. (2), per pixel
    assert count_macs(block, channels, PIXELS) == PIXELS**2 * (attention + 8 * channels**2)
    biases = 3 * channels + channels + 4 * channels + channels
    table = (2 * WINDOW - 1) ** 2 * channels // 32
    params = sum(parameter.numel() for parameter in block.parameters())
    assert params == 12 * channels**2 + biases + table + 4 * channels  # two LayerNorms


@pytest.mark.parametrize(("channels", "order"), [(64, 2), (128, 3), (64, 4)])
def test_hornet_costs_what_its_paper_says(blocks: ModuleType, channels: int, order: int) -> None:
    mixer = blocks.GatedConvolution(channels, order)
    taps = 2 * KERNEL**2 * (1 - 2**-order)
    pointwise = (11 / 3 - 2 / (3 * 4 ** (order - 1))) * channels
    weights = channels * (taps + pointwise)  # HorNet, Eq. (3.6), per pixel
    assert count_macs(mixer, channels, PIXELS) == pytest.approx(PIXELS**2 * weights)
    depthwise = 2 * channels * (1 - 2**-order)
    widened = sum(channels / 2**k for k in range(order - 1))  # the recursion's outputs
    biases = 2 * channels + depthwise + widened + channels
    params = sum(parameter.numel() for parameter in mixer.parameters())
    assert params == pytest.approx(weights + biases)


def test_a_shifted_window_does_not_mix_what_the_shift_brought_together(
    blocks: ModuleType,
) -> None:
    attention = blocks.WindowAttention(32, PIXELS, WINDOW // 2)
    x = torch.randn(1, PIXELS, PIXELS, 32, requires_grad=True)
    attention(x)[0, 0, 0].sum().backward()
    assert x.grad is not None
    reach = x.grad[0].abs().amax(-1) > 1e-30
    assert reach[:3, :3].all()
    assert reach.sum() == 9


@pytest.mark.parametrize("channels", [64, 128])
def test_an_efficient_quadratic_block_keeps_as_much_as_a_depthwise_one(
    blocks: ModuleType, channels: int
) -> None:
    kept = {
        name: profile_memory(
            block, (2, channels, PIXELS, PIXELS), differentiate_input=True
        ).saved_bytes
        for name, block in blocks.build_blocks(channels, PIXELS).items()
    }
    feature_map = 4 * 2 * channels * PIXELS**2
    assert kept["quadra"] == kept["depthwise"] == kept["skip"] + feature_map
    assert kept["quadra_direct"] == kept["quadra"] + 2 * feature_map
    assert max(kept.values()) in (kept["swin"], kept["hornet"])
