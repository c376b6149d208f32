"""The programs that entries of a user's own model are measured with.

Only the model's own code calls its parts, so each is timed inside the smallest network of the
space. A part that preserves the shape is repeated there. Of other parts only differences to their
smallest candidate can be measured; that one gets its share of what the rest takes, by MACs. Such a
part is in every network, so the share affects no sum.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import nn

from quadranas.layers.replacement import put_layer
from quadranas.measurement.bench import Job
from quadranas.measurement.probes import network_probe
from quadranas.network.own_model import changed_part, given_model, part_inputs
from quadranas.space.architecture import Architecture
from quadranas.space.operation import OpSpec
from quadranas.space.own_space_file import REST

VARIED = 1e-3
"""Relative change of a copy's weights: exporters store equal tensors once, which is faster."""


def own_program(spec: OpSpec) -> str:
    """The name of the program in which a candidate of a part is timed."""
    own = spec.own_part
    return " ".join(["carrier with", own.layer, *(f"{c.name}={c}" for c in own.changes)])


@torch.no_grad()
def repeatable_parts(baseline: Architecture) -> frozenset[str]:
    """Paths of the parts of a model that preserve the shape, so that they can be repeated."""
    assert baseline.model is not None
    model = given_model(baseline.model)
    inputs = part_inputs(model, tuple(baseline.model.parts.values()), baseline.resolution)
    return frozenset(
        layer for layer, x in inputs.items() if model.get_submodule(layer)(x).shape == x.shape
    )


def own_jobs(specs: Sequence[OpSpec], baseline: Architecture, copies: int) -> dict[str, Job]:
    """The baseline with each candidate: that many copies of it, or one if it is not repeatable."""
    repeatable = repeatable_parts(baseline)
    return {
        own_program(spec): Job(
            partial(_network_with, baseline, spec, copies * (spec.own_part.layer in repeatable)),
            3,
            baseline.resolution,
        )
        for spec in specs
        if not spec.is_head
    }


def _network_with(baseline: Architecture, spec: OpSpec, copies: int) -> nn.Module:
    """The baseline with a candidate in the place of its part, or with copies after the part."""
    assert baseline.model is not None
    network, own = network_probe(baseline), spec.own_part
    original = given_model(baseline.model).get_submodule(own.layer)
    path = f"blocks.{REST}.{own.layer}"
    parts = [changed_part(original, own.layer, own.changes) for _ in range(copies or 1)]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in (p for part in parts for p in part.parameters()):
            parameter.mul_(1 + VARIED * torch.rand(parameter.shape, generator=generator))
    if copies:
        parts = [nn.Sequential(network.get_submodule(path), *parts)]
    put_layer(network, path, parts[0])
    return network.eval()


def own_added_ms(
    specs: Sequence[OpSpec],
    baseline: Architecture,
    more_ms: Callable[[str], float],
    baseline_ms: float,
    copies: int,
    least_ms: float,
) -> dict[OpSpec, float]:
    """The latency that each candidate and the rest of a user's own model add to a network.

    Args:
        specs: with all operations of the baseline.
        more_ms: by how much a program of `own_jobs` takes longer than the baseline.
        baseline_ms: latency of the baseline without the cost of a call.
        least_ms: lower limit of an entry.
    """
    repeatable = repeatable_parts(baseline)
    parts = [spec for spec in specs if not spec.is_head]
    added = {
        spec: max(more_ms(own_program(spec)) / copies, least_ms)
        for spec in parts
        if spec.own_part.layer in repeatable
    }
    kept = list(baseline.ops())
    left_ms = max(baseline_ms - sum(added.get(op, 0.0) for op in kept), least_ms)
    others = {op.own_part.layer: op for op in kept if op not in added}  # the rest has the path ""
    total = sum(op.own_part.macs for op in others.values()) or 1
    shares = {layer: left_ms * op.own_part.macs / total for layer, op in others.items()}
    for spec in specs:
        if spec not in added:
            layer = spec.own_part.layer
            more = 0.0 if spec == others[layer] else more_ms(own_program(spec))
            added[spec] = max(shares[layer] + more, least_ms)
    return added
