"""The experiment's networks, and the domain that the pre-trained one has never seen."""

from dataclasses import replace

import torch
from comparison import SCRATCH
from kornia.filters import gaussian_blur2d
from torch import Tensor

from quadranas.conversion import adapt, select_layers
from quadranas.data.dataset import Dataset
from quadranas.data.image_set import ImageSet
from quadranas.network.skeleton import Network, build_subnet
from quadranas.space.architecture import Architecture, Block, LayerChange
from quadranas.space.operation import OpSpec

STAGES = ((24, 2), (48, 2), (96, 2))
KERNEL, EXPANSION = 3, 3
DEPTHWISE, PROJECTION = "blocks.stage*.mbconv.layers.3", "blocks.stage*.mbconv.layers.6"
BLUR_PIXELS, NOISE = 1.0, 0.1


def first_order(num_classes: int) -> Architecture:
    """Inverted bottlenecks with BatchNorm and ReLU6, 5.0 M MACs at 32 pixels."""
    ops = [OpSpec(kind="conv_bn", in_channels=3, out_channels=16, resolution=32, kernel_size=3)]
    ops[0] = ops[0].model_copy(update={"stride": 2})
    names, last = ["stem"], ops[0]
    for stage, (width, depth) in enumerate(STAGES, start=1):
        for index in range(1, depth + 1):
            last = OpSpec(
                kind="mbconv",
                in_channels=last.out_channels,
                out_channels=width,
                resolution=last.out_resolution,
                kernel_size=KERNEL,
                stride=2 if index == 1 and stage > 1 else 1,
                expand_ratio=EXPANSION,
            )
            names.append(f"stage{stage}_block{index}")
            ops.append(last)
    names.append("head")
    width, pixels = last.out_channels, last.out_resolution
    ops.append(
        OpSpec(kind="linear_head", in_channels=width, out_channels=num_classes, resolution=pixels)
    )
    blocks = tuple(Block(name=n, ops=(op,)) for n, op in zip(names, ops, strict=True))
    return Architecture(name="first order", resolution=32, num_classes=num_classes, blocks=blocks)


def ways(source: Network, num_classes: int) -> dict[str, Network]:
    """The networks to train on the new domain; all but the first begin with the source's weights.

    The high-order one has quadratic depthwise convolutions `a(x) * b(x) + c(x)`.
    """
    architecture = first_order(num_classes)
    fine_tuned = build_subnet(architecture)
    fine_tuned.load_state_dict(source.state_dict())
    changes = tuple(
        LayerChange(name=n, kind="quadratic") for n in select_layers(source, DEPTHWISE)
    )
    return {
        SCRATCH: build_subnet(architecture.model_copy(update={"changes": changes})),
        "fine-tuned, first order": fine_tuned,
        "adapted, dilation 2": adapt(source, where=DEPTHWISE),
        "adapted, dilation 1": adapt(source, dilation=1, where=DEPTHWISE),
        "adapted, projections": adapt(source, rank=4, where=PROJECTION),
        "adapted, dilation 1, terms alone": adapt(
            source, dilation=1, where=DEPTHWISE, train="quadratic"
        ),
    }


def shifted(dataset: Dataset, num_train: int, num_test: int) -> Dataset:
    """Some of the images, spread over the split, with colours inverted, blurred and noisy."""
    train = _shifted(dataset.train, num_train, seed=0)
    test = _shifted(dataset.test, num_test, seed=1)
    sample = train.batch(torch.arange(len(train))).float() / 255
    std, mean = torch.std_mean(sample, (0, 2, 3))
    return replace(
        dataset,
        name=f"{dataset.name}, shifted",
        train=train,
        test=test,
        mean=tuple(mean.tolist()),
        std=tuple(std.tolist()),
    )


def _shifted(images: ImageSet, number: int, *, seed: int) -> ImageSet:
    generator = torch.Generator().manual_seed(seed)
    indices = torch.randperm(len(images), generator=generator)[:number]
    parts = [_transformed(images.batch(part), generator) for part in indices.split(1000)]
    pixels = torch.cat(parts)
    return ImageSet(images.labels[indices], lambda wanted: pixels[wanted])


def _transformed(images: Tensor, generator: torch.Generator) -> Tensor:
    """Shapes: uint8 (B, 3, R, R) to uint8 (B, R, R, 3)."""
    inverted = 1 - images.contiguous().float() / 255
    blurred = gaussian_blur2d(inverted, (7, 7), (BLUR_PIXELS, BLUR_PIXELS))
    noisy = blurred + NOISE * torch.randn(blurred.shape, generator=generator)
    return (noisy.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
