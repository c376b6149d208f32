"""The first-order parent: a small network in the manner of VGG, with BatchNorm."""

from torch import Tensor, nn

STAGES = ((16, 1), (24, 3), (48, 3), (96, 3))
"""Width and number of 3x3 convolutions of every stage; 2x2 max pooling between them."""


class VGG(nn.Module):
    """Ten convolutions for images of 32 pixels, one linear layer."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for stage, (width, depth) in enumerate(STAGES):
            layers += [nn.MaxPool2d(2)] if stage else []
            for _ in range(depth):
                conv = nn.Conv2d(channels, width, 3, padding=1, bias=False)
                layers += [conv, nn.BatchNorm2d(width), nn.ReLU()]
                channels = width
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Shapes: (B, 3, 32, 32) to (B, num_classes)."""
        pooled: Tensor = self.features(images).mean((2, 3))
        return self.classifier(pooled)
