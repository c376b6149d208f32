"""derive: decode a trained supernet again, for any device and budget."""

from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file

from quadranas.data.preprocessing import load_preprocessing
from quadranas.errors import QuadranasError
from quadranas.files import read_yaml
from quadranas.latency.contract import Contract
from quadranas.latency.device import Device
from quadranas.latency.table import build_command
from quadranas.latency.table_files import find_priced, load_table
from quadranas.measurement.verification import measure_network
from quadranas.network.skeleton import build_subnet
from quadranas.network.weights import load_tensors, save_tensors
from quadranas.reporter import Reporter
from quadranas.runs.resume import resume_command
from quadranas.runs.run_folder import RunFolder
from quadranas.runs.whole_folder import whole_folder
from quadranas.space.space_file import load_space, space_files
from quadranas.strategies.derivation import decoding_limits, derive_architecture, describe
from quadranas.strategies.limits import feasibility
from quadranas.strategies.scores import load_scores
from quadranas.supernet.supernet import build_supernet

NEEDED = (
    "config.yaml",
    "space.yaml",
    "preprocessing.json",
    "gates.json",
    "supernet.safetensors",
)


def derive(
    run: Path,
    device: Device,
    contract: Contract,
    output: Path,
    reporter: Reporter,
    *,
    max_params: int | None = None,
    max_macs: int | None = None,
    table: Path | None = None,
    device_file: str = "",
) -> dict[str, Any]:
    """Write the best network of a run's supernet for a device and a budget, with its weights.

    The weights are inherited from the supernet; `quadranas train` on the output trains them on.

    Args:
        run: a search's folder whose supernet is trained.
        output: a new folder, laid out like a run's.
        table: this very latency table instead of the usual one.
        max_params, max_macs: upper bounds on the network.
        device_file: where the device came from if it is the user's own; for messages.

    Returns: the content of `result.json`; accuracy is none, nothing was tested.

    Raises:
        QuadranasError: no trained supernet there, an infeasible budget, or a folder in the way.
    """
    folder = RunFolder(run)
    RunFolder(output).refuse_content()
    for name in NEEDED:
        if not (folder / name).is_file():
            unfinished = folder.is_run and not folder.is_finished
            raise QuadranasError(
                f"{run} holds no trained supernet: {name} is missing",
                f"Finish it with: {resume_command('search', run)}"
                if unfinished
                else "Name the folder of a run of `quadranas search`.",
            )
    preprocessing = load_preprocessing(folder / "preprocessing.json")
    space = load_space(str(folder / "space.yaml"))
    space = space.with_num_classes(len(preprocessing.class_names))
    config = read_yaml(folder / "config.yaml", "configuration")
    command = build_command(_named(folder, config), device_file or device.name)
    priced = find_priced(space, device.name, _table(device, folder, table), command=command)
    reporter.message(feasibility(space, priced, contract))
    scores = load_scores(folder / "gates.json", space)
    limits = decoding_limits(contract, priced.table, max_params=max_params, max_macs=max_macs)
    architecture = derive_architecture(space, scores, priced.table, limits, contract)
    supernet = build_supernet(space, seed=0)
    path = folder / "supernet.safetensors"
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise QuadranasError(f"cannot read weights {path}: {error}") from error
    load_tensors(supernet, tensors, str(path))
    given: dict[str, Any] = {"device": device_file or device.name, "table": None}
    given |= {"budget": f"{contract.budget_ms!r}ms"}
    given |= {"confidence": contract.confidence, "tolerance": contract.tolerance}
    given |= {"max_params": max_params, "max_macs": max_macs}
    inherited = supernet.subnet_tensors(architecture)
    network = build_subnet(architecture)
    load_tensors(network, inherited, str(path))
    measured_ms = measure_network(architecture, network, device, priced, reporter)
    result = describe(
        output, architecture, priced, contract, accuracy=None, measured_ms=measured_ms
    )
    with whole_folder(output) as target:
        save_tensors(inherited, target / "subnet.safetensors")
        preprocessing.save(target / "preprocessing.json")
        priced.table.save(target / "table.json")
        target.write_config(config | given)
        architecture.save(target / "architecture.json")
        target.write_result(result)
    return result


def _named(folder: RunFolder, config: dict[str, Any]) -> str:
    """How to name the run's space on the command line."""
    name = config.get("space")
    return name if name in space_files() else str(folder / "space.yaml")


def _table(device: Device, folder: RunFolder, table: Path | None) -> Path | None:
    """The table asked for, else the run's own if it is the device's; none: the usual one."""
    own = folder / "table.json"
    if table is None and own.is_file() and load_table(own).header.device == device.name:
        return own
    return table
