"""The toy space, reproducible random numbers, and a table like a measured one."""

import torch

from quadranas.latency.table import LatencyTable
from quadranas.space.space_file import load_space

TOY = load_space("toy")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def with_overhead(table: LatencyTable) -> LatencyTable:
    """A measured table: part of every entry is the empty network's, and the sum is corrected."""
    header = table.header.model_copy(update={"null_ms": 0.01, "scale": 0.9})
    return LatencyTable(header=header, entries=table.entries)
