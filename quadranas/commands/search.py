"""search: train a supernet under a latency budget, decode it, fine-tune the network it found."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

from quadranas import __version__
from quadranas.data.preprocessing import Preprocessing
from quadranas.data.task import evaluate
from quadranas.errors import QuadranasError
from quadranas.files import write_atomically
from quadranas.measurement.verification import measure_network
from quadranas.network.skeleton import Network, build_subnet
from quadranas.network.weights import load_weights, save_tensors
from quadranas.reporter import Reporter
from quadranas.runs.config import SearchConfig
from quadranas.runs.resume import matching_config
from quadranas.runs.run_folder import BYTES_PER_WEIGHT, RunFolder
from quadranas.seeds import derived_seed
from quadranas.space.architecture import Architecture, load_architecture
from quadranas.strategies.derivation import derive_architecture, describe
from quadranas.supernet.supernet import Supernet, build_supernet
from quadranas.training.loop import run_phase
from quadranas.training.network_phase import NetworkTraining
from quadranas.training.search_setup import SearchSetup, prepare_search
from quadranas.training.supernet_phase import SupernetTraining

COPIES_ON_DISK = 8
"""Two checkpoints of weights and two moments each, the supernet's and the subnet's weights."""


def search(
    overrides: Mapping[str, Any],
    output: Path,
    reporter: Reporter,
    *,
    resume: bool = False,
    source: str | Path = "configuration",
) -> dict[str, Any]:
    """Find, train and test a network; returns the content of `result.json`.

    Args:
        overrides: keys of `SearchConfig` that were given; when resuming, they must agree with
            the run's.
        output: the run folder.
        source: where the overrides came from, for messages.

    Raises:
        QuadranasError: anything the user can mend, before training where it can be known.
    """
    folder = RunFolder(output)
    continuing = resume and folder.is_run
    if continuing:
        overrides = matching_config(SearchConfig, output, overrides, source)
        if folder.is_finished:
            reporter.message(f"{output} is finished already")
            return folder.result()
        folder.tidy()
    else:
        folder.refuse_content()
        if resume:
            if not {"device", "budget"} <= set(overrides):
                raise QuadranasError(
                    f"{output} holds no run to continue",
                    "Name another with --output, or begin one with --device and --budget.",
                )
            reporter.message(f"{output} holds no run to continue; beginning one")
    problem = prepare_search(dict(overrides), reporter, source, output if continuing else None)
    supernet = build_supernet(problem.space, seed=derived_seed(problem.config.seed, "supernet"))
    if not continuing:
        weights = sum(p.numel() for p in supernet.parameters())
        needed_bytes = weights * BYTES_PER_WEIGHT * COPIES_ON_DISK
        folder.create(needed_bytes, problem.config.model_dump(mode="json"))
    _keep_inputs(folder, problem)
    checkpoint = folder.latest_checkpoint(reporter) if continuing else None
    return _run(problem, supernet, folder, reporter, checkpoint)


def _keep_inputs(folder: RunFolder, problem: SearchSetup) -> None:
    """Copy what decides the result beside the configuration; what is there already stays.

    Raises:
        QuadranasError: the run was begun on other data.
    """
    if not (folder / "table.json").is_file():
        problem.priced.table.save(folder / "table.json")
    if not (folder / "space.yaml").is_file():
        content = problem.space_file.model_dump(mode="json", exclude_defaults=True)
        write_atomically(folder / "space.yaml", yaml.safe_dump(content, sort_keys=False))
    folder.keep_preprocessing(Preprocessing.of(problem.dataset))


def _run(
    problem: SearchSetup,
    supernet: Supernet,
    folder: RunFolder,
    reporter: Reporter,
    checkpoint: Mapping[str, Any] | None,
) -> dict[str, Any]:
    seconds = problem.config.checkpoint_seconds
    num_metrics = 0
    if checkpoint is None or checkpoint["phase"] == SupernetTraining.name:
        training = SupernetTraining(problem, supernet)
        if checkpoint is None:
            training.check()
        num_metrics = run_phase(training, folder, reporter, checkpoint, checkpoint_seconds=seconds)
        checkpoint = None
        architecture = _derive(problem, supernet, folder)
    else:
        architecture = load_architecture(folder / "architecture.json")
    finetuning = _finetuning(problem, folder, architecture)
    run_phase(
        finetuning,
        folder,
        reporter,
        checkpoint,
        checkpoint_seconds=seconds,
        num_metrics=num_metrics,
    )
    return _finish(problem, folder, architecture, finetuning.network, reporter)


def _derive(problem: SearchSetup, supernet: Supernet, folder: RunFolder) -> Architecture:
    """Decode the gates; write them, the supernet, and the architecture last."""
    scores = supernet.gates.scores(problem.space)
    scores.save(folder / "gates.json")
    save_tensors(supernet.state_dict(), folder / "supernet.safetensors")
    architecture = derive_architecture(
        problem.space, scores, problem.priced.table, problem.limits, problem.contract
    )
    save_tensors(supernet.subnet_tensors(architecture), folder / "inherited.safetensors")
    architecture.save(folder / "architecture.json")
    return architecture


def _finetuning(
    problem: SearchSetup, folder: RunFolder, architecture: Architecture
) -> NetworkTraining:
    """The derived network with the weights it inherits, ready to be trained on."""
    network = build_subnet(architecture)
    load_weights(network, folder / "inherited.safetensors")
    return NetworkTraining(
        "finetune",
        network,
        problem.dataset,
        problem.augmenter(),
        problem.config.weights,
        num_epochs=problem.config.schedule.finetune_epochs,
        batch_size=problem.config.batch_size,
        seed=problem.config.seed,
        inspected=problem.config.inspect,
    )


def _finish(
    problem: SearchSetup,
    folder: RunFolder,
    architecture: Architecture,
    network: Network,
    reporter: Reporter,
) -> dict[str, Any]:
    """Save the weights, test once, measure where the device is there, write the result."""
    save_tensors(network.state_dict(), folder / "subnet.safetensors")
    accuracy = evaluate(network, problem.dataset.test, problem.augmenter())
    measured_ms = measure_network(architecture, network, problem.device, problem.priced, reporter)
    result = describe(
        folder.path,
        architecture,
        problem.priced,
        problem.contract,
        accuracy=accuracy,
        measured_ms=measured_ms,
    )
    result["seed"] = problem.config.seed
    result["versions"] = {"quadranas": __version__, "torch": torch.__version__}
    folder.write_result(result)
    return result
