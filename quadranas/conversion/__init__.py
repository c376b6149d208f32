"""Conversion: making first-order networks quadratic, adapting and reducing them."""

from quadranas.conversion.adaptation import (
    adapt,
    load_adapted,
    quadratic_parameters,
    save_adapted,
    set_trained,
)
from quadranas.conversion.conversion import LayerReport, convert, plan_conversion
from quadranas.conversion.importance import RankedLayer, pick, plot_ranking, rank_layers
from quadranas.conversion.pretrained import load_convnext, load_pretrained
from quadranas.conversion.reduction import remove, revert
from quadranas.conversion.selection import select_layers

__all__ = [
    "LayerReport",
    "RankedLayer",
    "adapt",
    "convert",
    "load_adapted",
    "load_convnext",
    "load_pretrained",
    "pick",
    "plan_conversion",
    "plot_ranking",
    "quadratic_parameters",
    "rank_layers",
    "remove",
    "revert",
    "save_adapted",
    "select_layers",
    "set_trained",
]
