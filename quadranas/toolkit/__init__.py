"""The quadratic toolkit: what QuadraLib offers beyond layers, for any PyTorch network."""

from quadranas.toolkit.conversion import LayerReport, convert, plan_conversion
from quadranas.toolkit.importance import RankedLayer, pick, plot_ranking, rank_layers
from quadranas.toolkit.inspection import Inspector
from quadranas.toolkit.memory import MemoryProfile, profile_memory
from quadranas.toolkit.memory_measurement import MeasuredMemory, measure_memory
from quadranas.toolkit.optimization import (
    SecondOrderControl,
    clip_products,
    quadratic_parameter_groups,
)
from quadranas.toolkit.reduction import remove, revert
from quadranas.toolkit.terms import view_terms

__all__ = [
    "Inspector",
    "LayerReport",
    "MeasuredMemory",
    "MemoryProfile",
    "RankedLayer",
    "SecondOrderControl",
    "clip_products",
    "convert",
    "measure_memory",
    "pick",
    "plan_conversion",
    "plot_ranking",
    "profile_memory",
    "quadratic_parameter_groups",
    "rank_layers",
    "remove",
    "revert",
    "view_terms",
]
