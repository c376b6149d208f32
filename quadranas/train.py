"""train: train one network, from scratch or from the weights it has, and test it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quadranas.architecture import Architecture
from quadranas.augment import AugmentConfig, Augmenter
from quadranas.config import DataConfig, TrainConfig, open_data, resolve_config
from quadranas.cost import count_macs, count_params
from quadranas.data import Dataset
from quadranas.errors import QuadranasError
from quadranas.evaluate import Preprocessing, evaluate
from quadranas.files import read_yaml
from quadranas.loop import run_phase
from quadranas.network_training import NetworkTraining
from quadranas.reporter import Reporter
from quadranas.run_folder import BYTES_PER_WEIGHT, RunFolder, agreed, save_tensors
from quadranas.trained import Subject

COPIES_ON_DISK = 7
"""Two checkpoints of weights and two moments each, and the weights themselves."""


def train(
    subject: Subject,
    overrides: Mapping[str, Any],
    output: Path,
    reporter: Reporter,
    *,
    resume: bool = False,
    source: str | Path = "configuration",
) -> dict[str, Any]:
    """Train a network on all training images, then test it once.

    It starts from the weights it has; without any, from scratch, and its head then takes
    the data's number of classes.

    Args:
        overrides: keys of `TrainConfig`; the rest comes from the run the network lies in, then
            from defaults that suit the data's size.
        output: a new folder for weights, metrics and checkpoints.

    Returns: the content of `result.json`.

    Raises:
        QuadranasError: data or folder do not serve; the classes differ from the weights'.
    """
    folder = RunFolder(output)
    stored = folder / "config.yaml"
    continuing = resume and stored.is_file()
    if continuing:
        overrides = agreed(read_yaml(stored, "configuration"), overrides, output)
        if (folder / "result.json").is_file():
            reporter.message(f"{output} is finished already")
            return folder.result()
    else:
        overrides = _inherited_config(subject) | dict(overrides)
    dataset = open_data(overrides, subject.architecture.resolution, source)
    config = resolve_config(TrainConfig, overrides, dataset, source)
    architecture = _for_classes(subject, dataset)
    if not continuing:
        folder.create(count_params(architecture) * BYTES_PER_WEIGHT * COPIES_ON_DISK)
        Preprocessing.of(dataset).save(folder / "preprocessing.json")
        architecture.save(folder / "architecture.json")
        folder.write_config(config.model_dump(mode="json"))
    subject = Subject(architecture, weights=subject.weights)
    augmenter = Augmenter(
        config.augment, num_classes=dataset.num_classes, mean=dataset.mean, std=dataset.std
    )
    training = NetworkTraining(
        "train",
        subject.network(seed=config.seed),
        dataset,
        augmenter,
        config.weights,
        num_epochs=config.epochs,
        batch_size=config.batch_size,
        seed=config.seed,
    )
    checkpoint = folder.latest_checkpoint(reporter)
    run_phase(training, folder, reporter, checkpoint, checkpoint_seconds=config.checkpoint_seconds)
    save_tensors(training.network.state_dict(), folder / "subnet.safetensors")
    result = {
        "run": str(output),
        "architecture": str(folder / "architecture.json"),
        "params": count_params(architecture),
        "macs": count_macs(architecture),
        "accuracy": evaluate(training.network, dataset.test, augmenter),
    }
    folder.write_result(result)
    return result


def _inherited_config(subject: Subject) -> dict[str, Any]:
    """The keys of the run the network lies in that also matter here."""
    if subject.folder is None or not (subject.folder / "config.yaml").is_file():
        return {}
    content = read_yaml(subject.folder / "config.yaml", "configuration")
    return {key: value for key, value in content.items() if key in TrainConfig.model_fields}


def _for_classes(subject: Subject, dataset: Dataset) -> Architecture:
    """The architecture with a head for the data's classes, if it has no weights yet."""
    architecture = subject.architecture
    if subject.weights is None:
        return architecture.adapted(num_classes=dataset.num_classes)
    if architecture.num_classes != dataset.num_classes:
        raise QuadranasError(
            f"{architecture.name} was trained for {architecture.num_classes} classes; "
            f"the data have {dataset.num_classes}",
            "Train from scratch by naming the architecture.json file instead of the run.",
        )
    return architecture


def measure_accuracy(
    subject: Subject, overrides: Mapping[str, Any], source: str | Path = "command line"
) -> dict[str, Any]:
    """Top-1 accuracy of a trained network on a test split.

    Args:
        overrides: which data; those of the run the network lies in, if not given.

    Raises:
        QuadranasError: no weights, or data of other classes than those trained for.
    """
    subject.require_weights()
    given = _inherited_config(subject) | dict(overrides)
    content = {key: value for key, value in given.items() if key in DataConfig.model_fields}
    trained_on = subject.preprocessing
    if trained_on is not None:
        content["train_resolution"] = trained_on.resolution
    dataset = open_data(content, subject.architecture.resolution, source)
    if trained_on is not None and trained_on.class_names != dataset.class_names:
        raise QuadranasError(
            f"the data's classes ({', '.join(dataset.class_names[:5])} ...) are not those the "
            f"network was trained for ({', '.join(trained_on.class_names[:5])} ...)"
        )
    expected = trained_on or Preprocessing.of(dataset)
    augmenter = Augmenter(
        AugmentConfig(flip=False, crop_padding=0),
        num_classes=dataset.num_classes,
        mean=expected.mean,
        std=expected.std,
    )
    network = Subject(_for_classes(subject, dataset), weights=subject.weights).network()
    return {
        "model": subject.architecture.name,
        "data": dataset.name,
        "num_images": len(dataset.test),
        "accuracy": evaluate(network, dataset.test, augmenter),
    }
