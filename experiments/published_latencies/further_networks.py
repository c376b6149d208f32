"""More classifiers whose latencies were published, for `fit.py`; see `networks.py`.

As they are commonly implemented in PyTorch. Layout: B, C, H, W.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor, nn

from experiments.published_latencies import networks
from experiments.published_latencies.networks import (
    Branches,
    ConvBN,
    Residual,
    conv_relu,
    head,
    resnet,
    vgg,
)


class SqueezeExcite(nn.Module):
    """`x * gate(W2 relu(W1 mean(x)))`. Source: Hu et al., arXiv:1709.01507, Eq. (3)."""

    def __init__(self, channels: int, squeezed: int, gate: type[nn.Module]) -> None:
        super().__init__()
        self.squeeze = nn.Sequential(
            *[nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, squeezed, 1), nn.ReLU()],
            *[nn.Conv2d(squeezed, channels, 1), gate()],
        )

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: (B, C, H, W) to the same."""
        out: Tensor = x * self.squeeze(x)
        return out


@dataclass(frozen=True, kw_only=True)
class Bottleneck:
    """An inverted bottleneck, with squeeze and excitation before the projection if wanted.

    Args:
        hidden, cout: channels inside, and of the output.
        squeezed: channels of the squeeze; 0 for none.
    """

    kernel: int
    hidden: int
    cout: int
    stride: int = 1
    squeezed: int = 0
    activation: type[nn.Module] = nn.ReLU6
    gate: type[nn.Module] = nn.Hardsigmoid

    def build(self, cin: int) -> nn.Module:
        """The block for a number of input channels."""
        expand = [ConvBN(cin, self.hidden, activation=self.activation)]
        shape = (self.hidden, self.hidden, self.kernel, self.stride, self.hidden)
        branch = nn.Sequential(
            *(expand if self.hidden != cin else []),
            ConvBN(*shape, activation=self.activation),
            *([SqueezeExcite(self.hidden, self.squeezed, self.gate)] if self.squeezed else []),
            ConvBN(self.hidden, self.cout, activation=None),
        )
        if self.stride == 1 and cin == self.cout:
            return Residual(branch, nn.Identity(), nn.Identity())
        return branch


def _mobile(
    stem: int,
    blocks: Sequence[Bottleneck],
    last: Sequence[nn.Module],
    activation: type[nn.Module] = nn.ReLU6,
) -> nn.Module:
    layers: list[nn.Module] = [ConvBN(3, stem, 3, 2, activation=activation)]
    cin = stem
    for block in blocks:
        layers.append(block.build(cin))
        cin = block.cout
    return nn.Sequential(*layers, *last)


def _stages(
    cin: int, stages: Sequence[tuple[int, int, int, int, int]], **options: type[nn.Module]
) -> list[Bottleneck]:
    """Blocks of stages of kernel size, expansion, width, repetitions and stride."""
    blocks = []
    for kernel, ratio, cout, repeats, first in stages:
        for index in range(repeats):
            block = Bottleneck(
                kernel=kernel,
                hidden=cin * ratio,
                cout=cout,
                stride=first if index == 0 else 1,
                squeezed=cin // 4 if options else 0,  # EfficientNet's share of the input
                **options,
            )
            blocks.append(block)
            cin = cout
    return blocks


def mnasnet() -> nn.Module:
    """Version B1, without squeeze and excitation. Source: Tan et al., arXiv:1807.11626, Fig. 7."""
    stages = [(3, 1, 16, 1, 1), (3, 3, 24, 3, 2), (5, 3, 40, 3, 2), (5, 6, 80, 3, 2)]
    stages += [(3, 6, 96, 2, 1), (5, 6, 192, 4, 2), (3, 6, 320, 1, 1)]
    return _mobile(32, _stages(32, stages), [ConvBN(320, 1280), *head(1280)])


