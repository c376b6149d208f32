"""Runs: their configuration and files, and how they are resumed."""
