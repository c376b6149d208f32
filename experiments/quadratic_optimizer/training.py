"""The network of the experiment and one training of it."""

import math
import statistics
from typing import Any

import torch
from torch import Tensor, nn

from quadranas.data.augmentation import AugmentConfig, Augmenter
from quadranas.data.dataset import Dataset
from quadranas.data.splits import epoch_batches
from quadranas.data.task import evaluate
from quadranas.layers.quadratic import QuadraticConv2d
from quadranas.training.quadratic_optimization import (
    SecondOrderControl,
    quadratic_parameter_groups,
)

DEPTH, WIDTH, BATCH = 30, 16, 64


class PlainResidual(nn.Module):
    """`x + quadratic(x)`, 30 times. Weights begin smaller by the root of the depth.

    Without that the output of 30 such blocks is no finite number before the first step already.
    """

    def __init__(self, form: str, num_classes: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, WIDTH, 3, padding=1)
        self.blocks = nn.ModuleList(
            QuadraticConv2d(WIDTH, WIDTH, 3, padding=1, form=form) for _ in range(DEPTH)
        )
        self.head = nn.Linear(WIDTH, num_classes)
        with torch.no_grad():
            for parameter in self.blocks.parameters():
                parameter.mul_(DEPTH**-0.5)

    def forward(self, images: Tensor) -> Tensor:
        """Shapes: (B, 3, H, W) to (B, num_classes)."""
        x = self.stem(images)
        for block in self.blocks:
            x = x + block(x)
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


def train(arm: dict[str, Any], dataset: Dataset, seed: int, epochs: int) -> dict[str, Any]:
    """One run, up to a loss that is no number."""
    options = dict(arm)
    form, clip_norm = options.pop("form", "hadamard"), options.pop("clip_norm", math.inf)
    groups, control = options.pop("groups", None), options.pop("control", None)
    torch.manual_seed(seed)
    network = PlainResidual(form, dataset.num_classes)
    parameters: Any = network.parameters()
    if groups is not None:
        parameters = quadratic_parameter_groups(network, lr=options["lr"], **groups)
    optimizer = getattr(torch.optim, options.pop("optimizer"))(parameters, **options)
    if control is not None:
        SecondOrderControl(optimizer, network, **control)
    augmenter = Augmenter(
        AugmentConfig(flip=False, crop_padding=0),
        num_classes=dataset.num_classes, mean=dataset.mean, std=dataset.std,
    )  # fmt: skip
    losses: list[float] = []
    for epoch in range(epochs):
        for indices in epoch_batches(
            torch.arange(len(dataset.train)), BATCH, seed=1000 * seed + epoch
        ):
            images = augmenter.plain(dataset.train.batch(indices))
            loss = nn.functional.cross_entropy(network(images), dataset.train.labels[indices])
            losses.append(float(loss.detach()))
            if not math.isfinite(losses[-1]):
                return {"seed": seed, "diverged_at_step": len(losses)}
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), clip_norm)
            optimizer.step()
    steps = len(losses) // epochs
    accuracy = evaluate(network, dataset.test, augmenter)
    last = statistics.fmean(losses[-steps:])
    return {"seed": seed, "loss": last, "accuracy": accuracy, "largest_loss": max(losses)}
