"""The operation of ConvNeXt networks whose depthwise convolution may become quadratic.

Sources: ConvNeXt, Liu et al., CVPR 2022 (arXiv:2201.03545), Fig. 4, the block; QuadraNet, Xu et
al., ASP-DAC 2024 (arXiv:2311.17956), the quadratic depthwise convolution. Layout: B, C, H, W.
"""

from torch import Tensor, nn
from torch.nn import functional

from quadranas.layers.quadranet import NORM_EPS, ResidualBranch
from quadranas.layers.quadratic import QuadraticConv2d
from quadranas.space.operation import OpSpec


class QuadraticConvNeXt(ResidualBranch):
    """`x + gamma * project(GELU(expand(LayerNorm(QuadraDWConv(x)))))`: ConvNeXt's only branch.

    With a second-order term of zero it is ConvNeXt's block.
    """

    def __init__(self, spec: OpSpec, layer_scale: float) -> None:
        super().__init__(spec.in_channels, layer_scale)
        channels, kernel, hidden = spec.in_channels, spec.kernel_size, spec.hidden_channels
        self.conv = QuadraticConv2d(
            channels, channels, kernel, padding=kernel // 2, groups=channels, init="torch"
        )
        self.norm = nn.LayerNorm(channels, eps=NORM_EPS)
        self.expand, self.project = nn.Linear(channels, hidden), nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: (B, C, H, W) to (B, C, H, W)."""
        pixels = self.norm(self.conv(x).permute(0, 2, 3, 1))  # (B, H, W, C)
        pixels = self.gamma * self.project(functional.gelu(self.expand(pixels)))
        return self._add(x, pixels.permute(0, 3, 1, 2))  # (B, C, H, W)
