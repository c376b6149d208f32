"""convert: write a network with quadratic layers, or a trained one with fewer of them.

Source: QuadraLib, Xu et al., MLSys 2022 (arXiv:2204.01701), the auto-builder.
"""

import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from quadranas.conversion.conversion import plan_conversion
from quadranas.conversion.importance import RankedLayer, pick, plot_ranking, rank_layers
from quadranas.conversion.reduction import remove, revert
from quadranas.conversion.selection import matching
from quadranas.errors import QuadranasError
from quadranas.files import write_atomically, write_json
from quadranas.layers.replacement import quadratic_layers
from quadranas.network.counting import count_network
from quadranas.network.skeleton import Network, build_subnet
from quadranas.network.weights import load_tensors, save_tensors
from quadranas.runs import layout
from quadranas.runs.config import DataConfig
from quadranas.runs.config_file import read_config_file, with_header
from quadranas.runs.run_folder import RunFolder
from quadranas.runs.stored_network import StoredNetwork, open_test_images
from quadranas.runs.whole_folder import whole_folder
from quadranas.space.architecture import Architecture, LayerChange


def convert_network(
    stored: StoredNetwork,
    output: Path,
    *,
    form: str = "hadamard",
    layers: Sequence[str] = (),
    norm: bool = False,
) -> dict[str, Any]:
    """Write a network with its layers made quadratic, untrained.

    A run's configuration goes along, so that `quadranas train` takes the run's data.

    Args:
        output: a new folder, or a new file whose name ends in `.json`.
        layers: patterns of the layers' paths; all but the first and the last one if none.

    Returns: path, params and macs before and after, and what was done with every layer.

    Raises:
        QuadranasError: nothing to replace, or the output is in the way.
    """
    _refuse_existing(output)
    architecture = stored.architecture
    before = _on_meta(architecture)
    report = plan_conversion(before, form, list(layers) or None, norm)
    changes = [layer.change for layer in report if layer.change]
    converted = _rewritten(architecture, (*architecture.changes, *changes), "quadratic")
    params, macs = count_network(_on_meta(converted), architecture.resolution)
    params_before, macs_before = count_network(before, architecture.resolution)
    if output.suffix == ".json":
        converted.save(output)
    else:
        with whole_folder(output) as folder:
            _copy_run(stored, folder)
            converted.save(folder / layout.ARCHITECTURE)
    return {
        "path": str(output),
        "params_before": params_before,
        "params": params,
        "macs_before": macs_before,
        "macs": macs,
        "replaced": [change.name for change in changes],
        "kept": [
            {"name": layer.name, "kind": layer.kind, "reason": layer.reason}
            for layer in report
            if not layer.change
        ],
    }


