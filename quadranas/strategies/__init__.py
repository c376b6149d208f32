"""Strategies that choose a network of a search space."""
