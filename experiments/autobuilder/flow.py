"""The auto-builder's way from a first-order parent to a smaller quadratic network."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from networks import VGG
from torch import Tensor, nn

from quadranas.conversion import convert, pick, rank_layers, remove
from quadranas.data.augmentation import AugmentConfig, Augmenter
from quadranas.data.dataset import Dataset, load_dataset
from quadranas.data.image_set import ImageSet
from quadranas.data.task import evaluate
from quadranas.layers.quadratic import QuadraticConv2d
from quadranas.layers.replacement import set_memory_efficient
from quadranas.network.counting import count_network
from quadranas.runs.config import WeightConfig
from quadranas.seeds import generator_for
from quadranas.training.network_phase import NetworkTraining

RESOLUTION, BATCH_SIZE = 32, 64


@dataclass(frozen=True)
class Images:
    """What is trained and tested on, and the training images that layers are ranked on."""

    dataset: Dataset
    ranking: ImageSet
    augmenter: Augmenter


def open_images(data: str | None, val: str | None, num_held_out: int, num_left: int) -> Images:
    """Load images and hold some of the training images out of all training.

    Args:
        num_left: at most so many to train on.
    """
    dataset = load_dataset(data, val=val, resolution=RESOLUTION)
    order = torch.randperm(len(dataset.train), generator=generator_for(0, "held out"))
    held_out = order[:num_held_out]
    training = order[num_held_out : num_held_out + num_left]
    augmenter = Augmenter(
        AugmentConfig(flip=data is not None, crop_padding=2),
        num_classes=dataset.num_classes,
        mean=dataset.mean,
        std=dataset.std,
    )
    left = replace(dataset, train=_subset(dataset.train, training))
    return Images(left, _subset(dataset.train, held_out), augmenter)


def _subset(images: ImageSet, indices: Tensor) -> ImageSet:
    return ImageSet(
        images.labels[indices], lambda some: images.batch(indices[some]).permute(0, 2, 3, 1)
    )


def build(images: Images, weights: WeightConfig, epochs: int, seed: int) -> dict[str, Any]:
    """Train the parent, convert and rank, remove until smaller than the parent, train again.

    Every network is trained from scratch by the same schedule.
    """

    def train(name: str, network: nn.Module) -> dict[str, Any]:
        trained = _train(name, network, images, weights, epochs, seed)
        print(f"seed {seed}, {name}: {trained}", flush=True)
        return trained

    def drawn(change: Callable[[nn.Module], nn.Module]) -> nn.Module:
        torch.manual_seed(seed)
        return change(VGG(images.dataset.num_classes))

    parent = train("parent", drawn(lambda network: network))
    quadratic = drawn(lambda network: convert(network, "hadamard", norm=True))
    converted = train("converted", quadratic)
    ranking = rank_layers(
        quadratic,
        lambda network: evaluate(network, images.ranking, images.augmenter),
        example=torch.zeros(1, 3, RESOLUTION, RESOLUTION),
    )
    untrained = drawn(lambda network: convert(network, "hadamard", norm=True))
    for count in range(1, len(ranking)):
        removed = pick(ranking, count, "remove")
        reduced = remove(untrained, removed)
        if count_network(reduced, RESOLUTION)[0] < parent["params"]:
            break
    networks = {
        "parent": parent,
        "converted": converted,
        "reduced": train("reduced", reduced),
        "reduced first-order": train("reduced first-order", drawn(lambda n: remove(n, removed))),
    }
    ranked = [layer.model_dump(mode="json") for layer in ranking]
    return {"networks": networks, "removed": removed, "ranking": ranked}


def _train(
    name: str, network: nn.Module, images: Images, weights: WeightConfig, epochs: int, seed: int
) -> dict[str, Any]:
    network.to(memory_format=torch.channels_last)
    set_memory_efficient(network, False)  # faster; the gradients are the same
    training = NetworkTraining(
        *("train", network, images.dataset, images.augmenter, weights),
        num_epochs=epochs,
        batch_size=BATCH_SIZE,
        seed=seed,
    )
    for number in range(training.num_steps):
        training.step(number)
    params, macs = count_network(network, RESOLUTION)
    return {
        "params": params,
        "macs": macs,
        "num_convs": sum(isinstance(m, nn.Conv2d | QuadraticConv2d) for m in network.features),
        "accuracy": evaluate(network, images.dataset.test, images.augmenter),
    }
