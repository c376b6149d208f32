"""train: train one network, from scratch or from the weights it has, and test it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quadranas.conversion.adaptation import set_trained
from quadranas.data.augmentation import Augmenter
from quadranas.data.preprocessing import Preprocessing
from quadranas.data.task import evaluate
from quadranas.errors import QuadranasError
from quadranas.network.counting import count_network
from quadranas.network.skeleton import build_subnet
from quadranas.network.weights import save_tensors
from quadranas.reporter import Reporter
from quadranas.runs.config import TrainConfig, merged, open_data, resolve_config
from quadranas.runs.resume import matching_config, resume_command
from quadranas.runs.run_folder import BYTES_PER_WEIGHT, RunFolder
from quadranas.runs.stored_network import (
    StoredNetwork,
    for_classes,
    inherited_config,
    open_test_images,
)
from quadranas.space.architecture import load_architecture
from quadranas.training.loop import run_phase
from quadranas.training.network_phase import NetworkTraining
from quadranas.validation import validate_partial

COPIES_ON_DISK = 8
"""Two checkpoints of weights and two moments each, the weights at the start and at the end."""


def train(
    stored: StoredNetwork,
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
    continuing = resume and folder.is_run
    if continuing:
        overrides = matching_config(TrainConfig, output, overrides, source)
        if folder.is_finished:
            reporter.message(f"{output} is finished already")
            return folder.result()
        folder.tidy()
    else:
        folder.refuse_content()
        stored.network()  # its weights fit, or this says so
        if resume:
            reporter.message(f"{output} holds no run to continue; beginning one")
        validate_partial(TrainConfig, overrides, source)
        overrides = merged(inherited_config(stored, overrides), overrides)
    if "train_resolution" in overrides:
        stored.architecture.adapted(resolution=overrides["train_resolution"])
    dataset = open_data(overrides, stored.architecture.resolution, source)
    stored.architecture.adapted(resolution=dataset.resolution)
    config = resolve_config(TrainConfig, overrides, dataset, source)
    wanted = for_classes(stored, dataset)
    if not continuing:
        untrained = build_subnet(wanted)
        set_trained(untrained, config.trainable)  # it can be, or this says why not
        num_params = sum(p.numel() for p in untrained.parameters())
        needed_bytes = num_params * BYTES_PER_WEIGHT * COPIES_ON_DISK
        folder.create(needed_bytes, config.model_dump(mode="json"))
    folder.keep_preprocessing(Preprocessing.of(dataset))
    start = _keep_start(folder, StoredNetwork(wanted, weights=stored.weights))
    augmenter = Augmenter(
        config.augment, num_classes=dataset.num_classes, mean=dataset.mean, std=dataset.std
    )
    network = start.network(seed=config.seed)
    set_trained(network, config.trainable)
    training = NetworkTraining(
        "train",
        network,
        dataset,
        augmenter,
        config.weights,
        num_epochs=config.epochs,
        batch_size=config.batch_size,
        seed=config.seed,
        inspected=config.inspect,
    )
    checkpoint = folder.latest_checkpoint(reporter) if continuing else None
    run_phase(training, folder, reporter, checkpoint, checkpoint_seconds=config.checkpoint_seconds)
    save_tensors(training.network.state_dict(), folder / "subnet.safetensors")
    params, macs = count_network(training.network, start.architecture.resolution)
    result = {
        "run": str(output),
        "architecture": str(folder / "architecture.json"),
        "params": params,
        "macs": macs,
        "accuracy": evaluate(training.network, dataset.test, augmenter),
    }
    folder.write_result(result)
    return result


def _keep_start(folder: RunFolder, stored: StoredNetwork) -> StoredNetwork:
    """Copy the network and the weights it starts from into the folder, once.

    Returns: the network as the folder has it.

    Raises:
        QuadranasError: the folder's is another network.
    """
    path, weights = folder / "architecture.json", folder / "inherited.safetensors"
    if not path.is_file():
        if stored.weights is not None:
            save_tensors(stored.network().state_dict(), weights)
        stored.architecture.save(path)
    kept = load_architecture(path)
    if kept != stored.architecture:
        raise QuadranasError(
            f"cannot resume {folder.path}: it trains {kept.name!r}, another network than "
            f"{stored.architecture.name!r} as it is now",
            f"Continue it with: {resume_command('train', folder.path)}",
        )
    return StoredNetwork(kept, weights=weights if weights.is_file() else None)


def measure_accuracy(
    stored: StoredNetwork, overrides: Mapping[str, Any], source: str | Path = "command line"
) -> dict[str, Any]:
    """Top-1 accuracy of a trained network on a test split.

    Args:
        overrides: which data; those of the run the network lies in, if not given.

    Raises:
        QuadranasError: no weights, or data of other classes than those trained for.
    """
    stored.require_weights()
    network = stored.network()
    images = open_test_images(stored, overrides, source)
    return {
        "model": stored.architecture.name,
        "data": images.dataset.name,
        "num_images": len(images.dataset.test),
        "accuracy": images.accuracy(network),
    }
