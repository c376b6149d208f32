"""Small networks in the manner of well-known families, for images of 16 pixels and 5 classes."""

from torch import Tensor, nn
from torch.nn import functional

NUM_CLASSES, RESOLUTION = 5, 16


class ResNet(nn.Module):
    """A residual block with a projection, and one without."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.narrow = nn.Conv2d(4, 8, 3, 2, 1, bias=False)
        self.shortcut = nn.Conv2d(4, 8, 1, 2, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.wide = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.head = nn.Linear(8, NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.stem(x))
        x = functional.relu(self.norm(self.narrow(x)) + self.shortcut(x))
        x = functional.relu(x + self.wide(x))
        out: Tensor = self.head(x.mean((2, 3)))
        return out


def vgg() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU()),
        *(nn.Conv2d(6, 6, 3, padding="same"), nn.BatchNorm2d(6), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 12), nn.ReLU()),
        *(nn.Dropout(0.1), nn.Linear(12, NUM_CLASSES)),
    )


class InvertedBottleneck(nn.Module):
    """MobileNetV2's block."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = 2 * channels
        self.layers = nn.Sequential(
            *(nn.Conv2d(channels, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU6()),
            nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden, bias=False),
            *(nn.BatchNorm2d(hidden), nn.ReLU6()),
            *(nn.Conv2d(hidden, channels, 1, bias=False), nn.BatchNorm2d(channels)),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.layers(x)
        return out


def mobilenet() -> nn.Module:
    pooled = (nn.AdaptiveAvgPool2d(1), nn.Flatten())
    stem = nn.Conv2d(3, 4, 3, 2, 1)
    return nn.Sequential(
        stem, InvertedBottleneck(4), InvertedBottleneck(4), *pooled, nn.Linear(4, NUM_CLASSES)
    )


class ConvNeXtBlock(nn.Module):
    """Depthwise 7x7, LayerNorm, two linear layers on the last axis, layer scale."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels)
        self.expand, self.project = (
            nn.Linear(channels, 4 * channels),
            nn.Linear(4 * channels, channels),
        )
        self.gamma = nn.Parameter(functional.normalize(self.project.bias.detach() + 1, dim=0))

    def forward(self, x: Tensor) -> Tensor:
        pixels = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        pixels = self.gamma * self.project(functional.gelu(self.expand(pixels)))
        out: Tensor = x + pixels.permute(0, 3, 1, 2)
        return out


def convnext() -> nn.Module:
    pooled = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(4))
    stem = nn.Conv2d(3, 4, 4, 4)
    return nn.Sequential(
        stem, ConvNeXtBlock(4), ConvNeXtBlock(4), *pooled, nn.Linear(4, NUM_CLASSES)
    )


FAMILIES = {"resnet": ResNet, "vgg": vgg, "mobilenet": mobilenet, "convnext": convnext}
