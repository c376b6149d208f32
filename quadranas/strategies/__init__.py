"""Strategies: how a sub-network is chosen."""
