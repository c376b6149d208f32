"""Supernet: all candidates at once, their gates and their expected latency."""
