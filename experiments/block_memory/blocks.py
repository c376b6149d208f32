"""The blocks of the comparison, each a residual token mixer and a residual feed-forward part.

Layout: B, C, H, W in channels_last. All have an expansion of 4 and, where they are depthwise, 7x7
kernels.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from quadranas.layers.quadranet import ChannelNorm, FeedForward, QuadraticDepthwise, ResidualBranch
from quadranas.network.skeleton import Network
from quadranas.space.operation import OpSpec

KERNEL, WINDOW, EXPANSION, HEAD_CHANNELS = 7, 7, 4, 32
GATING_ORDERS = {64: 2, 128: 3}
"""Orders of HorNet-T's gated convolutions by width (HorNet, Sec. 3.2)."""

PAPER_MB = {
    "skip": (5515, 12027),
    "depthwise": (7364, 15711),
    "swin": (12674, 23472),
    "hornet": (10724, 20715),
    "quadra_direct": (8108, 17191),
    "quadra": (7794, 16730),
}
"""Table II of QuadraNet, Xu et al., ASP-DAC 2024, training memory at 64 and 128 channels."""


class Mixing(ResidualBranch):
    """`x + gamma * mixer(LayerNorm(x))`."""

    def __init__(self, channels: int, mixer: nn.Module) -> None:
        super().__init__(channels, layer_scale=1.0)
        self.norm, self.mixer = ChannelNorm(channels), mixer

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: (B, C, H, W) to (B, C, H, W)."""
        return self._add(x, self.gamma[:, None, None] * self.mixer(self.norm(x)))


def depthwise(channels: int) -> nn.Conv2d:
    """A depthwise convolution that keeps the size."""
    return nn.Conv2d(channels, channels, KERNEL, padding=KERNEL // 2, groups=channels)


class GatedConvolution(nn.Module):
    """Recursive gated convolution.

    Source: HorNet, Rao et al., NeurIPS 2022 (arXiv:2207.14284), Sec. 3.1, Eqs. (3.3) to (3.5).
    """

    def __init__(self, channels: int, order: int) -> None:
        super().__init__()
        self.widths = [channels // 2 ** (order - 1 - k) for k in range(order)]
        self.project_in = nn.Conv2d(channels, 2 * channels, 1)
        self.depthwise = depthwise(sum(self.widths))
        pairs = zip(self.widths, self.widths[1:], strict=False)
        self.widen = nn.ModuleList(nn.Conv2d(cin, cout, 1) for cin, cout in pairs)
        self.project_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: (B, C, H, W) to (B, C, H, W)."""
        first, rest = self.project_in(x).split((self.widths[0], sum(self.widths)), dim=1)
        gates = self.depthwise(rest).split(self.widths, dim=1)
        x = first * gates[0]
        for widen, gate in zip(self.widen, gates[1:], strict=True):
            x = widen(x) * gate
        out: Tensor = self.project_out(x)
        return out


