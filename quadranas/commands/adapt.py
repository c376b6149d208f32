"""adapt: give a pre-trained network quadratic terms, as a folder that `train` continues from."""

from collections.abc import Sequence
from pathlib import Path

import torch

from quadranas.conversion.adaptation import Trained, adaptations, quadratic_parameters, set_trained
from quadranas.conversion.pretrained import WeightReport, load_pretrained
from quadranas.conversion.selection import select_layers
from quadranas.layers.replacement import changed
from quadranas.network.counting import count_network
from quadranas.network.skeleton import Network
from quadranas.network.weights import save_tensors
from quadranas.runs import layout
from quadranas.runs.config import TrainConfig
from quadranas.runs.run_device import keep_copies
from quadranas.runs.stored_network import Model, StoredNetwork, open_network
from quadranas.runs.whole_folder import whole_folder
from quadranas.space.architecture import Architecture, LayerChange
from quadranas.validation import CommandResult, check_seed


class AdaptResult(CommandResult):
    """A network with quadratic terms that are zero, ready to be trained.

    Args:
        folder: the folder that was written.
        adapted_from: the name of the pre-trained network.
        layers: paths of the adapted layers.
        rank: rank of the quadratic terms: the number of products per output.
        dilation: dilation of their kernels, in pixels.
        train: the parameters to train: `all`, or only the `quadratic` terms.
        params, macs: number of parameters and multiply-accumulates of the adapted network.
        params_before, macs_before: number of parameters and multiply-accumulates before.
        quadratic_params: the number of parameters in the quadratic terms.
        weights: which tensors of the given weights were used; None if none were given.
    """

    folder: Path
    adapted_from: str
    layers: tuple[str, ...]
    rank: int
    dilation: int
    train: Trained
    params: int
    macs: int
    params_before: int
    macs_before: int
    quadratic_params: int
    weights: WeightReport | None


def adapt(
    model: Model,
    *,
    output: str | Path,
    weights: str | Path | None = None,
    rank: int = 1,
    dilation: int = 2,
    layers: Sequence[str] = (),
    train: Trained = "all",
    seed: int = 0,
) -> AdaptResult:
    """Write a pre-trained network with quadratic terms that start at zero.

    The network computes what the pre-trained one does, until it is trained. A run's preprocessing,
    configuration, device and table are copied, so that `train` continues from the output.

    Args:
        model: an architecture file, a run folder, the name of a model, or an opened network.
        output: a new folder; it is written completely or not at all.
        weights: pre-trained weights to use instead of the run's own: a file, or `timm:NAME`.
        rank, dilation: rank and dilation of the quadratic terms (`quadranas.layers.adapted`).
        layers: patterns of the paths of the layers to adapt. Default: all.
        train: the parameters that training changes, `all` or `quadratic`.
        seed: random seed of the quadratic terms.

    Raises:
        QuadranasError: no weights, arguments that do not fit the network, or an existing output.
    """
    check_seed(seed)
    stored = open_network(model)
    base, (network, report) = stored.architecture, _pretrained(stored, weights, seed)
    before = count_network(network, base.resolution)
    changes = adaptations(select_layers(network, list(layers) or None), rank, dilation)
    adapted = _adapted(network, changes, train, seed)
    params, macs = count_network(adapted, base.resolution)
    _write(Path(output), stored, _adapted_architecture(base, changes), adapted, train)
    return AdaptResult(
        folder=Path(output),
        adapted_from=base.name,
        layers=tuple(change.name for change in changes),
        rank=rank,
        dilation=dilation,
        train=train,
        params=params,
        macs=macs,
        params_before=before[0],
        macs_before=before[1],
        quadratic_params=sum(p.numel() for p in quadratic_parameters(adapted).values()),
        weights=report,
    )


def _pretrained(
    stored: StoredNetwork, weights: str | Path | None, seed: int
) -> tuple[Network, WeightReport | None]:
    if weights is None:
        stored.require_weights()
        return stored.network(seed=seed), None
    network = StoredNetwork(stored.architecture).network(seed=seed)
    return network, load_pretrained(network, weights)


def _adapted(
    network: Network, changes: Sequence[LayerChange], train: Trained, seed: int
) -> Network:
    """The network with random quadratic terms, drawn from a seed."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        adapted = changed(network, changes)
    set_trained(adapted, train)
    return adapted


def _adapted_architecture(base: Architecture, changes: Sequence[LayerChange]) -> Architecture:
    return base.model_copy(
        update={
            "name": f"{base.name} adapted",
            "space": "",
            "changes": (*base.changes, *changes),
            "provenance": base.origin_of("adapted_from"),
        }
    )


def _write(
    output: Path,
    stored: StoredNetwork,
    architecture: Architecture,
    network: Network,
    train: Trained,
) -> None:
    with whole_folder(output) as folder:
        architecture.save(folder / layout.ARCHITECTURE)
        save_tensors(network.state_dict(), folder / layout.WEIGHTS)
        keep_copies(stored.folder, folder.path)
        stored.hand_on(folder, "adapt", TrainConfig.model_fields, trainable=train)