def efficientnet_b0() -> nn.Module:
    """Source: Tan and Le, arXiv:1905.11946, Table 1."""
    stages = [(3, 1, 16, 1, 1), (3, 6, 24, 2, 2), (5, 6, 40, 2, 2), (3, 6, 80, 3, 2)]
    stages += [(5, 6, 112, 3, 1), (5, 6, 192, 4, 2), (3, 6, 320, 1, 1)]
    blocks = _stages(32, stages, activation=nn.SiLU, gate=nn.Sigmoid)
    last = [ConvBN(320, 1280, activation=nn.SiLU), *head(1280)]
    return _mobile(32, blocks, last, nn.SiLU)


def proxyless_mobile() -> nn.Module:
    """Source: Cai et al., arXiv:1812.00332, Fig. 4; the file that its authors published."""
    # Kernel size, hidden and output channels, stride
    rows = [(3, 32, 16, 1), (5, 48, 32, 2), (3, 96, 32, 1)]
    rows += [(7, 96, 40, 2), (3, 120, 40, 1), (5, 120, 40, 1), (5, 120, 40, 1)]
    rows += [(7, 240, 80, 2), *[(5, 240, 80, 1)] * 3]
    rows += [(5, 480, 96, 1), *[(5, 288, 96, 1)] * 3]
    rows += [(7, 576, 192, 2), (7, 1152, 192, 1), (7, 576, 192, 1), (7, 576, 192, 1)]
    rows += [(7, 1152, 320, 1)]
    blocks = [Bottleneck(kernel=k, hidden=h, cout=c, stride=s) for k, h, c, s in rows]
    return _mobile(32, blocks, [ConvBN(320, 1280, activation=nn.ReLU6), *head(1280)])


def _mobilenet_v3(rows: Sequence[tuple[int, int, int, int, int, bool]], wide: int) -> nn.Module:
    """From kernel size, hidden, squeezed and output channels, stride, and hard swish or ReLU."""
    blocks = [
        Bottleneck(
            kernel=kernel,
            hidden=hidden,
            squeezed=squeezed,
            cout=cout,
            stride=stride,
            activation=nn.Hardswish if is_hard else nn.ReLU,
        )
        for kernel, hidden, squeezed, cout, stride, is_hard in rows
    ]
    cout = 6 * blocks[-1].cout
    last: list[nn.Module] = [ConvBN(blocks[-1].cout, cout, activation=nn.Hardswish)]
    last += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(cout, wide), nn.Hardswish()]
    return _mobile(16, blocks, [*last, nn.Linear(wide, 1000)], nn.Hardswish)


def mobilenet_v3_large() -> nn.Module:
    """Source: Howard et al., arXiv:1905.02244, Table 1."""
    rows = [(3, 16, 0, 16, 1, False), (3, 64, 0, 24, 2, False), (3, 72, 0, 24, 1, False)]
    rows += [(5, 72, 24, 40, 2, False), *[(5, 120, 32, 40, 1, False)] * 2]
    rows += [(3, 240, 0, 80, 2, True), (3, 200, 0, 80, 1, True), *[(3, 184, 0, 80, 1, True)] * 2]
    rows += [(3, 480, 120, 112, 1, True), (3, 672, 168, 112, 1, True)]
    rows += [(5, 672, 168, 160, 2, True), *[(5, 960, 240, 160, 1, True)] * 2]
    return _mobilenet_v3(rows, 1280)


def mobilenet_v3_small() -> nn.Module:
    """Source: Howard et al., arXiv:1905.02244, Table 2."""
    rows = [(3, 16, 8, 16, 2, False), (3, 72, 0, 24, 2, False), (3, 88, 0, 24, 1, False)]
    rows += [(5, 96, 24, 40, 2, True), *[(5, 240, 64, 40, 1, True)] * 2]
    rows += [(5, 120, 32, 48, 1, True), (5, 144, 40, 48, 1, True), (5, 288, 72, 96, 2, True)]
    return _mobilenet_v3([*rows, *[(5, 576, 144, 96, 1, True)] * 2], 1024)


