"""Inspection: what the layers of a network do during training."""
