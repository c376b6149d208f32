"""Runtimes: one file each, to compile, run, time and save networks; `registry.py` lists them."""
