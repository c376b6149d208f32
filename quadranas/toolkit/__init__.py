"""The quadratic toolkit: what QuadraLib offers beyond layers, for any PyTorch network."""

from quadranas.toolkit.inspection import Inspector
from quadranas.toolkit.optimization import (
    SecondOrderControl,
    clip_products,
    quadratic_parameter_groups,
)
from quadranas.toolkit.terms import view_terms

__all__ = [
    "Inspector",
    "SecondOrderControl",
    "clip_products",
    "quadratic_parameter_groups",
    "view_terms",
]
