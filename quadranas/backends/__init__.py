"""Runtimes: one file each, to save and run networks."""
