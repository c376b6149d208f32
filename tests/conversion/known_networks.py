"""ConvNeXt and MobileNetV2 written plainly, small, with the names of well-known checkpoints."""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

CLASSES = 5


class ChannelsFirstNorm(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(1, keepdim=True)
        variance = (x - mean).pow(2).mean(1, keepdim=True)
        scaled = (x - mean) / torch.sqrt(variance + self.eps)
        out: Tensor = self.weight[:, None, None] * scaled + self.bias[:, None, None]
        return out


class ConvNeXtBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.pwconv1 = nn.Linear(channels, 4 * channels)
        self.pwconv2 = nn.Linear(4 * channels, channels)
        self.gamma = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.dwconv(x).permute(0, 2, 3, 1))
        y = self.gamma * self.pwconv2(functional.gelu(self.pwconv1(y)))
        out: Tensor = x + y.permute(0, 3, 1, 2)
        return out


class ConvNeXt(nn.Module):
    """Under the official names."""

    def __init__(
        self, depths: tuple[int, ...] = (2, 3), widths: tuple[int, ...] = (8, 16)
    ) -> None:
        super().__init__()
        stem = nn.Sequential(nn.Conv2d(3, widths[0], 4, 4), ChannelsFirstNorm(widths[0], eps=1e-6))
        self.downsample_layers = nn.ModuleList([stem])
        for before, width in pairwise(widths):
            norm = ChannelsFirstNorm(before, eps=1e-6)
            self.downsample_layers.append(nn.Sequential(norm, nn.Conv2d(before, width, 2, 2)))
        self.stages = nn.ModuleList(
            nn.Sequential(*(ConvNeXtBlock(width) for _ in range(depth)))
            for depth, width in zip(depths, widths, strict=True)
        )
        self.norm = nn.LayerNorm(widths[-1], eps=1e-6)
        self.head = nn.Linear(widths[-1], CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        for downsample, stage in zip(self.downsample_layers, self.stages, strict=True):
            x = stage(downsample(x))
        out: Tensor = self.head(self.norm(x.mean((2, 3))))
        return out


def timm_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A ConvNeXt's tensors as timm stores them, with linear layers as 1x1 convolutions."""
    renamed = {}
    for name, tensor in tensors.items():
        for old, new in (
            ("downsample_layers.0.", "stem."),
            ("downsample_layers.", "stages."),
            ("dwconv", "conv_dw"),
            ("pwconv1", "mlp.fc1"),
            ("pwconv2", "mlp.fc2"),
        ):
            is_stage = name.startswith("downsample_layers.") and old == "downsample_layers."
            name = name.replace(old, new)
            if is_stage:
                name = name.replace("stages.1.", "stages.1.downsample.")
        parts = name.split(".")
        if parts[0] == "stages" and parts[2].isdigit():
            name = ".".join([*parts[:2], "blocks", *parts[2:]])
        name = {"norm": "head.norm", "head": "head.fc"}.get(parts[0], parts[0]) + name[
            len(parts[0]) :
        ]
        is_linear = ".mlp." in name and name.endswith("weight")
        renamed[name] = tensor[:, :, None, None] if is_linear else tensor
    return renamed


class ConvNormActivation(nn.Sequential):
    def __init__(self, cin: int, cout: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        conv = nn.Conv2d(cin, cout, kernel, stride, kernel // 2, groups=groups, bias=False)
        super().__init__(conv, nn.BatchNorm2d(cout), nn.ReLU6())


class InvertedResidual(nn.Module):
    def __init__(self, cin: int, cout: int, stride: int, ratio: int) -> None:
        super().__init__()
        hidden = cin * ratio
        layers: list[nn.Module] = []
        if ratio != 1:
            layers.append(ConvNormActivation(cin, hidden, 1))
        layers.append(ConvNormActivation(hidden, hidden, 3, stride, hidden))
        layers += [nn.Conv2d(hidden, cout, 1, bias=False), nn.BatchNorm2d(cout)]
        self.conv = nn.Sequential(*layers)
        self.adds = stride == 1 and cin == cout

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        return x + out if self.adds else out


class MobileNetV2(nn.Module):
    """Table 2 of the paper with small widths, under the names of torchvision."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [ConvNormActivation(3, 4, 3, 2)]
        before = 4
        for ratio, width, depth, stride in (
            (1, 3, 1, 1), (6, 4, 2, 2), (6, 5, 3, 2), (6, 6, 4, 2), (6, 7, 3, 1), (6, 8, 3, 2),
            (6, 9, 1, 1),
        ):  # fmt: skip
            for number in range(depth):
                step = stride if number == 0 else 1
                layers.append(InvertedResidual(before, width, step, ratio))
                before = width
        self.features = nn.Sequential(*layers, ConvNormActivation(before, 12, 1))
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(12, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.classifier(self.features(x).mean((2, 3)))
        return out


def as_trained(network: nn.Module, seed: int = 0) -> nn.Module:
    """The network with norms, scales and statistics that are not those of a new one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if tensor.is_floating_point():
                drawn = torch.rand(tensor.shape, generator=generator)
                is_factor = name.endswith("weight") and tensor.ndim == 1
                is_factor |= "running_var" in name or "gamma" in name
                fan_in = tensor[0].numel() if tensor.ndim > 1 else 4
                tensor.copy_(0.5 + drawn if is_factor else (drawn - 0.5) * (12 / fan_in) ** 0.5)
    return network.eval()
