"""The operations of QuadraNets: patch stem, downsampling, the two halves of a QuadraBlock, head.

Source: QuadraNet, Xu et al., ASP-DAC 2024 (arXiv:2311.17956), Sec. III. Layout: B, C, H, W; norms
and linear layers work on a permuted view, which needs no copy in the channels_last memory format.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from quadranas.layers.quadratic import QuadraticConv2d, QuadraticLinear
from quadranas.layers.stochastic_depth import StochasticDepth
from quadranas.space.operation import OpSpec

NORM_EPS = 1e-6


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of every pixel."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: (B, C, H, W) to (B, C, H, W)."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class PatchStem(nn.Module):
    """Convolution over patches, then LayerNorm."""

    def __init__(self, spec: OpSpec, layer_scale: float) -> None:
        super().__init__()
        self.conv = nn.Conv2d(spec.in_channels, spec.out_channels, spec.kernel_size, spec.stride)
        self.norm = ChannelNorm(spec.out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: (B, 3, H, W) to (B, C, H/stride, W/stride)."""
        out: Tensor = self.norm(self.conv(x))
        return out


class Downsample(nn.Module):
    """LayerNorm, then convolution over patches."""

    def __init__(self, spec: OpSpec, layer_scale: float) -> None:
        super().__init__()
        self.norm = ChannelNorm(spec.in_channels)
        self.conv = nn.Conv2d(spec.in_channels, spec.out_channels, spec.kernel_size, spec.stride)

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: (B, C, H, W) to (B, C', H/stride, W/stride)."""
        out: Tensor = self.conv(self.norm(x))
        return out


class ResidualBranch(StochasticDepth):
    """Base of the two halves of a QuadraBlock: `x + gamma * f(x)`, with stochastic depth.

    Attributes:
        gamma: the layer scale, one factor per channel.
    """

    def __init__(self, channels: int, layer_scale: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((channels,), layer_scale))

    def _add(self, x: Tensor, scaled: Tensor) -> Tensor:
        return x + self._dropped(scaled)


class QuadraticDepthwise(ResidualBranch):
    """First half of a QuadraBlock: `x + gamma * QuadraDWConv(LayerNorm(x))`.

    The branches are three separate convolutions instead of one with 3C outputs, which measured
    slower in ONNX Runtime, in OpenVINO and in channels_last training with PyTorch on the CPU.
    """

    def __init__(self, spec: OpSpec, layer_scale: float) -> None:
        super().__init__(spec.in_channels, layer_scale)
        self.norm = ChannelNorm(spec.in_channels)
        channels, kernel = spec.in_channels, spec.kernel_size
        self.conv = QuadraticConv2d(
            channels, channels, kernel, padding=kernel // 2, groups=channels, init="torch"
        )

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: (B, C, H, W) to (B, C, H, W)."""
        return self._add(x, self.gamma[:, None, None] * self.conv(self.norm(x)))


class FeedForward(ResidualBranch):
    """Second half of a QuadraBlock: `x + gamma * project(GELU(expand(LayerNorm(x))))`.

    The first `num_quadratic` of the two linear layers are quadratic (QuadraNet, Table V).
    """

    def __init__(self, spec: OpSpec, layer_scale: float) -> None:
        super().__init__(spec.in_channels, layer_scale)
        channels, hidden = spec.in_channels, spec.hidden_channels
        self.norm = nn.LayerNorm(channels, eps=NORM_EPS)
        self.expand = _linear(channels, hidden, quadratic=spec.num_quadratic >= 1)
        self.project = _linear(hidden, channels, quadratic=spec.num_quadratic >= 2)

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: (B, C, H, W) to (B, C, H, W)."""
        pixels = self.norm(x.permute(0, 2, 3, 1))  # (B, H, W, C)
        pixels = self.gamma * self.project(functional.gelu(self.expand(pixels)))
        return self._add(x, pixels.permute(0, 3, 1, 2))  # (B, C, H, W)


def _linear(cin: int, cout: int, *, quadratic: bool) -> nn.Module:
    return QuadraticLinear(cin, cout, init="torch") if quadratic else nn.Linear(cin, cout)


class NormHead(nn.Module):
    """Global average pool, LayerNorm, classifier."""

    def __init__(self, spec: OpSpec, layer_scale: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(spec.in_channels, eps=NORM_EPS)
        self.linear = nn.Linear(spec.in_channels, spec.out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: (B, C, H, W) to (B, num_classes)."""
        out: Tensor = self.linear(self.norm(x.mean((2, 3))))
        return out
