"""convert: write a network with quadratic layers, or a trained one with fewer of them.

Source: QuadraLib, Xu et al., MLSys 2022 (arXiv:2204.01701), the auto-builder.
"""

import io
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

import torch

from quadranas.acceleration.accelerator import Precision
from quadranas.acceleration.engine import Engine, engine_for
from quadranas.acceleration.processes import ALONE
from quadranas.conversion.conversion import plan_conversion
from quadranas.conversion.importance import RankedLayer, pick, plot_ranking, rank_layers
from quadranas.conversion.reduction import remove as remove_layers
from quadranas.conversion.reduction import revert as revert_layers
from quadranas.conversion.selection import matching
from quadranas.errors import QuadranasError
from quadranas.files import refuse_existing, write_atomically, write_json
from quadranas.layers.replacement import quadratic_layers
from quadranas.network.counting import count_network
from quadranas.network.skeleton import Network, build_on_meta, build_subnet
from quadranas.network.weights import load_tensors, save_tensors
from quadranas.runs import layout
from quadranas.runs.config import DataConfig, given_keys, load_config
from quadranas.runs.run_device import keep_copies
from quadranas.runs.run_folder import RunFolder
from quadranas.runs.stored_network import (
    HeldOutImages,
    Model,
    StoredNetwork,
    open_network,
    open_test_images,
)
from quadranas.runs.whole_folder import whole_folder
from quadranas.space.architecture import Architecture, LayerChange
from quadranas.validation import CommandResult, Frozen

DEFAULT_FORM = "hadamard"
IN_RESULT_FILE = {"run", "architecture", "params", "macs", "accuracy"}
IN_RANKING_FILE = {"data", "num_images", "removed", "reverted", "ranking"}


class KeptLayer(Frozen):
    """A layer that a conversion does not replace, and why.

    Args:
        name, kind: path and class of the layer.
        reason: why the layer is not replaced.
    """

    name: str
    kind: str
    reason: str


class ConvertResult(CommandResult):
    """A network that was made quadratic.

    Args:
        path: the folder or architecture file that was written.
        params_before, params: number of parameters before and after the conversion.
        macs_before, macs: number of multiply-accumulates before and after the conversion.
        replaced: paths of the layers that are quadratic now.
        kept: the other layers, and why they were not replaced.
    """

    path: Path
    params_before: int
    params: int
    macs_before: int
    macs: int
    replaced: tuple[str, ...]
    kept: tuple[KeptLayer, ...]


class ReduceResult(CommandResult):
    """A network from which layers were removed or in which layers were reverted.

    Args:
        run: the folder that was written.
        architecture: its architecture file.
        params, macs: number of parameters and multiply-accumulates of the network.
        accuracy: top-1 accuracy on the test images, from 0 to 1, before any further training.
        data: the data set of the test images.
        resolution: their size in pixels, that of deployment.
        num_images: number of test images.
        removed, reverted: paths of these layers.
        ranking: all ranked layers, the least important first.
        num_skipped: the number of corrupt images that were skipped; None without `skip_corrupt`.
    """

    run: Path
    architecture: Path
    params: int
    macs: int
    accuracy: float
    data: str
    resolution: int
    num_images: int
    removed: tuple[str, ...]
    reverted: tuple[str, ...]
    ranking: tuple[RankedLayer, ...]
    num_skipped: int | None = None


