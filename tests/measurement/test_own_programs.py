"""Measured entries of a user's own model, on a machine whose times are known."""

from collections.abc import Sequence

import pytest
import torch
from torch import nn

from quadranas.conversion.own_space import own_space
from quadranas.latency.journal import Journal
from quadranas.measurement.bench import Bench
from quadranas.measurement.lut_entries import (
    baseline_network,
    calibration_networks,
    entry_jobs,
    measure_entries,
    programs_of,
)
from quadranas.measurement.plan import Plan
from quadranas.network.skeleton import build_subnet
from quadranas.reporter import Reporter
from quadranas.space.sampling import random_architectures
from quadranas.space.search_space import SearchSpace
from tests.measuring import ScriptedBackend, board
from tests.own_models import SIZE, build

NULL_MS = 0.5
WHERE = {"features.1": ["skip", "hidden"], "features.2": ["kernel"], "features.3": ["skip"]}


@pytest.fixture
def space() -> SearchSpace:
    example = torch.zeros(1, 3, SIZE, SIZE)
    return own_space(build("mobilenet"), example, WHERE, name="mine", source="test").space()


def network_ms(network: nn.Module, shape: Sequence[int] = ()) -> float:
    """As long as a network has parameters."""
    return NULL_MS + 1e-3 * sum(parameter.numel() for parameter in network.parameters())


def test_entries_add_up_to_networks(space: SearchSpace) -> None:
    bench = Bench(board(), ScriptedBackend(network_ms))
    networks = calibration_networks(space)
    about = (bench, Journal(None, {}), Reporter(quiet=True), Plan(num_rounds=4, repeats=2))
    found = measure_entries(space.specs(), baseline_network(space), networks, *about)
    assert found.scale == pytest.approx(1)
    added = {entry.op: entry.latency_ms - NULL_MS for entry in found.entries}
    assert set(added) == set(space.specs())
    for network in random_architectures(space, 6, "test"):
        whole_ms = network_ms(build_subnet(network)) - NULL_MS
        assert sum(added[op] for op in network.ops()) == pytest.approx(whole_ms)
    for spec in space.specs():
        if spec.own and spec.own.layer in ("features.1", "features.3"):  # they are repeated
            assert added[spec] == pytest.approx(1e-3 * spec.own.params)


@torch.no_grad()
def test_programs_are_whole_networks(space: SearchSpace) -> None:
    baseline = baseline_network(space)
    jobs = entry_jobs(space.specs(), baseline, ())
    images = torch.randn(1, 3, SIZE, SIZE)
    for spec in space.specs():
        for name in programs_of(spec):
            assert (jobs[name].channels, jobs[name].resolution) == (3, SIZE)
            assert jobs[name].make()(images).shape == (1, 2)
    assert len(jobs) == 5 + len(space.specs()) - 1
