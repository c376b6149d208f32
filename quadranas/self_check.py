"""The check before a search: gradients reach every candidate's weights and every alpha.

A supernet can look healthy and learn nothing: candidates without gradient, an expected latency
without a graph. This check sends one batch through every candidate and stops with the culprit's
name.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from quadranas.errors import QuadranasError
from quadranas.gates import SKIP, Sample
from quadranas.supernet import Supernet, frozen
from quadranas.training import Batch, GateTrainer, frozen_statistics

HINT = "The search would learn nothing from it. Check the operation's class, or the latency table."


def check_gradients(supernet: Supernet, trainer: GateTrainer, batch: Batch) -> None:
    """Prove that a non-zero, finite gradient reaches everything that is to be learnt.

    Task loss to every weight, task loss to every alpha and latency to every alpha are checked
    separately. Weights, alphas, statistics and generators are left as they were.

    Raises:
        QuadranasError: names the first candidate or gate that is not reached.
    """
    with frozen_statistics(supernet):
        _check_weights(supernet, batch)
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


def _check_weights(supernet: Supernet, batch: Batch) -> None:
    seen: set[torch.nn.Parameter] = set()
    for sample in _rounds(supernet):
        only_active = torch.zeros_like(sample.involved)
        supernet.set_sample(Sample(sample.active, only_active))
        _loss(supernet, batch).backward()
        for parameter in supernet.active_parameters():
            gradient, parameter.grad = parameter.grad, None
            if gradient is not None and bool(gradient.isfinite().all() & gradient.any()):
                seen.add(parameter)
    for candidate, name, parameter in supernet.candidate_parameters():
        if parameter not in seen:
            raise QuadranasError(
                f"no usable gradient of the task loss reaches {name} of candidate {candidate}",
                HINT,
            )


def _check_task_to_gates(supernet: Supernet, batch: Batch) -> None:
    reached = torch.zeros_like(supernet.gates.mask)
    for sample in _rounds(supernet):
        supernet.set_sample(sample)
        with frozen(supernet.active_parameters()):
            _loss(supernet, batch).backward()
        gradient = supernet.gates.task_gradient(*supernet.path_gradients())
        reached |= gradient.isfinite() & (gradient != 0)
    _require_all(supernet, reached, "the task loss")


def _check_latency_to_gates(supernet: Supernet, trainer: GateTrainer) -> None:
    gradient, _ = trainer.latency_gradient(within=None)
    _require_all(supernet, gradient.isfinite() & (gradient != 0), "the latency term")


def _require_all(supernet: Supernet, reached: Tensor, source: str) -> None:
    missing = (supernet.gates.mask & ~reached).nonzero().tolist()
    if missing:
        info = supernet.gates.infos[missing[0][0]]
        raise QuadranasError(
            f"no usable gradient of {source} reaches the alpha of "
            f"{info.candidates[missing[0][1]]!r} at gate {info.name}",
            HINT,
        )
