"""The latency of the supernet under its gates, differentiable in the gates."""

import torch
from torch import Tensor

from quadranas.latency.table import LatencyTable
from quadranas.space.search_space import SearchSpace
from quadranas.supernet.gates import KEEP, Gates


class ExpectedLatency:
    """Expected latency of a supernet under its gates, differentiable in their probabilities.

    `E = fixed + sum over gates of p_on * sum_j p_j t_j`, where p_on is the probability that the
    gate's block is kept (DARTS-style expectation of ProxylessNAS, arXiv:1812.00332, Eq. (6), with
    the depth gate factored out).

    Args:
        table: prices every candidate of the space, in milliseconds at batch 1.
    """

    def __init__(self, space: SearchSpace, gates: Gates, table: LatencyTable) -> None:
        table.require(space.specs())
        rows = {(info.block, info.slot): row for row, info in enumerate(gates.infos)}
        self.costs_ms = torch.zeros_like(gates.alpha, requires_grad=False)
        self.depth_row = torch.full((len(gates.infos),), -1)
        fixed = table.header.null_ms
        for block in space.blocks:
            depth = rows.get((block.name, None))
            for index, slot in enumerate(block.slots):
                costs = [table.op_ms(candidate) for candidate in slot.candidates]
                row = rows.get((block.name, index))
                if row is not None:
                    self.costs_ms[row, : len(costs)] = torch.tensor(costs, dtype=torch.float64)
                    self.depth_row[row] = -1 if depth is None else depth
                elif depth is not None:
                    self.costs_ms[depth, KEEP] += costs[0]
                else:
                    fixed += costs[0]
        self.fixed_ms = fixed

    def __call__(self, probabilities: Tensor) -> Tensor:
        """Milliseconds, a scalar.

        Args:
            probabilities: shape (num_gates, width), rows summing to 1.
        """
        per_gate = (probabilities * self.costs_ms).sum(1)
        kept = probabilities[self.depth_row.clamp(min=0), KEEP] if len(per_gate) else per_gate
        return self.fixed_ms + (torch.where(self.depth_row >= 0, kept, 1.0) * per_gate).sum()
