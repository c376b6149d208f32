"""The classifiers whose latencies nn-Meter published, for 224 pixels and 1000 classes.

As they are commonly implemented in PyTorch. Layout: B, C, H, W.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn


class ConvBN(nn.Sequential):
    """Convolution with "same" padding, BatchNorm, and an activation if there is one."""

    def __init__(
        self,
        cin: int,
        cout: int,
        kernel: int = 1,
        stride: int = 1,
        groups: int = 1,
        activation: type[nn.Module] | None = nn.ReLU,
    ) -> None:
        conv = nn.Conv2d(cin, cout, kernel, stride, kernel // 2, groups=groups, bias=False)
        super().__init__(conv, nn.BatchNorm2d(cout), *([activation()] if activation else []))


class Residual(nn.Module):
    """`activation(shortcut(x) + branch(x))`."""

    def __init__(self, branch: nn.Module, shortcut: nn.Module, activation: nn.Module) -> None:
        super().__init__()
        self.branch, self.shortcut, self.activation = branch, shortcut, activation

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: (B, C, H, W) to (B, C', H', W')."""
        out: Tensor = self.activation(self.shortcut(x) + self.branch(x))
        return out


class Branches(nn.ModuleList):
    """Modules on one input, their outputs joined along the channels."""

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: (B, C, H, W) to (B, C', H, W)."""
        return torch.cat([branch(x) for branch in self], 1)


def head(channels: int) -> list[nn.Module]:
    """Global average pool and the linear layer of 1000 classes."""
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 1000)]


def mobilenet_v1() -> nn.Module:
    """Source: Howard et al., arXiv:1704.04861, Table 1."""
    layers: list[nn.Module] = [ConvBN(3, 32, 3, 2)]
    cin = 32
    widths = [64, 128, 128, 256, 256, *([512] * 6), 1024, 1024]
    strides = [1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1]
    for cout, stride in zip(widths, strides, strict=True):
        layers += [ConvBN(cin, cin, 3, stride, groups=cin), ConvBN(cin, cout)]
        cin = cout
    return nn.Sequential(*layers, *head(1024))