def reduce_network(
    stored: StoredNetwork,
    output: Path,
    *,
    num_removed: int = 0,
    num_reverted: int = 0,
    layers: Sequence[str] = (),
    data: DataConfig | None = None,
) -> dict[str, Any]:
    """Write a trained network without its least important quadratic layers.

    The layers are ranked on the test images. The first ones of the ranking that can be removed
    are; of those that remain, the first ones become what they were before their conversion. What
    is left of the weights goes along, so that `quadranas train` on the output trains them on.

    Args:
        output: a new folder, laid out like a run's, with the ranking as JSON and as a picture.
        layers: patterns of the layers' paths, of which one has to fit a layer that is ranked.
        data: which images to rank on; by default those of the run that the network lies in.

    Raises:
        QuadranasError: no weights, no quadratic layers, fewer of them than are to go, or the
            output is in the way.
    """
    stored.require_weights()
    if output.suffix == ".json":
        raise QuadranasError(
            f"the output {output} is a file, but weights go along with a reduced network",
            "Name a folder with --output.",
        )
    RunFolder(output).refuse_content()
    network = stored.network()
    names = matching(list(quadratic_layers(network)), layers)
    if not names:
        raise QuadranasError(
            f"{stored.architecture.name} has no quadratic layer to rank",
            "Convert it first: quadranas convert ARCH --output FOLDER; then train the folder.",
        )
    images = open_test_images(stored, data or DataConfig())
    size = images.dataset.resolution
    example = torch.zeros(1, 3, size, size)
    ranking = rank_layers(network, images.accuracy, example, names)
    removed = pick(ranking, num_removed, "remove") if num_removed else []
    rest = [layer for layer in ranking if layer.name not in removed]
    rest = _converted_ones(rest, stored.architecture)
    reverted = pick(rest, num_reverted, "revert") if num_reverted else []
    smaller = remove(network, removed) if removed else network
    smaller = revert(smaller, reverted) if reverted else smaller
    reduced = _reduced(stored.architecture, removed, reverted)
    load_tensors(build_subnet(reduced), smaller.state_dict(), "the reduced network")
    params, macs = count_network(smaller, reduced.resolution)
    result = {
        "run": str(output),
        "architecture": str(output / layout.ARCHITECTURE),
        "params": params,
        "macs": macs,
        "accuracy": images.accuracy(smaller),
    }
    content = {
        "data": images.dataset.name,
        "num_images": len(images.dataset.test),
        "removed": removed,
        "reverted": reverted,
        "ranking": [layer.as_json() for layer in ranking],
    }
    with whole_folder(output) as folder:
        _copy_run(stored, folder)
        save_tensors(smaller.state_dict(), folder / layout.WEIGHTS)
        reduced.save(folder / layout.ARCHITECTURE)
        write_json(folder / "importance.json", content)
        write_atomically(folder / "importance.png", _picture(ranking))
        folder.write_result(result)
    return result | content


def _refuse_existing(output: Path) -> None:
    if output.suffix != ".json":
        RunFolder(output).refuse_content()
    elif output.exists():
        raise QuadranasError(f"the output {output} exists already", "Choose another --output.")


def _on_meta(architecture: Architecture) -> Network:
    """The network without memory for its weights: enough to see its layers and to count."""
    with torch.device("meta"):
        return build_subnet(architecture)


def _rewritten(
    architecture: Architecture, changes: Iterable[LayerChange], word: str
) -> Architecture:
    """An architecture with other changes; what was known of its latency holds no more."""
    return architecture.model_copy(
        update={
            "name": f"{architecture.name.removesuffix(f'-{word}')}-{word}",
            "space": "",
            "changes": tuple(changes),
            "provenance": {"converted_from": architecture.name},
        }
    )


def _reduced(
    architecture: Architecture, removed: Sequence[str], reverted: Sequence[str]
) -> Architecture:
    gone = {*removed, *reverted}
    kept = [change for change in architecture.changes if change.name not in gone]
    removals = [LayerChange(name=name, kind="removed") for name in removed]
    return _rewritten(architecture, (*kept, *removals), "reduced")


def _converted_ones(
    ranking: Sequence[RankedLayer], architecture: Architecture
) -> list[RankedLayer]:
    """Those whose quadratic form is a change, not what the operation itself is."""
    changed = {change.name for change in architecture.changes if change.kind == "quadratic"}
    return [layer for layer in ranking if layer.name in changed]


def _copy_run(stored: StoredNetwork, folder: RunFolder) -> None:
    """What a training on the output inherits: the configuration and the preprocessing."""
    if stored.preprocessing is not None:
        stored.preprocessing.save(folder / layout.PREPROCESSING)
    config = stored.folder / layout.CONFIG if stored.folder else None
    if config is not None and config.is_file():
        folder.write_config(with_header("convert", read_config_file(config).keys))


def _picture(ranking: Sequence[RankedLayer]) -> bytes:
    buffer = io.BytesIO()
    plot_ranking(ranking).savefig(buffer, dpi=120)
    return buffer.getvalue()
