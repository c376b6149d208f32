"""The check before a search: gradients reach every candidate's weights and every alpha.

A supernet can run without errors and still not learn: a candidate without a gradient, an expected
latency without a graph. This check sends one batch through every candidate and names the first
that no gradient reaches.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

import torch
from torch import Tensor, nn

from quadranas.data.batch import Batch
from quadranas.errors import QuadranasError
from quadranas.network.modes import batch_norms, frozen, frozen_statistics
from quadranas.supernet.gate_training import GateTrainer
from quadranas.supernet.gates import SKIP, Sample
from quadranas.supernet.supernet import Supernet

HINT = "The search cannot learn it. Check the class of the operation, or the latency table."

ROUNDING = 1e-12
"""Gradients below this fraction of their operands count as zero (rounding errors are 1e-16)."""


def check_gradients(supernet: Supernet, trainer: GateTrainer, batch: Batch) -> None:
    """Check that a non-zero, finite gradient reaches every weight and every alpha.

    Three gradients are checked separately: of the task loss in every weight, of the task loss in
    every alpha, of the latency in every alpha. Weights, alphas, batch statistics and random
    generators are left unchanged.

    Raises:
        QuadranasError: names the first candidate or gate that no gradient reaches.
    """
    with frozen_statistics(batch_norms(supernet)), _no_zeros(supernet):
        _check_weights(supernet, batch)
        if supernet.gates.infos:
            _check_task_to_gates(supernet, batch)
            _check_latency_to_gates(supernet, trainer)


@contextmanager
def _no_zeros(supernet: Supernet) -> Iterator[None]:
    """A context in which weights of a user's own model that are all zero are random.

    Zeros, such as those of a last BatchNorm, would let no gradient pass before the first step.
    """
    own = [] if supernet.space.model is None else list(supernet.parameters())
    zeros = [parameter for parameter in own if parameter.ndim and not parameter.any()]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in zeros:
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter in zeros:
                parameter.zero_()


def _rounds(supernet: Supernet) -> Iterator[Sample]:
    """Samples in which every candidate is active at least once; all blocks are kept."""
    gates = supernet.gates
    # As many rounds as the widest gate has candidates; narrower gates start over. Skipping is
    # only ever the partner: an active skip would cut the block's candidates off.
    sizes = gates.mask.sum(1)
    depth = torch.tensor([info.slot is None for info in gates.infos], dtype=torch.bool)
    for number in range(gates.mask.shape[1]):
        active = torch.where(depth, torch.zeros_like(sizes), number % sizes)
        partner = torch.where(depth, torch.full_like(sizes, SKIP), (active + 1) % sizes)
        involved = torch.zeros_like(gates.mask)
        involved.scatter_(1, active[:, None], value=True).scatter_(1, partner[:, None], value=True)
        yield Sample(active, involved)


def _loss(supernet: Supernet, batch: Batch) -> Tensor:
    return torch.nn.functional.cross_entropy(supernet(batch.images), batch.targets)


def _usable(gradient: Tensor | None) -> bool:
    return gradient is not None and bool(gradient.isfinite().all() & gradient.any())


def _check_weights(supernet: Supernet, batch: Batch) -> None:
    names = {candidate: name for name, candidate in supernet.candidates()}
    reached: set[nn.Parameter] = set()
    for sample in _rounds(supernet):
        supernet.set_sample(Sample(sample.active, torch.zeros_like(sample.involved)))
        reached |= _reached_on_path(supernet, batch, names)
    for candidate, name in names.items():
        for weight, parameter in candidate.named_parameters():
            if parameter not in reached:
                raise QuadranasError(
                    f"no usable gradient of the task loss reaches {weight} of candidate {name}",
                    HINT,
                )


def _reached_on_path(
    supernet: Supernet, batch: Batch, names: dict[nn.Module, str]
) -> set[nn.Parameter]:
    """The weights on the current path that get a gradient.

    Raises:
        QuadranasError: names the candidate with non-finite outputs or without a gradient in its
            input.
    """
    outputs: dict[nn.Module, Tensor] = {}

    def watch(module: nn.Module, _: object, output: Tensor) -> None:
        if not output.isfinite().all():
            raise QuadranasError(
                f"candidate {names[module]} computes values that are not finite", HINT
            )
        if output.requires_grad:
            output.retain_grad()
        outputs[module] = output

    handles = [module.register_forward_hook(watch) for module in supernet.active_modules()]
    try:
        loss = _loss(supernet, batch)
    finally:
        for handle in handles:
            handle.remove()
    loss.backward()
    gradients = {parameter: parameter.grad for parameter in supernet.active_parameters()}
    for parameter in gradients:
        parameter.grad = None
    # Backwards, since a candidate that breaks the gradient starves all before it as well.
    last_to_first = list(reversed(outputs))
    for module, before in pairwise(last_to_first):
        if outputs[before].requires_grad and not _usable(outputs[before].grad):
            raise QuadranasError(
                f"candidate {names[module]} passes no usable gradient of the task loss to its "
                "input",
                HINT,
            )
    return {parameter for parameter, gradient in gradients.items() if _usable(gradient)}


def _check_task_to_gates(supernet: Supernet, batch: Batch) -> None:
    """Check every pair.

    Candidates that share weights may compute the same, such as kernels that are wider than the
    image reaches. Their gradient is zero: the task has no preference.
    """
    reached = torch.zeros_like(supernet.gates.mask)
    shared = supernet.shares_weights()
    for sample in _rounds(supernet):
        supernet.set_sample(sample)
        with frozen(supernet.active_parameters()):
            _loss(supernet, batch).backward()
        paths, involved = supernet.path_gradients()
        gradient = supernet.gates.task_gradient(paths, involved)
        size = paths.abs().amax(1, keepdim=True)
        reached |= gradient.isfinite() & (gradient.abs() > ROUNDING * size)
        reached |= involved & shared & _equal_paths(paths, involved)
    _require_all(supernet, reached, "the task loss")


def _equal_paths(paths: Tensor, involved: Tensor) -> Tensor:
    """Whether the gradients in a gate's involved paths are the same and usable, (num_gates, 1)."""
    lowest = paths.masked_fill(~involved, torch.inf).amin(1, keepdim=True)
    highest = paths.masked_fill(~involved, -torch.inf).amax(1, keepdim=True)
    return (lowest == highest) & lowest.isfinite() & (lowest != 0)


def _check_latency_to_gates(supernet: Supernet, trainer: GateTrainer) -> None:
    """Check all candidates together and every pair.

    A candidate whose latency is exactly the mean of all has a zero gradient among all candidates,
    but not within a pair. Candidates with the same latency may have a gradient of zero: the table
    has no preference.
    """
    gates = supernet.gates
    reached = trainer.expected.tied
    for within in (None, *(sample.involved for sample in _rounds(supernet))):
        expected_ms = trainer.expected(gates.probabilities(within))
        if expected_ms.requires_grad:
            (gradient,) = torch.autograd.grad(expected_ms, gates.alpha)
            size = float(expected_ms.detach())
            reached |= gradient.isfinite() & (gradient.abs() > ROUNDING * size)
    _require_all(supernet, reached, "the latency term")


def _require_all(supernet: Supernet, reached: Tensor, source: str) -> None:
    missing = (supernet.gates.mask & ~reached).nonzero().tolist()
    if missing:
        info = supernet.gates.infos[missing[0][0]]
        raise QuadranasError(
            f"no usable gradient of {source} reaches the alpha of "
            f"{info.candidates[missing[0][1]]!r} at gate {info.name}",
            HINT,
        )
