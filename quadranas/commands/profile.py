"""profile: parameters, MACs and memory of a model, per operation or layer."""

from typing import TYPE_CHECKING, Any

from quadranas.space.architecture import Architecture
from quadranas.space.cost import count_macs, count_params

if TYPE_CHECKING:
    from torch import Tensor

    from quadranas.memory import MemoryProfile


def profile(architecture: Architecture) -> dict[str, Any]:
    """The counts of a network and of each of its operations, at batch 1."""
    layers = [
        {
            "block": block.name,
            "op": str(op),
            "params": count_params(op),
            "macs": count_macs(op),
        }
        for block in architecture.blocks
        for op in block.ops
    ]
    return {
        "model": architecture.name,
        "resolution": architecture.resolution,
        "num_classes": architecture.num_classes,
        "params": count_params(architecture),
        "macs": count_macs(architecture),
        "layers": layers,
    }


def profile_network_memory(architecture: Architecture, batch: int) -> dict[str, Any]:
    """Memory of a network at its resolution, and with every quadratic layer differentiated as is.

    The training step is that of AdamW on the cross entropy; see `memory.profile_memory`. The
    values `direct` are those without memory-efficient back-propagation, None where it changes
    nothing. MACs are those of one image.
    """
    import torch

    from quadranas.layers.replacement import quadratic_layers, set_memory_efficient
    from quadranas.memory import profile_memory
    from quadranas.network.skeleton import build_subnet

    with torch.device("meta"):
        network = build_subnet(architecture)
    shape = (batch, 3, architecture.resolution, architecture.resolution)
    found = profile_memory(network, shape, loss=_classification)
    direct = None
    if quadratic_layers(network):
        set_memory_efficient(network, False)
        direct = profile_memory(network, shape, loss=_classification)
    return {
        "model": architecture.name,
        "resolution": architecture.resolution,
        "num_classes": architecture.num_classes,
        "batch": batch,
        "params": found.params,
        "macs": found.macs,
        **_totals(found),
        "inference_peak_bytes": found.inference.num_bytes,
        "training_peak_phase": found.training.phase,
        "training_parts_bytes": found.training.parts,
        "inference_parts_bytes": found.inference.parts,
        "direct": direct and _totals(direct),
        "layers": _rows(found, direct or found),
    }


def _classification(logits: "Tensor") -> "Tensor":
    import torch
    from torch.nn import functional

    labels = torch.zeros(logits.shape[0], dtype=torch.long, device=logits.device)
    return functional.cross_entropy(logits, labels)


def _totals(found: "MemoryProfile") -> dict[str, int]:
    return {
        "saved_bytes": found.saved_bytes,
        "training_peak_bytes": found.training.num_bytes,
    }


def _rows(found: "MemoryProfile", direct: "MemoryProfile") -> list[dict[str, Any]]:
    direct_bytes = {layer.name: layer.saved_bytes for layer in direct.layers}
    return [
        {
            "name": layer.name,
            "kind": layer.kind,
            "params": layer.params,
            "macs": layer.macs,
            "saved_bytes": layer.saved_bytes,
            "saved_bytes_direct": direct_bytes.get(layer.name, 0),
        }
        for layer in found.layers
    ]
