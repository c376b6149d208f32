"""Opening a model argument: a network with its weights, and the images to test it on."""

from collections.abc import Container, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self, TypeAlias

import torch
from torch import nn

from quadranas.acceleration.engine import Engine
from quadranas.data.augmentation import Augmenter
from quadranas.data.dataset import Dataset
from quadranas.data.preprocessing import Preprocessing, load_preprocessing
from quadranas.data.task import evaluate
from quadranas.errors import QuadranasError
from quadranas.network.skeleton import Network, build_subnet
from quadranas.network.weights import load_weights
from quadranas.reporter import Reporter
from quadranas.runs import layout
from quadranas.runs.config import DataConfig, TrainConfig, given_keys, merged, open_data
from quadranas.runs.config_file import read_config_file, recorded_command, same_place, with_header
from quadranas.runs.hub_folder import HUB_CONFIG, HUB_WEIGHTS, is_hub_folder
from quadranas.runs.model_argument import find_model
from quadranas.runs.next_command import resume_command, train_command
from quadranas.runs.run_folder import RunFolder
from quadranas.space.architecture import Architecture
from quadranas.space.catalog import find_folder
from quadranas.validation import validate

DECIDED_BY_DATA = (
    *("data", "val", "skip_corrupt", "verify", "workers", "train_resolution", "augment", "recipe"),
)
"""The keys of a configuration that do not carry over to other data."""

NEVER_INHERITED = ("teacher", "teacher_weights", "teacher_resolution", "tracking")
"""Keys that a training does not take from the run folder of its network, since a run folder does
not choose what is computed or contacted."""

INDEPENDENT_OF_RECIPES = {
    *DataConfig.model_fields,
    *("checkpoint_seconds", "accelerator", "precision", "compile", "inspect"),
}
"""The keys of a configuration that carry over to a training with another recipe."""


