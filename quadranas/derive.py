"""derive: decode a trained supernet again, for any device and budget."""

from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file

from quadranas.decode import Limits, check_budget, load_scores
from quadranas.derivation import PricedTable, derive_architecture, describe
from quadranas.errors import QuadranasError
from quadranas.evaluate import load_preprocessing
from quadranas.files import read_yaml
from quadranas.latency.device import Device
from quadranas.latency.table import find_table, load_table, locate_table
from quadranas.network import load_tensors
from quadranas.reporter import Reporter
from quadranas.run_folder import RunFolder, save_tensors
from quadranas.space import SearchSpace, load_space
from quadranas.supernet import build_supernet

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
    limits: Limits,
    output: Path,
    reporter: Reporter,
    *,
    table: Path | None = None,
) -> dict[str, Any]:
    """Write the best network of a run's supernet for a device and a budget, with its weights.

    The weights are inherited from the supernet; `quadranas train` on the output trains them on.

    Args:
        run: a search's folder whose supernet is trained.
        output: a new folder, laid out like a run's.
        table: this very latency table instead of the usual one.

    Returns: the content of `result.json`; accuracy is none, nothing was tested.

    Raises:
        QuadranasError: no trained supernet there, an infeasible budget, or a folder in the way.
    """
    folder = RunFolder(run)
    for name in NEEDED:
        if not (folder / name).is_file():
            raise QuadranasError(
                f"{run} holds no trained supernet: {name} is missing",
                f"Finish it with: quadranas search --resume --output {run}",
            )
    preprocessing = load_preprocessing(folder / "preprocessing.json")
    space = load_space(str(folder / "space.yaml"))
    space = space.with_num_classes(len(preprocessing.class_names))
    priced = _priced(space, device, folder, table)
    reporter.message(priced.feasibility(space, limits.budget_ms))
    check_budget(space, priced.table, limits.budget_ms)
    scores = load_scores(folder / "gates.json", space)
    architecture = derive_architecture(space, scores, priced.table, limits)
    supernet = build_supernet(space, seed=0)
    path = folder / "supernet.safetensors"
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise QuadranasError(f"cannot read weights {path}: {error}") from error
    load_tensors(supernet, tensors, str(path))
    target = RunFolder(output)
    target.create(needed_bytes=0)
    save_tensors(supernet.subnet_tensors(architecture), target / "subnet.safetensors")
    preprocessing.save(target / "preprocessing.json")
    priced.table.save(target / "table.json")
    given: dict[str, Any] = {"device": device.name, "budget": f"{limits.budget_ms!r}ms"}
    given |= {"max_params": limits.max_params, "max_macs": limits.max_macs, "table": None}
    target.write_config(read_yaml(folder / "config.yaml", "configuration") | given)
    architecture.save(target / "architecture.json")
    result = describe(output, architecture, priced, accuracy=None)
    target.write_result(result)
    return result


def _priced(
    space: SearchSpace, device: Device, folder: RunFolder, table: Path | None
) -> PricedTable:
    """The table asked for, else the run's own if it is the device's, else the usual one."""
    own = folder / "table.json"
    if table is None and own.is_file() and load_table(own).header.device == device.name:
        table = own
    path = locate_table(space.name, device.name, table)
    return PricedTable(path, find_table(space, device.name, path))