class Shuffle(nn.Module):
    """Interleave two groups of channels. Source: Ma et al., arXiv:1807.11164, Sec. 3."""

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: (B, C, H, W) to the same."""
        batch, channels, height, width = x.shape
        groups = x.view(batch, 2, channels // 2, height, width)
        return groups.transpose(1, 2).reshape(batch, channels, height, width)


class HalfBranch(nn.Module):
    """One half of the channels passes a branch, the other none."""

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: (B, C, H, W) to the same."""
        kept, changed = x.chunk(2, dim=1)
        return torch.cat([kept, self.branch(changed)], 1)


def shufflenet_v2() -> nn.Module:
    """Width 1.0. Source: Ma et al., arXiv:1807.11164, Table 5."""

    def branch(cin: int, cout: int, stride: int) -> nn.Module:
        depthwise = ConvBN(cout, cout, 3, stride, groups=cout, activation=None)
        return nn.Sequential(ConvBN(cin, cout), depthwise, ConvBN(cout, cout))

    layers: list[nn.Module] = [ConvBN(3, 24, 3, 2), nn.MaxPool2d(3, 2, 1)]
    cin = 24
    for cout, repeats in ((116, 4), (232, 8), (464, 4)):
        half = cout // 2
        depthwise = ConvBN(cin, cin, 3, 2, groups=cin, activation=None)
        shortcut = nn.Sequential(depthwise, ConvBN(cin, half))
        layers += [Branches([shortcut, branch(cin, half, 2)]), Shuffle()]
        for _ in range(repeats - 1):
            layers += [HalfBranch(branch(half, half, 1)), Shuffle()]
        cin = cout
    return nn.Sequential(*layers, ConvBN(464, 1024), *head(1024))


def squeezenet_1_1() -> nn.Module:
    """Version 1.1, for 227 pixels. Source: SqueezeNet_v1.1 in its authors' repository."""

    def fire(cin: int, squeezed: int) -> nn.Module:
        cout = 4 * squeezed
        expand = [conv_relu(squeezed, cout, 1), conv_relu(squeezed, cout, 3, 1, 1)]
        return nn.Sequential(conv_relu(cin, squeezed, 1), Branches(expand))

    def pool() -> nn.Module:
        return nn.MaxPool2d(3, 2, ceil_mode=True)

    first = [conv_relu(3, 64, 3, 2), pool(), fire(64, 16), fire(128, 16), pool()]
    middle = [fire(128, 32), fire(256, 32), pool(), fire(256, 48), fire(384, 48)]
    last = [fire(384, 64), fire(512, 64), conv_relu(512, 1000, 1)]
    return nn.Sequential(*first, *middle, *last, nn.AdaptiveAvgPool2d(1), nn.Flatten())