@dataclass(frozen=True)
class StoredNetwork:
    """A network on disk: its architecture and its weights.

    Args:
        folder: the run folder that holds the network; None for other networks.
        weights: the file with its trained weights, if any.
        preprocessing: preprocessing of its images; None if unknown.
    """

    architecture: Architecture
    folder: Path | None = None
    weights: Path | None = None
    preprocessing: Preprocessing | None = None

    def network(self, *, seed: int = 0) -> Network:
        """The network with its trained weights; if it has none, with random ones."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            network = build_subnet(self.architecture)
        if self.weights is not None:
            note = load_weights(network, self.weights)
            if note:
                Reporter().message(f"{self.weights}: {note}")
        return network

    @property
    def config_keys(self) -> dict[str, Any]:
        """The configuration in the run folder, not yet checked; empty if there is none."""
        path = self.folder / layout.CONFIG if self.folder is not None else None
        return {} if path is None or not path.is_file() else read_config_file(path).keys

    def hand_on(
        self, folder: RunFolder, command: str, only: Container[str] | None = None, **keys: Any
    ) -> None:
        """Copy what a training inherits into a new folder: configuration and preprocessing.

        Args:
            command: the command that writes the folder.
            only: names of the fields of the configuration to copy; None for all.
            keys: fields of the configuration to add or to replace.
        """
        config = {k: v for k, v in self.config_keys.items() if only is None or k in only} | keys
        if config:
            folder.write_config(with_header(command, config))
        if self.preprocessing is not None:
            folder.keep_preprocessing(self.preprocessing)

    def require_weights(self, otherwise: str = "") -> None:
        """Refuse an untrained network.

        Args:
            otherwise: another remedy to name in the hint.

        Raises:
            QuadranasError: there are no trained weights.
        """
        if self.weights is None and self.folder is not None:
            command = recorded_command(self.folder)
            raise QuadranasError(
                f"{self.folder} holds no trained weights: {layout.WEIGHTS} is missing",
                f"If the run is unfinished, continue it with: "
                f"{resume_command(command, self.folder)}"
                if command in layout.RESUMABLE
                else f"Train it with: {train_command(self.folder)}",
            )
        if self.weights is None:
            raise QuadranasError(
                f"architecture {self.architecture.name!r} has no trained weights",
                f"Name a run folder, or add --weights FILE.safetensors{otherwise}.",
            )


Model: TypeAlias = str | Path | Architecture | StoredNetwork
"""A model argument: the name of a model, a file, a run folder, or an opened network."""


def open_network(model: Model, weights: str | Path | None = None) -> StoredNetwork:
    """Resolve a model argument: an architecture file, a run folder, a name, or an opened network.

    Args:
        weights: a safetensors file to use instead of the weights in the run folder; the
            preprocessing that is stored beside it belongs to it.

    Raises:
        QuadranasError: an unknown name, an unfinished run, or a folder with links out of it.
    """
    weights = None if weights is None else Path(weights)
    if isinstance(model, StoredNetwork):
        stored = model
    elif isinstance(model, Architecture):
        stored = StoredNetwork(model)
    else:
        stored = _find_network(str(model))
    if weights is None:
        return stored
    preprocessing = _preprocessing_in(weights.parent) or stored.preprocessing
    return replace(stored, weights=weights, preprocessing=preprocessing)


def _find_network(model: str) -> StoredNetwork:
    """The network of a name, a file or a run folder; errors as in `open_network`."""
    architecture, folder = find_model(model)
    if folder is None:
        hub = find_folder(model)
        return StoredNetwork(architecture) if hub is None else _in_hub_folder(hub, architecture)
    weights = folder / layout.WEIGHTS
    return StoredNetwork(
        architecture,
        folder=folder,
        weights=weights if weights.is_file() else None,
        preprocessing=_preprocessing_in(folder),
    )


def _in_hub_folder(folder: Path, architecture: Architecture) -> StoredNetwork:
    """The network in a folder of a model hub; `folder` is not set, since it is no run folder."""
    weights = folder / HUB_WEIGHTS
    if not weights.is_file():
        raise QuadranasError(
            f"{folder} has no {HUB_WEIGHTS}: the download is incomplete",
            "Download the whole folder again.",
        )
    return StoredNetwork(architecture, weights=weights, preprocessing=_preprocessing_in(folder))


def from_pretrained(folder: str | Path) -> Network:
    """The network in a folder of a model hub, with its weights, in evaluation mode.

    Nothing in the folder is executed: it is read as JSON and safetensors.

    Args:
        folder: a folder that `publish` wrote, or its download.

    Raises:
        QuadranasError: the folder is another one, incomplete or damaged.
    """
    found = find_folder(str(folder))
    if found is None or not is_hub_folder(found):
        raise QuadranasError(
            f"{folder} is not a published network: it has no {HUB_CONFIG}",
            "Name a folder that quadranas publish wrote; a run is opened with "
            "quadranas.open_run(RUN).network().",
        )
    return open_network(found).network().eval()


def _preprocessing_in(folder: Path) -> Preprocessing | None:
    """The preprocessing of the images that the weights in a folder were trained on."""
    path = folder / layout.PREPROCESSING
    return load_preprocessing(path) if path.is_file() else None


def inherited_config(stored: StoredNetwork, given: DataConfig) -> TrainConfig:
    """Configuration inherited from the run folder of a network, for a training or a test of it.

    If other data than the run's are given, keys that depend on the data are left out; if a recipe
    is given, all keys that it decides.
    """
    content = stored.config_keys
    if stored.folder is None or not content:
        return TrainConfig()
    keys = set(TrainConfig.model_fields) - set(NEVER_INHERITED)
    there = content.get("data")
    data = given_keys(given).get("data", there)
    if data != there and not (data and there and same_place(data, str(there))):
        keys -= set(DECIDED_BY_DATA)
    if given_keys(given).get("recipe"):
        keys &= INDEPENDENT_OF_RECIPES
    inherited = {key: value for key, value in content.items() if key in keys}
    return validate(TrainConfig, inherited, stored.folder / layout.CONFIG)


def for_classes(stored: StoredNetwork, dataset: Dataset) -> Architecture:
    """The architecture with a head for the classes of the data, if it has no weights yet.

    Raises:
        QuadranasError: it has weights for another number of classes.
    """
    architecture = stored.architecture
    if stored.weights is None:
        return architecture.adapted(num_classes=dataset.num_classes)
    if architecture.num_classes != dataset.num_classes:
        raise QuadranasError(
            f"{architecture.name} was trained for {architecture.num_classes} classes; "
            f"the data have {dataset.num_classes}",
            "Name other data with --data, or train the file architecture.json from scratch.",
        )
    return architecture


@dataclass(frozen=True)
class HeldOutImages:
    """Data with a test split, and the preprocessing that a trained network expects.

    Args:
        trained_resolution: image size of the training, in pixels; that of the data is the one to
            test at.
        num_skipped: the number of corrupt images that were skipped; None if none were to be.
    """

    dataset: Dataset
    augmenter: Augmenter
    trained_resolution: int
    num_skipped: int | None = None

    def accuracy(self, network: nn.Module, engine: Engine | None = None) -> float:
        """Top-1 accuracy of a network on the test split; a copy of it moves to the accelerator."""
        engine = engine or Engine()
        if not engine.accelerator.is_cpu:
            network = deepcopy(network)
            engine.accelerator.place(network)
        return evaluate(network, self.dataset.test, self.augmenter, engine)

    def as_trained(self) -> Self:
        """The same images at the resolution of the training."""
        return replace(self, dataset=self.dataset.at(self.trained_resolution))


def open_test_images(
    stored: StoredNetwork, given: DataConfig, resolution: int | None = None
) -> HeldOutImages:
    """The images to test a trained network on.

    Args:
        given: the data; by default those of the run that holds the network.
        resolution: image size in pixels; default: the deployment resolution of the network.

    Raises:
        QuadranasError: unsuitable data, or other classes than those of the training.
    """
    content = merged(given_keys(inherited_config(stored, given)), given_keys(given))
    content = {key: value for key, value in content.items() if key in DataConfig.model_fields}
    trained_on = stored.preprocessing
    if trained_on is not None:
        content["train_resolution"] = trained_on.resolution
    config = validate(DataConfig, content, "configuration")
    dataset = open_data(config, stored.architecture.resolution)
    if trained_on is not None and trained_on.class_names != dataset.class_names:
        raise QuadranasError(
            f"the data's classes ({_some(dataset.class_names)}) are not those the network was "
            f"trained for ({_some(trained_on.class_names)})",
            "Name images of the same classes with --data.",
        )
    for_classes(stored, dataset)
    wanted = (
        stored.architecture
        if resolution is None
        else stored.architecture.adapted(resolution=resolution)
    )
    return HeldOutImages(
        dataset.at(wanted.resolution),
        Augmenter.of(dataset, preprocessing=trained_on),
        dataset.resolution,
        dataset.num_skipped if config.skip_corrupt else None,
    )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
