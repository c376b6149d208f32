"""A pre-trained network that a search starts from: from a run, a file of weights, or timm."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quadranas.conversion.families import RESOLUTION, recognise
from quadranas.conversion.pretrained import TIMM, load_timm
from quadranas.data.dataset import Dataset, Triple
from quadranas.data.preprocessing import Preprocessing
from quadranas.errors import QuadranasError
from quadranas.network.checkpoint import without_prefixes
from quadranas.network.skeleton import Network, build_subnet
from quadranas.network.weights import (
    digest_of,
    joined_notes,
    load_tensors,
    read_tensors,
    save_tensors,
)
from quadranas.runs import layout
from quadranas.runs.pretrained_record import PretrainedNote, PretrainedRecord, pretrained_of
from quadranas.runs.stored_network import StoredNetwork, open_network
from quadranas.space.architecture import Architecture
from quadranas.space.catalog import find_folder


@dataclass(frozen=True)
class PretrainedNetwork:
    """A network with trained weights, and what is known about its images.

    Args:
        source: where it comes from, as given.
        family: what kind of network it is, for messages.
        architecture: the network in terms of this package.
        tensors: its weights and buffers by the names of this package, finite, on the processor.
        new: names of tensors that the checkpoint does not have: the factors of quadratic terms
            that are added to a first-order network. The terms are zero.
        notes: how the tensors were found.
        class_names: the classes that it tells apart; None if unknown.
        mean, std: its normalisation of pixels in [0, 1]; None if unknown.
        resolution: size of the images in its training, in pixels; None if unknown.
    """

    source: str
    family: str
    architecture: Architecture
    tensors: Mapping[str, Tensor]
    new: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()
    class_names: tuple[str, ...] | None = None
    mean: Triple | None = None
    std: Triple | None = None
    resolution: int | None = None

    def network(self) -> Network:
        """The network with its weights, in evaluation mode."""
        network = build_subnet(self.architecture)
        network.load_state_dict(dict(self.tensors))
        return network.eval()

    @property
    def digest(self) -> str:
        """Identifier of the weights."""
        return digest_of(self.tensors)[:16]

    def tells_apart(self, dataset: Dataset) -> bool:
        """Whether its classes are those of the data, as far as they are known."""
        if self.architecture.num_classes != dataset.num_classes:
            return False
        return self.class_names is None or self.class_names == dataset.class_names

    def prepared(self, dataset: Dataset) -> Dataset:
        """The data with the normalisation that the network was trained with, if it is known."""
        if self.mean is None or self.std is None:
            return dataset
        return replace(dataset, mean=self.mean, std=self.std)

    def keep(self, folder: Path, note: PretrainedNote) -> None:
        """Copy it into a run folder: the weights first, then what they are.

        Args:
            note: how the search uses it.
        """
        save_tensors(self.tensors, folder / layout.PRETRAINED_WEIGHTS)
        known = {name: getattr(self, name) for name in KEPT}
        record = PretrainedRecord(**note.model_dump(), **known, new=tuple(sorted(self.new)))
        record.save(folder / layout.PRETRAINED)


KEPT = ("architecture", "notes", "class_names", "mean", "std", "resolution")
"""Fields that the record of a network holds too."""


def open_pretrained(source: str | Path) -> PretrainedNetwork:
    """Open a pre-trained network.

    Args:
        source: a run folder, a `.safetensors` file, a torch file of tensors, or `timm:NAME` for
            weights that timm downloads.

    Raises:
        QuadranasError: it cannot be read, holds more than tensors, belongs to no known family, or
            its tensors are incomplete or not finite.
        MissingExtraError: timm is needed and not installed.
    """
    text = str(source)
    if text.startswith(TIMM):
        found = load_timm(text)
        network = _of_tensors(text, found.tensors, resolution=found.resolution)
        return replace(network, mean=found.mean, std=found.std, resolution=found.resolution)
    path, folder = Path(text), find_folder(text)
    if folder is not None:
        return _of_run(text, open_network(folder))
    if not path.exists():
        raise QuadranasError(
            f"there is no pre-trained network {text!r}",
            "Name a run folder, a .safetensors or torch file, timm:NAME, or own-model for your "
            "own model.",
        )
    beside = path.parent / layout.ARCHITECTURE
    if path.is_file() and path.suffix == ".safetensors" and beside.is_file():
        return _of_run(text, open_network(path.parent, path))
    read = read_tensors(path)
    return _of_tensors(text, read.tensors, note=read.note)


def kept_pretrained(folder: Path) -> PretrainedNetwork | None:
    """The pre-trained network that a run folder keeps; None if it keeps none.

    Raises:
        QuadranasError: its files are unreadable or do not belong together.
    """
    record = pretrained_of(folder)
    if record is None:
        return None
    weights = folder / layout.PRETRAINED_WEIGHTS
    tensors = checked_tensors(record.architecture, read_tensors(weights).tensors, str(weights))
    known = {name: getattr(record, name) for name in KEPT}
    network = PretrainedNetwork(
        record.source, record.family, tensors=tensors, new=frozenset(record.new), **known
    )
    if network.digest != record.digest:
        raise QuadranasError(
            f"{weights} is not the file that {layout.PRETRAINED} describes: digest "
            f"{network.digest}, expected {record.digest}",
            "Restore the file, or start a new run with another --output.",
        )
    return network


def _of_run(source: str, stored: StoredNetwork) -> PretrainedNetwork:
    stored.require_weights()
    architecture, seen = stored.architecture, stored.preprocessing
    if architecture.changes:
        raise QuadranasError(
            f"{source} has {len(architecture.changes)} replaced layers, first: "
            f"{architecture.changes[0].name}; such a network cannot be embedded in a supernet",
            "Name the run of the network before it was converted or adapted.",
        )
    assert stored.weights is not None
    read = read_tensors(stored.weights)
    tensors = checked_tensors(architecture, read.tensors, source)
    return PretrainedNetwork(
        source, _family(architecture), architecture, tensors, **_images_of(seen)
    )


def _images_of(seen: Preprocessing | None) -> dict[str, Any]:
    if seen is None:
        return {}
    names = ("class_names", "mean", "std", "resolution")
    return {name: getattr(seen, name) for name in names}


def _of_tensors(
    source: str, tensors: Mapping[str, Tensor], *, note: str = "", resolution: int = RESOLUTION
) -> PretrainedNetwork:
    plain = without_prefixes(tensors)
    found = recognise(plain.tensors, source, resolution)
    types = {
        str(t.dtype).removeprefix("torch.") for t in tensors.values() if t.is_floating_point()
    }
    converted = f"values of type {', '.join(sorted(types))}" if types - {"float32"} else ""
    notes = joined_notes(note, plain.note, converted)
    whole, new = completed_tensors(found.architecture, found.tensors)
    return PretrainedNetwork(
        source,
        found.family,
        found.architecture,
        checked_tensors(found.architecture, whole, source),
        new=new,
        notes=(notes,) if notes else (),
    )


def completed_tensors(
    architecture: Architecture, tensors: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], frozenset[str]]:
    """The tensors with those that a checkpoint may lack, and the names of new weights.

    Where a quadratic layer has its linear term `c` alone, factor `a` is zero, and `b` as drawn:
    the quadratic term is exactly zero, and the first gradient reaches `a`. Counters of BatchNorm,
    which old versions of PyTorch did not store, are zero.
    """
    whole, new = dict(tensors), set()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        drawn = build_subnet(architecture).state_dict()
    for name, tensor in drawn.items():
        stem, _, leaf = name.rpartition(".")
        layer, _, branch = stem.rpartition(".")
        alone = branch in ("a", "b") and f"{layer}.c.{leaf}" in tensors
        if name in whole or not (alone or leaf == "num_batches_tracked"):
            continue
        whole[name] = tensor if branch == "b" else torch.zeros_like(tensor)
        if alone:
            new.add(name)
    return whole, frozenset(new)


def checked_tensors(
    architecture: Architecture, tensors: Mapping[str, Tensor], source: str
) -> dict[str, Tensor]:
    """Tensors that fit an architecture and are finite, as it stores them."""
    network = build_subnet(architecture)
    load_tensors(network, tensors, source)
    return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}


def _family(architecture: Architecture) -> str:
    kinds = {op.kind for op in architecture.ops()}
    names = {
        "quadratic_depthwise": "QuadraNet",
        "quadratic_convnext": "quadratic ConvNeXt",
        "mbconv": "network of inverted bottlenecks",
        "quadratic_mbconv": "network of quadratic inverted bottlenecks",
    }
    return next((name for kind, name in names.items() if kind in kinds), "network")
