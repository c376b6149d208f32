"""The operations of ProxylessNAS networks: convolution, inverted bottleneck, head.

Sources: ProxylessNAS, Cai et al., ICLR 2019 (arXiv:1812.00332), Sec. 4; blocks of MobileNetV2,
Sandler et al., CVPR 2018 (arXiv:1801.04381); QuadraNet, Xu et al., ASP-DAC 2024
(arXiv:2311.17956), the quadratic depthwise convolution. Layout: B, C, H, W.
"""

from torch import Tensor, nn

from quadranas.layers.quadratic import QuadraticConv2d
from quadranas.layers.stochastic_depth import StochasticDepth
from quadranas.space.cost import has_residual
from quadranas.space.operation import OpSpec


def _conv(cin: int, cout: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(cin, cout, kernel, stride, kernel // 2, groups=groups, bias=False)


class ConvBN(nn.Sequential):
    """Convolution, BatchNorm, ReLU6."""

    def __init__(self, spec: OpSpec, layer_scale: float) -> None:
        conv = _conv(spec.in_channels, spec.out_channels, spec.kernel_size, spec.stride)
        super().__init__(conv, nn.BatchNorm2d(spec.out_channels), nn.ReLU6())


def depthwise_index(spec: OpSpec) -> int:
    """The index of the depthwise convolution among the layers of an inverted bottleneck."""
    return 0 if spec.expand_ratio == 1 else 3


class InvertedBottleneck(StochasticDepth):
    """1x1 expand, depthwise KxK, 1x1 project, each with BatchNorm; residual if shapes agree.

    Args:
        depthwise: the layer between the 1x1 convolutions, without a bias.
    """

    def __init__(self, spec: OpSpec, depthwise: nn.Module) -> None:
        super().__init__()
        cin, cout, hidden = spec.in_channels, spec.out_channels, spec.hidden_channels
        layers: list[nn.Module] = []
        if spec.expand_ratio != 1:
            layers += [_conv(cin, hidden, 1), nn.BatchNorm2d(hidden), nn.ReLU6()]
        layers += [
            depthwise,
            nn.BatchNorm2d(hidden),
            nn.ReLU6(),
            _conv(hidden, cout, 1),
            nn.BatchNorm2d(cout),
        ]
        self.layers = nn.Sequential(*layers)
        self.residual = has_residual(spec)

    @property
    def has_branch(self) -> bool:
        """Whether the bottleneck has a residual."""
        return self.residual

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: (B, C, H, W) to (B, C', H/stride, W/stride)."""
        out: Tensor = self.layers(x)
        return x + self._dropped(out) if self.residual else out


class MBConv(InvertedBottleneck):
    """The inverted bottleneck of MobileNetV2."""

    def __init__(self, spec: OpSpec, layer_scale: float) -> None:
        hidden = spec.hidden_channels
        super().__init__(spec, _conv(hidden, hidden, spec.kernel_size, spec.stride, groups=hidden))


class QuadraticMBConv(InvertedBottleneck):
    """An inverted bottleneck whose depthwise convolution is quadratic, before its BatchNorm.

    With a second-order term of zero it is `MBConv`.
    """

    def __init__(self, spec: OpSpec, layer_scale: float) -> None:
        hidden, kernel = spec.hidden_channels, spec.kernel_size
        sizes = (hidden, hidden, kernel, spec.stride, kernel // 2)
        conv = QuadraticConv2d(*sizes, groups=hidden, bias=False, init="torch")
        super().__init__(spec, conv)


class LinearHead(nn.Module):
    """Global average pool, classifier."""

    def __init__(self, spec: OpSpec, layer_scale: float) -> None:
        super().__init__()
        self.linear = nn.Linear(spec.in_channels, spec.out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: (B, C, H, W) to (B, num_classes)."""
        out: Tensor = self.linear(x.mean((2, 3)))
        return out