def convert(
    model: Model,
    *,
    output: str | Path,
    form: str | None = None,
    layers: Sequence[str] = (),
    norm: bool = False,
    remove: int | None = None,
    revert: int | None = None,
    data: str | Path | None = None,
    val: str | Path | None = None,
    skip_corrupt: bool | None = None,
    weights: str | Path | None = None,
    accelerator: str = "auto",
    precision: Precision = "fp32",
) -> ConvertResult | ReduceResult:
    """Make layers of a network quadratic, or remove the least important ones of a trained one.

    Without `remove` and `revert`, layers become quadratic, with random weights. With one of these,
    the quadratic layers of a trained network are ranked on test images; the first removable ones
    are removed, the next ones become first-order again. `train` continues from the output.

    Args:
        model: an architecture file, a run folder, the name of a model, or an opened network.
        output: a new folder; for a conversion also a new file whose name ends in `.json`.
        form: kind of quadratic neuron (default `hadamard`).
        layers: patterns of the paths of the layers to convert or to rank. Default: all.
        norm: put a BatchNorm on every branch of the new layers.
        remove: number of quadratic layers to remove.
        revert: number of quadratic layers to make first-order again.
        data, val, skip_corrupt: images to rank layers on. Default: those of the run.
        weights: file of weights to use instead of the run's own.
        accelerator, precision: the hardware to rank layers on, as in `TrainingConfig`.

    Raises:
        QuadranasError: no suitable layers or weights, conflicting options, or an existing output.
    """
    given = {"data": data, "val": val, "skip_corrupt": skip_corrupt}
    images_of = load_config(
        DataConfig, None, **{key: value for key, value in given.items() if value is not None}
    )
    output = Path(output)
    if remove is None and revert is None:
        _refuse_given(
            (
                *given_keys(images_of),
                *(["weights"] if weights is not None else ()),
                *(["accelerator"] if accelerator != "auto" else ()),
                *(["precision"] if precision != "fp32" else ()),
            ),
            "needs --remove or --revert, which rank layers",
            "Omit it: a conversion needs no images, no weights and no accelerator.",
        )
        return _convert(open_network(model), output, form or DEFAULT_FORM, layers, norm)
    _refuse_given(
        ["form"] if form else ["norm"] if norm else [],
        "cannot be combined with --remove or --revert",
        "Convert first, train the result, then remove or revert layers of the trained run.",
    )
    engine = engine_for(accelerator, precision, ALONE)
    stored = open_network(model, weights)
    return _reduce(stored, output, remove, revert, layers, images_of, engine)


def _refuse_given(options: Iterable[str], reason: str, hint: str) -> None:
    """Refuse options that conflict with others; the error names the first one."""
    for name in options:
        raise QuadranasError(f"--{name.replace('_', '-')} {reason}", hint)


def _convert(
    stored: StoredNetwork, output: Path, form: str, layers: Sequence[str], norm: bool
) -> ConvertResult:
    _refuse_existing(output)
    architecture = stored.architecture
    before = build_on_meta(architecture)
    report = plan_conversion(before, form, list(layers) or None, norm)
    changes = [layer.change for layer in report if layer.change]
    converted = _rewritten(architecture, (*architecture.changes, *changes), "quadratic")
    params, macs = count_network(build_on_meta(converted), architecture.resolution)
    params_before, macs_before = count_network(before, architecture.resolution)
    if output.suffix == ".json":
        converted.save(output, replace=False)
    else:
        with whole_folder(output) as folder:
            _hand_on(stored, folder)
            converted.save(folder / layout.ARCHITECTURE)
    return ConvertResult(
        path=output,
        params_before=params_before,
        params=params,
        macs_before=macs_before,
        macs=macs,
        replaced=tuple(change.name for change in changes),
        kept=tuple(
            KeptLayer(name=layer.name, kind=layer.kind, reason=layer.reason)
            for layer in report
            if not layer.change
        ),
    )


def _reduce(
    stored: StoredNetwork,
    output: Path,
    num_removed: int | None,
    num_reverted: int | None,
    layers: Sequence[str],
    images_of: DataConfig,
    engine: Engine,
) -> ReduceResult:
    _refuse_unsuitable(stored, output)
    network = stored.network()
    names = _quadratic_names(stored, network, layers)
    images = open_test_images(stored, images_of)
    ranking = _ranked(network, images, names, engine)
    removed = [] if num_removed is None else pick(ranking, num_removed, "remove")
    rest = _converted_ones(ranking, removed, stored.architecture)
    reverted = [] if num_reverted is None else pick(rest, num_reverted, "revert")
    smaller = remove_layers(network, removed) if removed else network
    smaller = revert_layers(smaller, reverted) if reverted else smaller
    reduced = _reduced(stored.architecture, removed, reverted)
    load_tensors(build_subnet(reduced), smaller.state_dict(), "the reduced network")
    params, macs = count_network(smaller, reduced.resolution)
    result = ReduceResult(
        run=output,
        architecture=output / layout.ARCHITECTURE,
        params=params,
        macs=macs,
        accuracy=images.accuracy(smaller, engine),
        data=images.dataset.name,
        resolution=images.dataset.resolution,
        num_images=len(images.dataset.test),
        removed=tuple(removed),
        reverted=tuple(reverted),
        ranking=tuple(ranking),
        num_skipped=images.num_skipped,
    )
    _write_reduced(result, stored, smaller, reduced)
    return result


