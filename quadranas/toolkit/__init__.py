"""The quadratic toolkit: what QuadraLib offers beyond layers, for any PyTorch network."""

from quadranas.toolkit.adaptation import (
    adapt,
    load_adapted,
    quadratic_parameters,
    save_adapted,
    set_trained,
)
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
from quadranas.toolkit.pretrained import load_convnext, load_pretrained
from quadranas.toolkit.reduction import remove, revert
from quadranas.toolkit.selection import select_layers
from quadranas.toolkit.terms import view_terms

__all__ = [
    "Inspector",
    "LayerReport",
    "MeasuredMemory",
    "MemoryProfile",
    "RankedLayer",
    "SecondOrderControl",
    "adapt",
    "clip_products",
    "convert",
    "load_adapted",
    "load_convnext",
    "load_pretrained",
    "measure_memory",
    "pick",
    "plan_conversion",
    "plot_ranking",
    "profile_memory",
    "quadratic_parameter_groups",
    "quadratic_parameters",
    "rank_layers",
    "remove",
    "revert",
    "save_adapted",
    "select_layers",
    "set_trained",
    "view_terms",
]
