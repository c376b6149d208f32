"""Opening what a user names: a network with its weights, and the images to test it on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import nn

from quadranas.data.augmentation import AugmentConfig, Augmenter
from quadranas.data.dataset import Dataset
from quadranas.data.preprocessing import Preprocessing, load_preprocessing
from quadranas.data.task import evaluate
from quadranas.errors import QuadranasError
from quadranas.files import read_yaml
from quadranas.network.skeleton import Network, build_subnet
from quadranas.network.weights import load_weights
from quadranas.runs.config import DataConfig, TrainConfig, open_data
from quadranas.runs.resume import resume_command
from quadranas.space.architecture import Architecture
from quadranas.space.catalog import find_architecture


@dataclass(frozen=True)
class StoredNetwork:
    """A network to work on.

    Args:
        folder: the run folder it lies in, if any.
        weights: its trained weights, if any.
    """

    architecture: Architecture
    folder: Path | None = None
    weights: Path | None = None
    preprocessing: Preprocessing | None = None

    def network(self, *, seed: int = 0) -> Network:
        """The network, with its trained weights if it has any, else drawn from a seed."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            network = build_subnet(self.architecture)
        if self.weights is not None:
            load_weights(network, self.weights)
        return network

    def require_weights(self, otherwise: str = "") -> None:
        """Refuse an untrained network.

        Args:
            otherwise: what else the user can do.

        Raises:
            QuadranasError: there are no trained weights.
        """
        if self.weights is None and self.folder is not None:
            raise QuadranasError(
                f"{self.folder} holds no trained weights: subnet.safetensors is missing",
                f"If the run is unfinished, continue it with: {self._resume_command()}",
            )
        if self.weights is None:
            raise QuadranasError(
                f"architecture {self.architecture.name!r} has no trained weights",
                f"Name a run folder, or add --weights FILE.safetensors{otherwise}.",
            )

    def _resume_command(self) -> str:
        assert self.folder is not None
        searched = (self.folder / "space.yaml").is_file()
        return resume_command("search" if searched else "train", self.folder)


Model: TypeAlias = str | Path | Architecture | StoredNetwork
"""A network as commands take it: the name of a model, a file, a run folder, or one opened."""


def open_network(model: Model, weights: str | Path | None = None) -> StoredNetwork:
    """Resolve a model argument: an architecture file, a run folder, a name, or an opened network.

    Args:
        weights: a safetensors file to use instead of the weights in the run folder.

    Raises:
        QuadranasError: an unknown name, or an unfinished run.
    """
    weights = None if weights is None else Path(weights)
    if isinstance(model, StoredNetwork):
        return model if weights is None else replace(model, weights=weights)
    if isinstance(model, Architecture):
        return StoredNetwork(model, weights=weights)
    folder = Path(model)
    architecture = find_architecture(str(model))
    if not folder.is_dir():
        return StoredNetwork(architecture, weights=weights)
    own_weights = folder / "subnet.safetensors"
    stored = folder / "preprocessing.json"
    return StoredNetwork(
        architecture,
        folder=folder,
        weights=weights or (own_weights if own_weights.is_file() else None),
        preprocessing=load_preprocessing(stored) if stored.is_file() else None,
    )


def inherited_config(stored: StoredNetwork, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of the run the network lies in that also matter to another training or test.

    With other data than the run's, what the data decided is left out.
    """
    if stored.folder is None or not (stored.folder / "config.yaml").is_file():
        return {}
    content = read_yaml(stored.folder / "config.yaml", "configuration")
    keys = set(TrainConfig.model_fields)
    if overrides.get("data", content.get("data")) != content.get("data"):
        keys -= {"data", "val", "skip_corrupt", "train_resolution", "augment"}
    return {key: value for key, value in content.items() if key in keys}


def for_classes(stored: StoredNetwork, dataset: Dataset) -> Architecture:
    """The architecture with a head for the data's classes, if it has no weights yet.

    Raises:
        QuadranasError: it has weights, for another number of classes.
    """
    architecture = stored.architecture
    if stored.weights is None:
        return architecture.adapted(num_classes=dataset.num_classes)
    if architecture.num_classes != dataset.num_classes:
        raise QuadranasError(
            f"{architecture.name} was trained for {architecture.num_classes} classes; "
            f"the data have {dataset.num_classes}",
            "Name other data with --data; or train the architecture.json file, from scratch.",
        )
    return architecture


@dataclass(frozen=True)
class HeldOutImages:
    """Data with a test split, and how a trained network wants to see their images."""

    dataset: Dataset
    augmenter: Augmenter

    def accuracy(self, network: nn.Module) -> float:
        """Top-1 accuracy of a network on the test split."""
        return evaluate(network, self.dataset.test, self.augmenter)


def open_test_images(
    stored: StoredNetwork, overrides: Mapping[str, Any], source: str | Path
) -> HeldOutImages:
    """The images to test a trained network on.

    Args:
        overrides: which data; those of the run the network lies in, if not given.

    Raises:
        QuadranasError: data of other classes than those trained for, or that do not serve.
    """
    given = inherited_config(stored, overrides) | dict(overrides)
    content = {key: value for key, value in given.items() if key in DataConfig.model_fields}
    trained_on = stored.preprocessing
    if trained_on is not None:
        content["train_resolution"] = trained_on.resolution
    dataset = open_data(content, stored.architecture.resolution, source)
    if trained_on is not None and trained_on.class_names != dataset.class_names:
        raise QuadranasError(
            f"the data's classes ({_some(dataset.class_names)}) are not those the network was "
            f"trained for ({_some(trained_on.class_names)})",
            "Name images of the same classes with --data.",
        )
    for_classes(stored, dataset)
    expected = trained_on or Preprocessing.of(dataset)
    augmenter = Augmenter(
        AugmentConfig(flip=False, crop_padding=0),
        num_classes=dataset.num_classes,
        mean=expected.mean,
        std=expected.std,
    )
    return HeldOutImages(dataset, augmenter)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
