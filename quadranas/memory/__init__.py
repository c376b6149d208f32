"""Memory: what a training step and an inference of any network will need."""

from quadranas.memory.measurement import MeasuredMemory, measure_memory
from quadranas.memory.profile import MemoryProfile, profile_memory

__all__ = ["MeasuredMemory", "MemoryProfile", "measure_memory", "profile_memory"]
