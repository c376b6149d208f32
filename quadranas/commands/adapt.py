"""adapt: give a pre-trained network quadratic terms, as a folder that `train` continues from."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from quadranas.conversion.adaptation import Trained, adaptations, quadratic_parameters, set_trained
from quadranas.conversion.pretrained import WeightReport, load_pretrained
from quadranas.conversion.selection import select_layers
from quadranas.layers.replacement import changed
from quadranas.network.counting import count_network
from quadranas.network.skeleton import Network
from quadranas.network.weights import save_tensors
from quadranas.runs import layout
from quadranas.runs.config import DataConfig, given_keys
from quadranas.runs.config_file import with_header
from quadranas.runs.stored_network import StoredNetwork, inherited_config
from quadranas.runs.whole_folder import whole_folder
from quadranas.space.architecture import Architecture


def adapt_network(
    stored: StoredNetwork,
    output: Path,
    *,
    weights: str | None = None,
    rank: int = 1,
    dilation: int = 2,
    layers: Sequence[str] = (),
    train: Trained = "all",
    seed: int = 0,
) -> dict[str, Any]:
    """Write an adapted network that computes what the pre-trained one does, ready to be trained.

    The folder holds `architecture.json`, `subnet.safetensors` and, as far as the network comes
    from a run, its `preprocessing.json` and the training keys of its `config.yaml`.

    Args:
        output: a new folder; it appears whole or not at all.
        weights: what to start from instead of the run's own (`load_pretrained`).
        rank, dilation: of the quadratic terms (`quadranas.layers.adapted`).
        layers: patterns of the names of the layers to adapt; all if none.
        train: what training will move; kept in `config.yaml` as `trainable`.
        seed: of the quadratic terms.

    Returns: the counts of both networks, the adapted layers, what became of foreign weights.

    Raises:
        QuadranasError: no pre-trained weights, or weights, layers, rank or folder do not serve.
    """
    network, report = _pretrained(stored, weights, seed)
    before = count_network(network, stored.architecture.resolution)
    changes = adaptations(select_layers(network, list(layers) or None), rank, dilation)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        adapted = changed(network, changes)
    set_trained(adapted, train)
    after = count_network(adapted, stored.architecture.resolution)
    base = stored.architecture
    architecture = base.model_copy(
        update={
            "name": f"{base.name} adapted",
            "space": "",
            "changes": (*base.changes, *changes),
            "provenance": {"adapted_from": base.name},
        }
    )
    _write(output, stored, architecture, adapted, train)
    return {
        "folder": str(output),
        "adapted_from": base.name,
        "layers": [change.name for change in changes],
        "rank": rank,
        "dilation": dilation,
        "train": train,
        "params": after[0],
        "macs": after[1],
        "params_before": before[0],
        "macs_before": before[1],
        "quadratic_params": sum(p.numel() for p in quadratic_parameters(adapted).values()),
        "weights": asdict(report) if report else None,
    }


def _pretrained(
    stored: StoredNetwork, weights: str | None, seed: int
) -> tuple[Network, WeightReport | None]:
    if weights is None:
        stored.require_weights()
        return stored.network(seed=seed), None
    network = StoredNetwork(stored.architecture).network(seed=seed)
    return network, load_pretrained(network, weights)


def _write(
    output: Path,
    stored: StoredNetwork,
    architecture: Architecture,
    network: Network,
    train: Trained,
) -> None:
    config = given_keys(inherited_config(stored, DataConfig())) | {"trainable": train}
    with whole_folder(output) as folder:
        architecture.save(folder / layout.ARCHITECTURE)
        save_tensors(network.state_dict(), folder / layout.WEIGHTS)
        folder.write_config(with_header("adapt", config))
        if stored.preprocessing is not None:
            folder.keep_preprocessing(stored.preprocessing)
