"""The latency of the supernet under its gates, differentiable in the gates."""

import torch
from torch import Tensor

from quadranas.latency.table import LatencyTable
from quadranas.space.search_space import SearchSpace
from quadranas.supernet.gates import KEEP, Gates


class ExpectedLatency:
    """Expected latency of a supernet under its gates, differentiable in their probabilities.

    `E = fixed + sum over gates of p_on * sum_j p_j t_j`, where t_j is the latency of candidate j
    and p_on the probability that the gate's block is kept (DARTS-style expectation of
    ProxylessNAS, arXiv:1812.00332, Eq. (6), with the depth gate factored out).

    Args:
        table: the latency of every candidate of the space, in milliseconds at batch 1.

    Raises:
        MissingEntryError: the table lacks an operation of the space.
    """

    def __init__(self, space: SearchSpace, gates: Gates, table: LatencyTable) -> None:
        table.require(space.specs())
        rows = {(info.block, info.slot): row for row, info in enumerate(gates.infos)}
        self.costs_ms = torch.zeros_like(gates.alpha, requires_grad=False)
        # Per gate, the row of the depth gate of its block, or -1 for a block that is always kept.
        self.depth_row = torch.full((len(gates.infos),), -1)
        fixed = table.header.null_ms
        for block in space.blocks:
            depth = rows.get((block.name, None))
            for index, slot in enumerate(block.slots):
                costs = [table.op_ms(candidate) for candidate in slot.candidates]
                row = rows.get((block.name, index))
                # A slot with one candidate has no gate. Its latency is part of the depth gate's
                # `KEEP` in an optional block, and of the constant otherwise.
                if row is not None:
                    self.costs_ms[row, : len(costs)] = torch.tensor(costs, dtype=torch.float64)
                    self.depth_row[row] = -1 if depth is None else depth
                elif depth is not None:
                    self.costs_ms[depth, KEEP] += costs[0]
                else:
                    fixed += costs[0]
        self.fixed_ms = fixed

    @property
    def tied(self) -> Tensor:
        """Candidates with the same latency as another one of their gate, shape (num_gates, width).

        The latency term has no preference between them.
        """
        costs = self.costs_ms
        equal = torch.isclose(costs[:, :, None], costs[:, None, :], rtol=1e-9, atol=0)
        others = ~torch.eye(costs.shape[1], dtype=torch.bool)
        return (equal & others).any(2) & (costs > 0)

    def __call__(self, probabilities: Tensor) -> Tensor:
        """The expected latency, a scalar in milliseconds.

        Args:
            probabilities: shape (num_gates, width), rows summing to 1.
        """
        per_gate = (probabilities * self.costs_ms).sum(1)
        # Row -1 is read as row 0 and then replaced by 1. A space without gates has no row 0.
        kept = probabilities[self.depth_row.clamp(min=0), KEEP] if len(per_gate) else per_gate
        return self.fixed_ms + (torch.where(self.depth_row >= 0, kept, 1.0) * per_gate).sum()
