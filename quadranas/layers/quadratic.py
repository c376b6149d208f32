"""Quadratic layers: `y = a(x) * b(x) + c(x)` with first-order operators a, b, c.

Source: QuadraLib, Xu et al., MLSys 2022 (arXiv:2204.01701) and QuadraNet, Xu et al., ASP-DAC 2024
(arXiv:2311.17956), Sec. III: the rank-1 factorisation of a quadratic neuron. Layout: B, C, H, W.
"""

import torch
from torch import Tensor, nn


class QuadraticDepthwiseConv2d(nn.Module):
    """Three depthwise KxK convolutions with bias, "same" padding, joined to a quadratic form.

    Three separate convolutions, not one of 3C outputs: measured faster in ONNX Runtime, OpenVINO
    and, in channels_last, in PyTorch's CPU training.
    """

    def __init__(self, channels: int, kernel_size: int) -> None:
        super().__init__()
        self.a, self.b, self.c = (
            nn.Conv2d(channels, channels, kernel_size, padding=kernel_size // 2, groups=channels)
            for _ in range(3)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: (B, C, H, W) to (B, C, H, W)."""
        return torch.addcmul(self.c(x), self.a(x), self.b(x))


class QuadraticLinear(nn.Module):
    """Three linear layers with bias on the last axis, joined to a quadratic form."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(in_features, out_features) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: (..., in_features) to (..., out_features)."""
        return torch.addcmul(self.c(x), self.a(x), self.b(x))
