"""Memory: prediction and measurement of the memory of a training step and an inference."""

from quadranas.memory.measurement import MeasuredMemory, measure_memory
from quadranas.memory.profile import MemoryProfile, profile_memory

__all__ = ["MeasuredMemory", "MemoryProfile", "measure_memory", "profile_memory"]
