"""The quadratic toolkit: what QuadraLib offers beyond layers, for any PyTorch network."""

from quadranas.toolkit.memory import MemoryProfile, profile_memory
from quadranas.toolkit.memory_measurement import MeasuredMemory, measure_memory

__all__ = ["MeasuredMemory", "MemoryProfile", "measure_memory", "profile_memory"]