class WindowAttention(nn.Module):
    """Attention inside shifted windows, with a bias by relative position.

    Source: Swin Transformer, Liu et al., ICCV 2021 (arXiv:2103.14030), Sec. 3.2, Eq. (4), in the
    plain form of its time, with the attention weights as a tensor.
    """

    mask: Tensor
    relative: Tensor

    def __init__(self, channels: int, resolution: int, shift: int) -> None:
        super().__init__()
        self.heads, self.resolution, self.shift = channels // HEAD_CHANNELS, resolution, shift
        self.qkv, self.project = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
        self.bias = nn.Parameter(torch.zeros((2 * WINDOW - 1) ** 2, self.heads))
        place = torch.cartesian_prod(torch.arange(WINDOW), torch.arange(WINDOW))
        offset = place[:, None] - place[None] + WINDOW - 1  # (49, 49, 2)
        self.register_buffer("relative", offset[..., 0] * (2 * WINDOW - 1) + offset[..., 1])
        self.register_buffer("mask", self._mask())

    def _mask(self) -> Tensor:
        """Minus 100 between pixels that only the cyclic shift has brought together."""
        last = torch.arange(self.resolution)
        zone = (last >= self.resolution - WINDOW).long() + (last >= self.resolution - self.shift)
        zones = self._windows((3 * zone[:, None] + zone)[None, :, :, None])[..., 0]
        return -100.0 * (zones[:, None] != zones[:, :, None])[:, None]  # (windows, 1, 49, 49)

    def _windows(self, x: Tensor) -> Tensor:
        side = self.resolution // WINDOW
        split = x.reshape(x.shape[0], side, WINDOW, side, WINDOW, x.shape[-1])
        return split.transpose(2, 3).reshape(-1, WINDOW**2, x.shape[-1])

    def _merged(self, windows: Tensor, batch: int) -> Tensor:
        side = self.resolution // WINDOW
        split = windows.reshape(batch, side, side, WINDOW, WINDOW, windows.shape[-1])
        return split.transpose(2, 3).reshape(batch, self.resolution, self.resolution, -1)

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: (B, H, W, C) to (B, H, W, C)."""
        windows = self._windows(x.roll((-self.shift, -self.shift), (1, 2)))  # (B windows, 49, C)
        qkv = self.qkv(windows).unflatten(2, (3, self.heads, HEAD_CHANNELS))
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # (B windows, heads, 49, 32)
        scores = query * HEAD_CHANNELS**-0.5 @ key.transpose(2, 3)
        scores = scores + self.bias[self.relative].permute(2, 0, 1)
        scores = (scores.unflatten(0, (x.shape[0], -1)) + self.mask).flatten(0, 1)
        mixed = (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)
        return self._merged(self.project(mixed), x.shape[0]).roll((self.shift,) * 2, (1, 2))


class SwinBlock(nn.Module):
    """`x + attention(LayerNorm(x))`, then `x + MLP(LayerNorm(x))`; no layer scale."""

    def __init__(self, channels: int, resolution: int, shift: int = WINDOW // 2) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.attention = WindowAttention(channels, resolution, shift)
        self.expand = nn.Linear(channels, EXPANSION * channels)
        self.project = nn.Linear(EXPANSION * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: (B, C, H, W) to (B, C, H, W)."""
        pixels = x.permute(0, 2, 3, 1)
        pixels = pixels + self.attention(self.norm1(pixels))
        pixels = pixels + self.project(functional.gelu(self.expand(self.norm2(pixels))))
        return pixels.permute(0, 3, 1, 2)


def build_blocks(channels: int, resolution: int) -> dict[str, Network]:
    """The blocks of Table II of QuadraNet (Xu et al., ASP-DAC 2024)."""

    def quadratic(memory_efficient: bool) -> nn.Module:
        spec = OpSpec(
            kind="quadratic_depthwise",
            in_channels=channels,
            out_channels=channels,
            resolution=resolution,
            kernel_size=KERNEL,
        )
        part = QuadraticDepthwise(spec, layer_scale=1.0)
        part.conv.memory_efficient = memory_efficient
        return part

    mixers = {
        "skip": Mixing(channels, nn.Identity()),
        "depthwise": Mixing(channels, depthwise(channels)),
        "hornet": Mixing(channels, GatedConvolution(channels, GATING_ORDERS[channels])),
        "quadra_direct": quadratic(memory_efficient=False),
        "quadra": quadratic(memory_efficient=True),
    }
    spec = OpSpec(
        kind="feed_forward",
        in_channels=channels,
        out_channels=channels,
        resolution=resolution,
        expand_ratio=EXPANSION,
    )
    blocks = {
        name: Network({"mixer": mixer, "feed_forward": FeedForward(spec, layer_scale=1.0)})
        for name, mixer in mixers.items()
    }
    return blocks | {"swin": Network({"block": SwinBlock(channels, resolution)})}
