"""train: train one network, from scratch or from its weights, and test it."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from quadranas.acceleration.engine import Engine, engine_for
from quadranas.acceleration.processes import Processes, together
from quadranas.conversion.adaptation import set_trained
from quadranas.data.augmentation import Augmenter
from quadranas.data.dataset import Dataset
from quadranas.data.description import report_data
from quadranas.data.identity import EarlierData
from quadranas.errors import QuadranasError
from quadranas.files import file_name
from quadranas.network.counting import count_network
from quadranas.network.skeleton import Network, build_subnet
from quadranas.network.weights import save_tensors
from quadranas.reporter import Reporter
from quadranas.reports.run_report import write_report
from quadranas.runs import layout
from quadranas.runs.conditions import notes_of
from quadranas.runs.config import (
    TrainConfig,
    combined,
    given_keys,
    merged,
    open_data,
)
from quadranas.runs.next_command import resume_command
from quadranas.runs.recipe import check_recipe, resolve_config
from quadranas.runs.results import TrainResult, read_as
from quadranas.runs.resume import (
    RunStart,
    begin_or_resume,
    can_resume,
    choose_folder,
    resumable,
)
from quadranas.runs.run_device import keep_copies
from quadranas.runs.run_folder import RunFolder
from quadranas.runs.stored_network import (
    Model,
    StoredNetwork,
    for_classes,
    inherited_config,
    open_network,
)
from quadranas.space.architecture import Architecture, load_architecture
from quadranas.training.agreement import check_agreement, check_batch_size, check_command
from quadranas.training.held_out import hold_out
from quadranas.training.network_phase import NetworkTraining
from quadranas.training.outcome import outcome
from quadranas.training.resolution_phase import train_network
from quadranas.training.teacher import Teacher, open_teacher
from quadranas.training.tracking import Tracker, check_tracking, tracking
from quadranas.validation import validate


def train(
    model: Model | None = None,
    config: TrainConfig | None = None,
    *,
    output: str | Path | None = None,
    resume: bool = False,
    weights: str | Path | None = None,
    reporter: Reporter | None = None,
    **keys: Any,
) -> TrainResult:
    """Train a network on all training images, then test it once.

    It starts from the weights of the network, if there are any. Otherwise it starts from scratch,
    with a head for the classes of the data.

    Args:
        model: a name, an architecture file, a run folder, or an opened network; when resuming,
            None for the network in the run folder.
        config: the given part of the configuration; the rest comes from the run folder of the
            network, then from defaults that depend on the data.
        output: a new folder; default: one under `runs/`.
        resume: continue the training in `output`, or the newest unfinished one of this network
            under `runs/` that matches the given options.
        weights: a safetensors file to use instead of the weights in the run folder.
        reporter: receives messages and progress. Default: nothing is shown.
        keys: fields of `TrainConfig`; they take precedence over `config`. The field `weights`
            can only be set in `config`.

    Raises:
        QuadranasError: unsuitable data or folder, or other classes than those of the weights.
    """
    given = combined(TrainConfig, config, keys)
    reporter = reporter or Reporter(quiet=True)
    _check_arguments(model, weights, resume)
    with together() as processes:
        check_command(given, processes, model, output, resume, weights)
        if not processes.is_main:
            return _follow(processes)
        folder = RunFolder(Path(output)) if output else _default_folder(model, given, resume)
        with resumable("train", folder, _network_arguments(model, weights)):
            needed = "" if model is not None else "a network to train"
            start = begin_or_resume("train", given, folder, reporter, resume=resume, needed=needed)
            agreed = None if start.is_finished else _Agreed.of(model, weights, start)
            processes.from_main(agreed)
            if agreed is not None:
                _lead(agreed, start, processes)
            write_report(folder.path)
            return processes.from_main(read_as(TrainResult, folder.path))


def _check_arguments(model: Model | None, weights: object, resume: bool) -> None:
    if model is None and not resume:
        raise QuadranasError(
            "no network to train",
            "Name an architecture file, a run folder or a model, or continue a run with --resume.",
        )
    if not isinstance(weights, str | Path | None):
        raise QuadranasError(
            f"weights must be the path of a file, got {type(weights).__name__}",
            "How weights are trained is set in config: quadranas.TrainConfig(weights={...}).",
        )


def _network_arguments(model: Model | None, weights: str | Path | None) -> str:
    """The network as named on the command line, for a training that has not copied it yet."""
    named = str(model) if isinstance(model, str | Path) else "MODEL"
    return shlex.join([named, *(["--weights", str(weights)] if weights is not None else [])])


def _default_folder(model: Model | None, given: TrainConfig, resume: bool) -> RunFolder:
    """The folder under `runs/` that is named after the network; without one, any to resume."""
    if isinstance(model, str | Path):
        model_name = Path(model).absolute().name.removesuffix(".json")
    elif model is not None:
        model_name = open_network(model).architecture.name
    else:
        return choose_folder("train", lambda path: can_resume("train", path, given))
    name = file_name(f"train-{model_name}")

    def accept(path: Path) -> bool:
        return path.name.rpartition("-")[0] == name and can_resume("train", path, given)

    return choose_folder(name, accept if resume else None)


@dataclass(frozen=True)
class _Agreed:
    """What all processes of a training have to know.

    Args:
        stored: the network to train.
        earlier: when resuming, the images of the run.
        threads: number of threads of every process.
        is_new: whether the network begins with untrained weights.
    """

    stored: StoredNetwork
    config: TrainConfig
    earlier: EarlierData | None
    threads: int
    is_new: bool

    @classmethod
    def of(
        cls, model: Model | None, weights: str | Path | None, start: RunStart[TrainConfig]
    ) -> "_Agreed":
        """Open the network and complete the given configuration with that of its run."""
        stored = open_network(start.folder.path if model is None else model, weights)
        config = start.config
        if not start.resuming:
            stored.network()  # raises if its weights do not fit
            inherited = given_keys(inherited_config(stored, config))
            config = validate(TrainConfig, merged(inherited, given_keys(config)), "configuration")
        inherits = start.resuming and (start.folder / layout.INHERITED).is_file()
        is_new = stored.weights is None and not inherits
        return cls(stored, config, start.earlier, torch.get_num_threads(), is_new)

    def prepare(self, reporter: Reporter, processes: Processes) -> "_Prepared":
        """Check everything that can be checked before training, and find the accelerator."""
        engine = engine_for(self.config.accelerator, self.config.precision, processes)
        check_recipe(self.config)
        check_tracking(self.config)
        dataset = _open_data(self.stored, self.config, self.earlier)
        report_data(dataset, reporter, skips_corrupt=self.config.skip_corrupt)
        config = resolve_config(self.config, dataset)
        dataset = hold_out(dataset, config, reporter)
        check_batch_size(config, processes)
        check_agreement(config, dataset, processes)
        architecture = for_classes(self.stored, dataset)
        teacher = open_teacher(config, dataset, Augmenter.of(dataset, config.augment), engine)
        return _Prepared(config, dataset, architecture, engine, self.is_new, teacher)


@dataclass(frozen=True)
class _Prepared:
    """A training about to begin.

    Args:
        architecture: the network, with a head for the classes of the images.
        is_new: whether it begins with untrained weights.
        teacher: a network to learn from.
    """

    config: TrainConfig
    dataset: Dataset
    architecture: Architecture
    engine: Engine
    is_new: bool
    teacher: Teacher | None

    @property
    def augmenter(self) -> Augmenter:
        """The configured augmentation."""
        return Augmenter.of(self.dataset, self.config.augment)

    def train(
        self,
        network: Network,
        folder: RunFolder | None,
        reporter: Reporter,
        checkpoint: Mapping[str, Any] | None,
        tracker: Tracker | None = None,
    ) -> Network:
        """Train a network from the start or from a checkpoint; returns it."""
        config = self.config
        set_trained(network, config.trainable)
        training = NetworkTraining.configured(
            *("train", network, self.dataset, config),
            num_epochs=config.epochs,
            engine=self.engine,
            teacher=self.teacher,
            is_new=self.is_new,
        )
        train_network(
            *(training, folder, reporter, checkpoint),
            num_images=config.resolution_images,
            checkpoint_seconds=config.checkpoint_seconds,
            tracker=tracker,
        )
        return training.network

    def tested(
        self, network: Network, folder: RunFolder | None, reporter: Reporter
    ) -> dict[str, Any]:
        """The fields of the result that describe training and accuracy."""
        return outcome(
            network, self.dataset, self.augmenter, folder, reporter, self.engine, self.config.keep
        )


def _lead(agreed: _Agreed, start: RunStart[TrainConfig], processes: Processes) -> None:
    """Train and write, as the main process or the only one."""
    folder, stored = start.folder, agreed.stored
    prepared = agreed.prepare(start.reporter, processes)
    untrained = build_subnet(prepared.architecture)
    set_trained(untrained, prepared.config.trainable)  # raises if there is nothing to train
    taught_by = None if prepared.teacher is None else prepared.teacher.digest
    start.create(prepared.config, untrained, prepared.dataset, prepared.engine, taught_by)
    keep_copies(stored.folder, folder.path)
    kept = _keep_start(folder, StoredNetwork(prepared.architecture, weights=stored.weights))
    checkpoint = processes.from_main(start.checkpoint())
    network = kept.network(seed=prepared.config.seed)
    with tracking(prepared.config, folder, start.reporter) as tracker:
        network = prepared.train(network, folder, start.reporter, checkpoint, tracker)
    save_tensors(network.state_dict(), folder / layout.WEIGHTS)
    tested = prepared.tested(network, folder, start.reporter)
    params, macs = count_network(build_subnet(kept.architecture), kept.architecture.resolution)
    result = TrainResult(
        run=folder.path,
        architecture=folder / layout.ARCHITECTURE,
        params=params,
        macs=macs,
        notes=notes_of(folder.path),
        **tested,
    )
    folder.write_result(result.content())


def _follow(processes: Processes) -> TrainResult:
    """Train along with the main process."""
    silent = Reporter(silent=True)
    agreed: _Agreed | None = processes.from_main()
    if agreed is not None:
        torch.set_num_threads(agreed.threads)
        prepared = agreed.prepare(silent, processes)
        checkpoint: dict[str, Any] | None = processes.from_main()
        # Its weights come from the main process.
        network = prepared.train(build_subnet(prepared.architecture), None, silent, checkpoint)
        prepared.tested(network, None, silent)
    return processes.from_main()


def _open_data(stored: StoredNetwork, given: TrainConfig, earlier: EarlierData | None) -> Dataset:
    """Load the images, at a resolution that suits the network.

    If they have the classes that it was trained for, they are normalised as in that training: a
    search that started from a pre-trained network has used the normalisation of that one.

    Raises:
        QuadranasError: unsuitable images or resolution.
    """
    if "train_resolution" in given.model_fields_set:
        stored.architecture.adapted(resolution=given.train_resolution)
    dataset = open_data(given, stored.architecture.resolution, earlier=earlier)
    stored.architecture.adapted(resolution=dataset.resolution)
    seen = stored.preprocessing
    if seen is None or seen.class_names != dataset.class_names:
        return dataset
    return replace(dataset, mean=seen.mean, std=seen.std)


def _keep_start(folder: RunFolder, stored: StoredNetwork) -> StoredNetwork:
    """Copy the network and the weights it starts from into the folder, once.

    Returns: the copy in the folder.

    Raises:
        QuadranasError: the folder holds another network.
    """
    path, weights = folder / layout.ARCHITECTURE, folder / layout.INHERITED
    if not path.is_file():
        if stored.weights is not None:
            save_tensors(stored.network().state_dict(), weights)
        stored.architecture.save(path)
    kept = load_architecture(path)
    if kept != stored.architecture:
        raise QuadranasError(
            f"cannot resume {folder.path}: it trains {kept.name!r}, not the current "
            f"{stored.architecture.name!r}",
            f"Continue it with: {resume_command('train', folder.path)}",
        )
    return StoredNetwork(kept, weights=weights if weights.is_file() else None)
