"""Inspection: statistics of the layers of a network during training."""
