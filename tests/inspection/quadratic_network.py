"""A small network with quadratic layers of every form, and images for it."""

from typing import Any

import torch
from torch import Tensor, nn

from quadranas.layers.quadratic import QuadraticConv2d, QuadraticLinear
from quadranas.layers.replacement import set_memory_efficient


def network(memory_efficient: bool = True) -> Any:
    model = nn.Sequential(
        QuadraticConv2d(3, 4, 3, norm=True),
        nn.ReLU(inplace=True),
        nn.Conv2d(4, 4, 3, groups=2),
        QuadraticConv2d(4, 4, 1),
        nn.Flatten(),
        QuadraticLinear(64, 8, form="bilinear"),
        QuadraticLinear(8, 8, form="product"),
        nn.Linear(8, 5),
    )
    set_memory_efficient(model, memory_efficient)
    return model


def images() -> Tensor:
    return torch.randn(6, 3, 8, 8)
