"""The quadratic toolkit: what QuadraLib offers beyond layers, for any PyTorch network."""

from quadranas.toolkit.adaptation import (
    adapt,
    load_adapted,
    quadratic_parameters,
    save_adapted,
    set_trained,
)
from quadranas.toolkit.pretrained import load_convnext, load_pretrained
from quadranas.toolkit.selection import select_layers

__all__ = [
    "adapt",
    "load_adapted",
    "load_convnext",
    "load_pretrained",
    "quadratic_parameters",
    "save_adapted",
    "select_layers",
    "set_trained",
]