def _refuse_unsuitable(stored: StoredNetwork, output: Path) -> None:
    """Refuse a network or an output that does not suit a reduction, before any work."""
    stored.require_weights()
    if output.suffix == ".json":
        raise QuadranasError(
            f"the output {output} is a file, but a reduced network is written with its weights",
            "Name a folder with --output.",
        )
    _refuse_existing(output)


def _quadratic_names(
    stored: StoredNetwork, network: Network, patterns: Sequence[str]
) -> list[str]:
    names = matching(list(quadratic_layers(network)), patterns)
    if not names:
        raise QuadranasError(
            f"{stored.architecture.name} has no quadratic layer to rank",
            "Convert it first: quadranas convert ARCH --output FOLDER; then train the folder.",
        )
    return names


def _ranked(
    network: Network, images: HeldOutImages, names: Sequence[str], engine: Engine
) -> list[RankedLayer]:
    """Rank layers, at the resolution of the training, which is the cheaper one."""
    images = images.as_trained()
    size = images.dataset.resolution
    accuracy = partial(images.accuracy, engine=engine)
    return rank_layers(network, accuracy, torch.zeros(1, 3, size, size), names)


def _write_reduced(
    result: ReduceResult, stored: StoredNetwork, network: Network, architecture: Architecture
) -> None:
    ranking = result.model_dump(mode="json", include=IN_RANKING_FILE)
    with whole_folder(result.run) as folder:
        _hand_on(stored, folder)
        save_tensors(network.state_dict(), folder / layout.WEIGHTS)
        architecture.save(folder / layout.ARCHITECTURE)
        write_json(folder / layout.RANKING, ranking)
        write_atomically(folder / layout.RANKING_PLOT, _picture(result.ranking))
        folder.write_result(result.model_dump(mode="json", include=IN_RESULT_FILE))


def _hand_on(stored: StoredNetwork, folder: RunFolder) -> None:
    """Copy what the changed network keeps of the one it was made from."""
    stored.hand_on(folder, "convert")
    keep_copies(stored.folder, folder.path)


def _refuse_existing(output: Path) -> None:
    if output.suffix != ".json":
        RunFolder(output).refuse_content()
    else:
        refuse_existing(output)


def _rewritten(
    architecture: Architecture, changes: Iterable[LayerChange], word: str
) -> Architecture:
    """An architecture with other changes; recorded latencies, no longer valid, are dropped."""
    return architecture.model_copy(
        update={
            "name": f"{architecture.name.removesuffix(f'-{word}')}-{word}",
            "space": "",
            "changes": tuple(changes),
            "provenance": architecture.origin_of("converted_from"),
        }
    )


def _reduced(
    architecture: Architecture, removed: Sequence[str], reverted: Sequence[str]
) -> Architecture:
    dropped = {*removed, *reverted}
    kept = [change for change in architecture.changes if change.name not in dropped]
    removals = [LayerChange(name=name, kind="removed") for name in removed]
    return _rewritten(architecture, (*kept, *removals), "reduced")


def _converted_ones(
    ranking: Sequence[RankedLayer], removed: Sequence[str], architecture: Architecture
) -> list[RankedLayer]:
    """The layers that can be reverted: converted layers that are not removed."""
    changed = {change.name for change in architecture.changes if change.kind == "quadratic"}
    return [layer for layer in ranking if layer.name in changed and layer.name not in removed]


def _picture(ranking: Sequence[RankedLayer]) -> bytes:
    buffer = io.BytesIO()
    plot_ranking(ranking).savefig(buffer, dpi=120)
    return buffer.getvalue()