def mobilenet_v2() -> nn.Module:
    """Source: Sandler et al., arXiv:1801.04381, Table 2."""
    layers: list[nn.Module] = [ConvBN(3, 32, 3, 2, activation=nn.ReLU6)]
    cin = 32
    stages = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2)]
    for ratio, cout, repeats, first in [*stages, (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]:
        for index in range(repeats):
            stride, hidden = first if index == 0 else 1, cin * ratio
            branch = nn.Sequential(
                *([ConvBN(cin, hidden, activation=nn.ReLU6)] if ratio > 1 else []),
                ConvBN(hidden, hidden, 3, stride, groups=hidden, activation=nn.ReLU6),
                ConvBN(hidden, cout, activation=None),
            )
            has_residual = stride == 1 and cin == cout
            layers.append(
                Residual(branch, nn.Identity(), nn.Identity()) if has_residual else branch
            )
            cin = cout
    layers.append(ConvBN(320, 1280, activation=nn.ReLU6))
    return nn.Sequential(*layers, *head(1280))


def resnet(depths: tuple[int, ...], expansion: int, base: int = 64) -> nn.Module:
    """Blocks of two layers, or bottlenecks of three if they expand. Source: arXiv:1512.03385.

    Args:
        depths: number of blocks per stage.
        expansion: output channels of a block per channel inside.
        base: channels inside the first stage.
    """
    layers: list[nn.Module] = [ConvBN(3, 64, 7, 2), nn.MaxPool2d(3, 2, 1)]
    cin = 64
    for stage, depth in enumerate(depths):
        width = base * 2**stage
        for index in range(depth):
            stride, cout = 2 if stage and not index else 1, width * expansion
            convs = [ConvBN(cin, width, 3, stride), ConvBN(width, cout, 3, activation=None)]
            if expansion > 1:  # the stride in the 3x3 convolution, as in torchvision
                convs = [ConvBN(cin, width), ConvBN(width, width, 3, stride)]
                convs.append(ConvBN(width, cout, activation=None))
            fits = stride == 1 and cin == cout
            shortcut = nn.Identity() if fits else ConvBN(cin, cout, 1, stride, activation=None)
            layers.append(Residual(nn.Sequential(*convs), shortcut, nn.ReLU()))
            cin = cout
    return nn.Sequential(*layers, *head(cin))


def resnet18() -> nn.Module:
    """Source: He et al., arXiv:1512.03385, Table 1."""
    return resnet((2, 2, 2, 2), expansion=1)


def resnet50() -> nn.Module:
    """Source: He et al., arXiv:1512.03385, Table 1."""
    return resnet((3, 4, 6, 3), expansion=4)


def conv_relu(cin: int, cout: int, kernel: int, stride: int = 1, padding: int = 0) -> nn.Module:
    """Convolution with a bias, and ReLU."""
    return nn.Sequential(nn.Conv2d(cin, cout, kernel, stride, padding), nn.ReLU())


def squeezenet() -> nn.Module:
    """Version 1.0. Source: Iandola et al., arXiv:1602.07360, Table 1."""

    def fire(cin: int, squeezed: int, expanded: int) -> nn.Module:
        expand = [conv_relu(squeezed, expanded, 1), conv_relu(squeezed, expanded, 3, 1, 1)]
        return nn.Sequential(conv_relu(cin, squeezed, 1), Branches(expand))

    def pool() -> nn.Module:
        return nn.MaxPool2d(3, 2, ceil_mode=True)

    first = [conv_relu(3, 96, 7, 2), pool(), fire(96, 16, 64), fire(128, 16, 64)]
    middle = [fire(256, 32, 128), fire(256, 48, 192), fire(384, 48, 192), fire(384, 64, 256)]
    return nn.Sequential(
        *[*first, fire(128, 32, 128), pool(), *middle, pool(), fire(512, 64, 256)],
        *[nn.Dropout(), conv_relu(512, 1000, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()],
    )


def googlenet() -> nn.Module:
    """With BatchNorm, 3x3 for the 5x5 convolutions, no auxiliary heads, as in torchvision.

    Source: Szegedy et al., arXiv:1409.4842, Table 1.
    """

    def inception(cin: int, c1: int, r3: int, c3: int, r5: int, c5: int, cp: int) -> nn.Module:
        pooled = nn.Sequential(nn.MaxPool2d(3, 1, 1, ceil_mode=True), ConvBN(cin, cp))
        threes = nn.Sequential(ConvBN(cin, r3), ConvBN(r3, c3, 3))
        fives = nn.Sequential(ConvBN(cin, r5), ConvBN(r5, c5, 3))
        return Branches([ConvBN(cin, c1), threes, fives, pooled])

    def pool(size: int = 3) -> nn.Module:
        return nn.MaxPool2d(size, 2, ceil_mode=True)

    return nn.Sequential(
        *[ConvBN(3, 64, 7, 2), pool(), ConvBN(64, 64), ConvBN(64, 192, 3), pool()],
        *[inception(192, 64, 96, 128, 16, 32, 32), inception(256, 128, 128, 192, 32, 96, 64)],
        *[pool(), inception(480, 192, 96, 208, 16, 48, 64)],
        *[inception(512, 160, 112, 224, 24, 64, 64), inception(512, 128, 128, 256, 24, 64, 64)],
        *[inception(512, 112, 144, 288, 32, 64, 64), inception(528, 256, 160, 320, 32, 128, 128)],
        *[pool(2), inception(832, 256, 160, 320, 32, 128, 128)],
        *[inception(832, 384, 192, 384, 48, 128, 128), nn.Dropout(0.2), *head(1024)],
    )


def classifier(features: int) -> list[nn.Module]:
    """Three linear layers with dropout, as in AlexNet and VGG."""
    first = [nn.Linear(features, 4096), nn.ReLU(), nn.Dropout()]
    return [nn.Flatten(), *first, nn.Linear(4096, 4096), nn.ReLU(), nn.Linear(4096, 1000)]


def alexnet() -> nn.Module:
    """The variant on one GPU. Source: Krizhevsky, arXiv:1404.5997, Sec. 5."""
    return nn.Sequential(
        *[conv_relu(3, 64, 11, 4, 2), nn.MaxPool2d(3, 2)],
        *[conv_relu(64, 192, 5, 1, 2), nn.MaxPool2d(3, 2), conv_relu(192, 384, 3, 1, 1)],
        *[conv_relu(384, 256, 3, 1, 1), conv_relu(256, 256, 3, 1, 1), nn.MaxPool2d(3, 2)],
        *classifier(256 * 6 * 6),
    )


def vgg(depths: tuple[int, ...]) -> nn.Module:
    """A VGG whose stages have these depths. Source: Simonyan, arXiv:1409.1556, Table 1."""
    layers: list[nn.Module] = []
    cin = 3
    for cout, repeats in zip((64, 128, 256, 512, 512), depths, strict=True):
        for _ in range(repeats):
            layers.append(conv_relu(cin, cout, 3, 1, 1))
            cin = cout
        layers.append(nn.MaxPool2d(2, 2))
    return nn.Sequential(*layers, *classifier(512 * 7 * 7))


def vgg16() -> nn.Module:
    """Column D of the table."""
    return vgg((2, 2, 3, 3, 3))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "MobileNetV1": mobilenet_v1,
    "MobileNetV2": mobilenet_v2,
    "ResNet-18": resnet18,
    "ResNet-50": resnet50,
    "SqueezeNet": squeezenet,
    "GoogLeNet": googlenet,
    "AlexNet": alexnet,
    "VGG-16": vgg16,
}
