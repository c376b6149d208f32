"""The check before a search: gradients reach every candidate's weights and every alpha.

A supernet can look healthy and learn nothing: candidates without gradient, an expected latency
without a graph. This check sends one batch through every candidate and stops with the culprit's
name.
"""

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor, nn

from quadranas.data.batch import Batch
from quadranas.errors import QuadranasError
from quadranas.network.modes import batch_norms, frozen, frozen_statistics
from quadranas.supernet.gate_training import GateTrainer
from quadranas.supernet.gates import SKIP, Sample
from quadranas.supernet.supernet import Supernet

HINT = "The search would learn nothing from it. Check the operation's class, or the latency table."

ROUNDING = 1e-12
"""Relative to what it is a difference of, a gradient below this is none: rounding leaves 1e-16."""


def check_gradients(supernet: Supernet, trainer: GateTrainer, batch: Batch) -> None:
    """Prove that a non-zero, finite gradient reaches everything that is to be learnt.

    Task loss to every weight, task loss to every alpha and latency to every alpha are checked
    separately. Weights, alphas, statistics and generators are left as they were.

    Raises:
        QuadranasError: names the first candidate or gate that is not reached.
    """
    with frozen_statistics(batch_norms(supernet)):
        _check_weights(supernet, batch)
        if supernet.gates.infos:
            _check_task_to_gates(supernet, batch)
            _check_latency_to_gates(supernet, trainer)


def _rounds(supernet: Supernet) -> Iterator[Sample]:
    """Samples in which every candidate is active once; blocks are kept."""
    gates = supernet.gates
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
    """The weights on the current path that get a gradient; stops at a candidate that breaks it."""
    outputs: dict[nn.Module, Tensor] = {}

    def watch(module: nn.Module, _: object, output: Tensor) -> None:
        if not output.isfinite().all():
            raise QuadranasError(
                f"candidate {names[module]} gives values that are not finite", HINT
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
    last_to_first = list(reversed(outputs))
    for module, before in pairwise(last_to_first):
        if outputs[before].requires_grad and not _usable(outputs[before].grad):
            raise QuadranasError(
                f"candidate {names[module]} passes no usable gradient of the task loss on to "
                "what comes before it",
                HINT,
            )
    return {parameter for parameter, gradient in gradients.items() if _usable(gradient)}


def _check_task_to_gates(supernet: Supernet, batch: Batch) -> None:
    reached = torch.zeros_like(supernet.gates.mask)
    for sample in _rounds(supernet):
        supernet.set_sample(sample)
        with frozen(supernet.active_parameters()):
            _loss(supernet, batch).backward()
        paths, involved = supernet.path_gradients()
        gradient = supernet.gates.task_gradient(paths, involved)
        size = paths.abs().amax(1, keepdim=True)
        reached |= gradient.isfinite() & (gradient.abs() > ROUNDING * size)
    _require_all(supernet, reached, "the task loss")


def _check_latency_to_gates(supernet: Supernet, trainer: GateTrainer) -> None:
    """Among all candidates or within a pair: one that costs the mean of all feels the pair."""
    gates = supernet.gates
    reached = torch.zeros_like(gates.mask)
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
