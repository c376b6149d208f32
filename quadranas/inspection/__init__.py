"""Inspection: the layers of a network during training."""
