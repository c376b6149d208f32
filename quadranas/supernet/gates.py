"""Binarized path gates and their gradient estimator.

Source: ProxylessNAS, Cai et al., ICLR 2019 (arXiv:1812.00332), Sec. 3.2. A gate chooses one of
several candidate paths with probabilities softmax(alpha). All gates of a supernet live in one
matrix: row g holds the architecture parameters of gate g, padded to the widest gate.

Departures: alpha is float64, so that shifting a pair leaves the other probabilities unchanged to
float32 precision; the latency term acts on the same candidates as the task gradient (the sampled
pair in the two-path step, all in the full one), see `Gates.probabilities`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from quadranas.space.search_space import SKIPPED, Choices, SearchSpace
from quadranas.strategies.scores import BlockScores, GateScores

KEEP, SKIP = 0, 1
"""The candidates of a depth gate."""

INIT_STD = 1e-3
"""Standard deviation of alpha at the start: the gates begin nearly uniform."""


@dataclass(frozen=True)
class GateInfo:
    """The decision of a gate: the candidate of a slot, or (slot None) whether a block is kept."""

    block: str
    slot: int | None
    candidates: tuple[str, ...]

    @property
    def name(self) -> str:
        """Name for messages, such as `stage3_block2.depth`."""
        return f"{self.block}.{'depth' if self.slot is None else f'slot{self.slot}'}"


def gate_infos(space: SearchSpace) -> tuple[GateInfo, ...]:
    """The gates of a space in block order; a slot with a single candidate has no gate."""
    gates = []
    for block in space.blocks:
        if block.optional:
            gates.append(GateInfo(block.name, None, ("keep", "skip")))
        for index, slot in enumerate(block.slots):
            if len(slot.candidates) > 1:
                gates.append(GateInfo(block.name, index, tuple(map(str, slot.candidates))))
    return tuple(gates)


@dataclass(frozen=True)
class Sample:
    """One draw of every gate.

    Args:
        active: index of the candidate that computes the output, shape (num_gates,).
        involved: whether a candidate takes part in the architecture step, shape (num_gates,
            width), boolean; in a weight step only the active candidate.
    """

    active: Tensor
    involved: Tensor


class Gates(nn.Module):
    """The architecture parameters of a supernet, and the samples drawn from them.

    Attributes:
        alpha: the architecture parameters, shape (num_gates, width), float64.
        mask: whether a gate has a candidate, the same shape, boolean.
    """

    mask: Tensor

    def __init__(self, infos: Sequence[GateInfo], generator: torch.Generator) -> None:
        super().__init__()
        self.infos = tuple(infos)
        sizes = torch.tensor([len(info.candidates) for info in infos], dtype=torch.int64)
        width = int(sizes.max()) if len(infos) else 2
        mask = torch.arange(width) < sizes[:, None]
        noise = torch.randn(len(infos), width, generator=generator, dtype=torch.float64)
        self.alpha = nn.Parameter(noise * INIT_STD * mask)
        self.register_buffer("mask", mask, persistent=False)

    def log_probabilities(self) -> Tensor:
        """Shape (num_gates, width); minus infinity for the padding of a row."""
        return self.alpha.masked_fill(~self.mask, -math.inf).log_softmax(1)

    def probabilities(self, within: Tensor | None = None) -> Tensor:
        """Probabilities of all candidates, differentiable in alpha.

        Args:
            within: boolean, shape (num_gates, width). If not None, only the probabilities of
                these candidates are differentiable, and only in their own alphas; the sum of
                their probabilities is a constant.
        """
        if within is None:
            return self.log_probabilities().exp()
        # p_i = (sum of p over `within`, constant) * (softmax over `within`)_i: the same values,
        # but the gradient cannot raise or lower the pair against all others. Without that the
        # latency term would move candidates that no task gradient has reached in this step.
        fixed = self.log_probabilities().exp().detach()
        share = self.alpha.masked_fill(~within, -math.inf).softmax(1)
        mass = (fixed * within).sum(1, keepdim=True)
        # The softmax of a row without any such candidate is NaN.
        return torch.where(within, mass * share.nan_to_num(), fixed)

    @torch.no_grad()
    def sample_path(self, generator: torch.Generator) -> Sample:
        """Draw one candidate per gate from softmax(alpha), for a weight step."""
        active = torch.multinomial(self.probabilities(), 1, generator=generator)
        return _path(active[:, 0], self.mask)

    def sample_of(self, choices: Choices) -> Sample:
        """The path through one network, for a weight step."""
        active = torch.zeros(len(self.infos), dtype=torch.int64)
        for row, info in enumerate(self.infos):
            choice = choices[info.block]
            if info.slot is None:
                active[row] = SKIP if choice is SKIPPED else KEEP
            elif choice is not SKIPPED:
                active[row] = choice[info.slot]
        return _path(active, self.mask)

    @torch.no_grad()
    def sample_pair(self, generator: torch.Generator) -> Sample:
        """Draw two distinct candidates per gate from softmax(alpha), for a two-path step.

        The softmax over the pair decides which of the two is active.
        """
        pair = torch.multinomial(self.probabilities(), 2, generator=generator)  # (G, 2)
        first = self.alpha.gather(1, pair).softmax(1)[:, 0]
        draw = torch.rand(len(pair), generator=generator, dtype=torch.float64)
        active = torch.where(draw < first, pair[:, 0], pair[:, 1])
        return Sample(active, torch.zeros_like(self.mask).scatter_(1, pair, value=True))

    @torch.no_grad()
    def sample_full(self, generator: torch.Generator) -> Sample:
        """Draw one active candidate per gate from softmax(alpha); all candidates are involved."""
        return Sample(self.sample_path(generator).active, self.mask.clone())

    @torch.no_grad()
    def task_gradient(self, path_gradients: Tensor, involved: Tensor) -> Tensor:
        """dL/dalpha from dL/dg: `sum_j dL/dg_j * p_j * (delta_ij - p_i)` over the involved.

        Args:
            path_gradients: dL/dg_j = <o_j, dL/dy>, shape (num_gates, width); 0 for candidates
                that are not involved.
            involved: boolean, the same shape; a row without any has a gradient of 0.
        """
        # Softmax over the involved candidates; its Jacobian turns the sum above into
        # p_i * (dL/dg_i - mean of dL/dg under p).
        p = self.alpha.masked_fill(~involved, -math.inf).softmax(1).nan_to_num()
        mean = (p * path_gradients).sum(1, keepdim=True)
        return p * (path_gradients - mean)

    @torch.no_grad()
    def keep_mass(self, before: Tensor, involved: Tensor) -> None:
        """Shift the involved alphas by a common amount that restores their total probability.

        The probabilities of all other candidates are then the same as before the step.

        Args:
            before: alpha before the optimiser's step.
        """
        # sum of exp(alpha) over the pair must be as before, for the softmax's denominator to be
        # as before. A common shift leaves the ratio within the pair, which the step has learnt.
        # The pair is shifted in every step, so errors add up: hence float64.
        old = before.masked_fill(~involved, -math.inf).logsumexp(1, keepdim=True)
        new = self.alpha.masked_fill(~involved, -math.inf).logsumexp(1, keepdim=True)
        self.alpha.add_(torch.where(involved, old - new, 0.0))

    @torch.no_grad()
    def entropy(self) -> float:
        """Mean normalised entropy of the gates: 1 for uniform gates, 0 for decided ones."""
        if not self.infos:
            return 0.0
        p = self.probabilities()
        return float((torch.special.entr(p).sum(1) / self.mask.sum(1).log()).mean())

    @torch.no_grad()
    def skip_rate(self) -> float:
        """Mean probability that an optional block is skipped."""
        depth = [index for index, info in enumerate(self.infos) if info.slot is None]
        return float(self.probabilities()[depth, SKIP].mean()) if depth else 0.0

    @torch.no_grad()
    def scores(self, space: SearchSpace) -> GateScores:
        """The log-probabilities as plain data, for decoding."""
        rows = {
            (info.block, info.slot): row[: len(info.candidates)]
            for info, row in zip(self.infos, self.log_probabilities().tolist(), strict=True)
        }
        blocks = {}
        for block in space.blocks:
            if not block.is_fixed:
                keep, skip = rows.get((block.name, None), (0.0, None))
                slots = (tuple(rows.get((block.name, i), [0.0])) for i in range(len(block.slots)))
                blocks[block.name] = BlockScores(keep=keep, skip=skip, slots=tuple(slots))
        return GateScores(space=space.name, space_digest=space.digest, blocks=blocks)


def _path(active: Tensor, mask: Tensor) -> Sample:
    """The path through the active candidates alone."""
    return Sample(active, torch.zeros_like(mask).scatter_(1, active[:, None], value=True))
