"""Entries and scale of a measured table, on a machine whose times are known."""

from collections.abc import Sequence

import pytest

from quadranas.latency.journal import Journal
from quadranas.measurement.bench import Bench
from quadranas.measurement.lut_entries import (
    NUM_CALIBRATION,
    TINY,
    MeasuredEntries,
    baseline_network,
    calibration_networks,
    measure_entries,
)
from quadranas.measurement.plan import Plan
from quadranas.measurement.probes import preserves_shape
from quadranas.reporter import Reporter
from quadranas.space.architecture import Architecture
from quadranas.space.operation import OpSpec
from quadranas.space.search_space import SearchSpace
from quadranas.space.space_file import load_space, space_files
from tests.measuring import Machine, ScriptedBackend, board

PLAN = Plan(num_rounds=4, repeats=2)


@pytest.fixture
def space() -> SearchSpace:
    return load_space("toy")


def measured(
    machine: Machine, specs: Sequence[OpSpec], networks: Sequence[Architecture] = ()
) -> MeasuredEntries:
    bench = Bench(board(), ScriptedBackend(machine.network_ms))
    journal, reporter = Journal(None, {}), Reporter(quiet=True)
    baseline = baseline_network(load_space("toy"))
    return measure_entries(specs, baseline, networks, bench, journal, reporter, PLAN)


def test_entries_and_scale_are_the_machine_s(space: SearchSpace) -> None:
    specs, networks = tuple(space.specs()), calibration_networks(space)
    machine = Machine(specs, networks, scale=0.83)
    found = measured(machine, specs, networks)
    assert found.null_ms == machine.null_ms
    assert [entry.op for entry in found.entries] == list(specs)
    for entry in found.entries:
        expected_ms = machine.ops_ms[entry.op] + machine.null_ms
        assert entry.latency_ms == pytest.approx(expected_ms, rel=1e-9)
        assert entry.minimum_ms == entry.median_ms == entry.latency_ms
        assert entry.spread == 0
    assert found.scale == pytest.approx(0.83, rel=1e-9)
    assert found.calibration is not None
    assert found.calibration.residual == pytest.approx(0, abs=1e-9)
    assert [network.name for network in found.calibration.networks] == [
        network.name for network in networks
    ]
    for network, latency in zip(networks, found.calibration.networks, strict=True):
        total_ms = sum(machine.ops_ms[op] for op in network.ops())
        assert latency.measured_ms == pytest.approx(0.83 * total_ms + machine.null_ms)
        assert latency.predicted_ms == pytest.approx(latency.measured_ms)


def test_what_changes_the_shape_is_priced_without_its_boundaries(space: SearchSpace) -> None:
    (spec,) = (spec for spec in space.specs() if spec.kind == "downsample")
    assert not preserves_shape(spec)
    machine = Machine(space.specs())
    (entry,) = measured(machine, [spec]).entries
    assert entry.latency_ms == pytest.approx(machine.ops_ms[spec] + machine.null_ms, rel=1e-9)
    assert sum(machine.boundaries_ms[end] for end in machine.ends(spec)) > 0.1  # it mattered


def test_operations_that_are_faster_alone_are_priced_as_in_a_network(space: SearchSpace) -> None:
    """Every operation that changes the shape is faster alone by the same factor."""
    machine = Machine(space.specs(), alone=0.6)
    machine.boundaries_ms = dict.fromkeys(machine.boundaries_ms, 0.0)
    machine.ops_ms |= {op: 0.0 for op in machine.ops_ms if op not in space.specs()}
    for entry in measured(machine, tuple(space.specs())).entries:
        expected_ms = machine.ops_ms[entry.op] + machine.null_ms
        assert entry.latency_ms == pytest.approx(expected_ms, rel=1e-9)


def test_the_baseline_costs_what_its_entries_add_up_to(space: SearchSpace) -> None:
    machine = Machine(space.specs(), alone=1.3)
    entries = {entry.op: entry for entry in measured(machine, tuple(space.specs())).entries}
    ops = list(baseline_network(space).ops())
    total_ms = sum(entries[op].latency_ms - machine.null_ms for op in ops)
    assert total_ms == pytest.approx(sum(machine.ops_ms[op] for op in ops), rel=1e-9)


def test_an_operation_that_seems_to_take_no_time_takes_a_little(space: SearchSpace) -> None:
    spec = next(
        s for s in space.specs() if preserves_shape(s) and s not in baseline_network(space).ops()
    )
    machine = Machine(space.specs())
    machine.ops_ms[spec] = -0.1
    (entry,) = measured(machine, [spec]).entries
    baseline_ms = sum(machine.ops_ms[op] for op in baseline_network(space).ops()) + machine.null_ms
    assert entry.latency_ms == pytest.approx(TINY * baseline_ms + machine.null_ms, rel=1e-9)


def test_without_whole_networks_there_is_no_scale(space: SearchSpace) -> None:
    found = measured(Machine(space.specs()), tuple(space.specs())[:2])
    assert (found.scale, found.calibration) == (None, None)


@pytest.mark.parametrize("name", space_files())
def test_the_calibration_s_networks_are_different_ones_and_always_the_same(name: str) -> None:
    space = load_space(name)
    networks = calibration_networks(space)
    assert networks == calibration_networks(load_space(name))
    assert len({tuple(network.ops()) for network in networks}) == NUM_CALIBRATION
    for network in networks:
        assert space.choices_of(network)
    sizes = [len(list(network.ops())) for network in networks]
    assert min(sizes) < max(sizes)
