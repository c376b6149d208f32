"""The quadratic toolkit: what QuadraLib offers beyond layers, for any PyTorch network."""

from quadranas.toolkit.conversion import LayerReport, convert, plan_conversion
from quadranas.toolkit.importance import RankedLayer, pick, plot_ranking, rank_layers
from quadranas.toolkit.reduction import remove, revert

__all__ = [
    "LayerReport",
    "RankedLayer",
    "convert",
    "pick",
    "plan_conversion",
    "plot_ranking",
    "rank_layers",
    "remove",
    "revert",
]