class Dense(nn.Module):
    """A layer whose output joins its input. Source: Huang et al., arXiv:1608.06993, Sec. 3."""

    def __init__(self, cin: int, growth: int) -> None:
        super().__init__()
        self.layer = nn.Sequential(
            *[nn.BatchNorm2d(cin), nn.ReLU(), ConvBN(cin, 4 * growth)],
            nn.Conv2d(4 * growth, growth, 3, 1, 1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: (B, C, H, W) to (B, C', H, W)."""
        return torch.cat([x, self.layer(x)], 1)


def densenet(growth: int, depths: Sequence[int]) -> nn.Module:
    """Source: Huang et al., arXiv:1608.06993, Table 1."""
    cin = 2 * growth
    layers: list[nn.Module] = [ConvBN(3, cin, 7, 2), nn.MaxPool2d(3, 2, 1)]
    for index, depth in enumerate(depths):
        for _ in range(depth):
            layers.append(Dense(cin, growth))
            cin += growth
        layers += [nn.BatchNorm2d(cin), nn.ReLU()]
        if index < len(depths) - 1:
            layers += [nn.Conv2d(cin, cin // 2, 1, bias=False), nn.AvgPool2d(2)]
            cin //= 2
    return nn.Sequential(*layers, *head(cin))


# Output channels, and the side or sides of the kernel
Row: TypeAlias = tuple[int, int | tuple[int, int]]


class ConvValid(nn.Sequential):
    """Convolution, BatchNorm and ReLU with a kernel of any shape."""

    def __init__(
        self, cin: int, cout: int, kernel: int | tuple[int, int] = 1, stride: int = 1
    ) -> None:
        sides = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (sides[0] // 2, sides[1] // 2) if stride == 1 else 0
        conv = nn.Conv2d(cin, cout, sides, stride, padding, bias=False)
        super().__init__(conv, nn.BatchNorm2d(cout), nn.ReLU())


def inception_v3() -> nn.Module:
    """For 299 pixels, without auxiliary head. Source: arXiv:1512.00567, Table 1."""

    def chain(cin: int, *rows: Row) -> nn.Module:
        layers = []
        for cout, kernel in rows:
            layers.append(ConvValid(cin, cout, kernel))
            cin = cout
        return nn.Sequential(*layers)

    def small(cin: int, pooled: int) -> nn.Module:
        pool = nn.Sequential(nn.AvgPool2d(3, 1, 1), ConvValid(cin, pooled))
        others = [chain(cin, (64, 1)), chain(cin, (48, 1), (64, 5))]
        return Branches([*others, chain(cin, (64, 1), (96, 3), (96, 3)), pool])

    def middle(narrow: int) -> nn.Module:
        row, column = (1, 7), (7, 1)
        long: list[Row] = [
            (narrow, 1),
            (narrow, column),
            (narrow, row),
            (narrow, column),
            (192, row),
        ]
        pool = nn.Sequential(nn.AvgPool2d(3, 1, 1), ConvValid(768, 192))
        short = chain(768, (narrow, 1), (narrow, row), (192, column))
        return Branches([chain(768, (192, 1)), short, chain(768, *long), pool])

    def wide(cin: int) -> nn.Module:
        def split(channels: int) -> nn.Module:
            sides = [(1, 3), (3, 1)]
            return Branches([ConvValid(channels, 384, side) for side in sides])

        pool = nn.Sequential(nn.AvgPool2d(3, 1, 1), ConvValid(cin, 192))
        deep = nn.Sequential(chain(cin, (448, 1), (384, 3)), split(384))
        flat = nn.Sequential(ConvValid(cin, 384), split(384))
        return Branches([ConvValid(cin, 320), flat, deep, pool])

    stem: list[nn.Module] = [
        ConvValid(3, 32, 3, 2),
        nn.Sequential(nn.Conv2d(32, 32, 3, bias=False)),
    ]
    stem += [nn.BatchNorm2d(32), nn.ReLU(), ConvValid(32, 64, 3), nn.MaxPool2d(3, 2)]
    stem += [ConvValid(64, 80), nn.Conv2d(80, 192, 3, bias=False), nn.BatchNorm2d(192)]
    stem += [nn.ReLU(), nn.MaxPool2d(3, 2)]
    deep = nn.Sequential(chain(288, (64, 1), (96, 3)), ConvValid(96, 96, 3, 2))
    reduce_35 = Branches([ConvValid(288, 384, 3, 2), deep, nn.MaxPool2d(3, 2)])
    left = nn.Sequential(ConvValid(768, 192), ConvValid(192, 320, 3, 2))
    right = nn.Sequential(
        chain(768, (192, 1), (192, (1, 7)), (192, (7, 1))), ConvValid(192, 192, 3, 2)
    )
    reduce_17 = Branches([left, right, nn.MaxPool2d(3, 2)])
    blocks = [small(192, 32), small(256, 64), small(288, 64), reduce_35]
    blocks += [middle(narrow) for narrow in (128, 160, 160, 192)]
    return nn.Sequential(*stem, *blocks, reduce_17, wide(1280), wide(2048), *head(2048))


class Cell(nn.Module):
    """A cell of NAS-Bench-201: four nodes, each the sum of an operation on every node before it.

    Source: Dong and Yang, arXiv:2001.00326, Sec. 2.1.

    Args:
        code: the operations on the edges 0-1, 0-2, 1-2, 0-3, 1-3 and 2-3: 0 none, 1 identity,
            2 average pool, 3 and 4 convolutions of 1 x 1 and 3 x 3.
    """

    def __init__(self, code: str, channels: int) -> None:
        super().__init__()
        kernels = {"3": 1, "4": 3}
        edges: list[nn.Module] = []
        for digit in code:
            if digit in kernels:
                conv = ConvBN(channels, channels, kernels[digit], activation=None)
                edges.append(nn.Sequential(nn.ReLU(), conv))
            else:
                edges.append(nn.AvgPool2d(3, 1, 1) if digit == "2" else nn.Identity())
        self.edges = nn.ModuleList(edges)
        self.is_kept = [digit != "0" for digit in code]

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: (B, C, H, W) to the same."""
        nodes, index = [x], 0
        for _ in range(3):
            terms = []
            for node in nodes:
                if self.is_kept[index]:
                    terms.append(self.edges[index](node))
                index += 1
            total = terms[0] if terms else x * 0.0  # the benchmark computes with zeros
            for term in terms[1:]:
                total = total + term
            nodes.append(total)
        return nodes[-1]


def nas_bench_201(code: str) -> nn.Module:
    """A network for 32 pixels and 10 classes. Source: arXiv:2001.00326, Sec. 2.1; `Cell`."""
    layers: list[nn.Module] = [ConvBN(3, 16, 3, activation=None)]
    for stage, channels in enumerate((16, 32, 64)):
        if stage:
            cin = channels // 2
            convs = [ConvBN(cin, channels, 3, 2), ConvBN(channels, channels, 3, activation=None)]
            shortcut = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(cin, channels, 1, bias=False))
            layers.append(Residual(nn.Sequential(nn.ReLU(), *convs), shortcut, nn.Identity()))
        layers += [Cell(code, channels) for _ in range(5)]
    last = [nn.BatchNorm2d(64), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, *last, nn.Linear(64, 10))


NETWORKS: dict[str, Callable[[], nn.Module]] = networks.NETWORKS | {
    "MobileNetV3-Large": mobilenet_v3_large,
    "MobileNetV3-Small": mobilenet_v3_small,
    "MnasNet-B1": mnasnet,
    "ProxylessNAS-Mobile": proxyless_mobile,
    "EfficientNet-B0": efficientnet_b0,
    "ShuffleNetV2": shufflenet_v2,
    "SqueezeNet 1.1": squeezenet_1_1,
    "ResNet-34": partial(resnet, (3, 4, 6, 3), expansion=1),
    "WideResNet-50-2": partial(resnet, (3, 4, 6, 3), expansion=2, base=128),
    "DenseNet-121": partial(densenet, 32, (6, 12, 24, 16)),
    "DenseNet-161": partial(densenet, 48, (6, 12, 36, 24)),
    "Inception-v3": inception_v3,
    "VGG-11": partial(vgg, (1, 1, 2, 2, 2)),
    "VGG-13": partial(vgg, (2, 2, 2, 2, 2)),
    "VGG-19": partial(vgg, (2, 2, 4, 4, 4)),
}
"""The classifiers by name, without those of NAS-Bench-201."""

SIZES = {"Inception-v3": 299, "SqueezeNet 1.1": 227}
"""Input sizes in pixels, if not 224."""

NAS_BENCH_201 = "NAS-Bench-201 "
"""How the name of such a network begins; its code follows."""


def build(name: str) -> tuple[nn.Module, int]:
    """A network by its name, and its input size in pixels."""
    if name.startswith(NAS_BENCH_201):
        return nas_bench_201(name.removeprefix(NAS_BENCH_201)).eval(), 32
    return NETWORKS[name]().eval(), SIZES.get(name, 224)
