"""profile: parameters and MACs of a model, per operation."""

from typing import Any

from quadranas.space.architecture import Architecture
from quadranas.space.cost import count_macs, count_params


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
