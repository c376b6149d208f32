"""Entries and scale of a measured table, on a machine whose times are known."""

from collections.abc import Sequence

import pytest

from quadranas.architecture import Architecture, OpSpec
from quadranas.errors import QuadranasError
from quadranas.latency.journal import Journal
from quadranas.lut_measurement import (
    COPIES,
    MIN_SHARE,
    NUM_CALIBRATION,
    MeasuredEntries,
    calibration_networks,
    measure_entries,
)
from quadranas.measurement import Bench
from quadranas.probes import keeps_shape
from quadranas.reporter import Reporter
from quadranas.space import SearchSpace, load_space, space_files
from quadranas.timing import Plan
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
    return measure_entries(specs, networks, bench, journal, reporter, PLAN)


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


def test_a_shape_that_nothing_keeps_has_its_boundary_from_a_pointwise_convolution(
    space: SearchSpace,
) -> None:
    """Only the downsampling is measured: it changes the shape."""
    (spec,) = (spec for spec in space.specs() if spec.kind == "downsample")
    assert not keeps_shape(spec)
    machine = Machine([spec])
    (entry,) = measured(machine, [spec]).entries
    assert entry.latency_ms == pytest.approx(machine.ops_ms[spec] + machine.null_ms, rel=1e-9)
    assert sum(machine.boundaries_ms[end] for end in machine.ends(spec)) > 0.1  # it mattered


def test_images_and_scores_have_no_boundary(space: SearchSpace) -> None:
    stem, *_, head = space.specs()
    machine = Machine([stem, head])
    assert machine.ends(stem) == [(8, 8)]
    assert machine.ends(head) == [(16, 4)]
    for spec, entry in zip([stem, head], measured(machine, [stem, head]).entries, strict=True):
        assert entry.latency_ms == pytest.approx(machine.ops_ms[spec] + machine.null_ms, rel=1e-9)


def test_a_boundary_leaves_a_share_of_the_operation(space: SearchSpace) -> None:
    (spec,) = (spec for spec in space.specs() if spec.kind == "downsample")
    machine = Machine([spec])
    machine.ops_ms[spec] = 0.01
    machine.boundaries_ms = dict.fromkeys(machine.boundaries_ms, 0.2)
    (entry,) = measured(machine, [spec]).entries
    expected_ms = MIN_SHARE * (0.2 + 0.01) + machine.null_ms
    assert entry.latency_ms == pytest.approx(expected_ms, rel=1e-9)


def test_a_chain_slower_than_its_links_has_no_negative_boundary(space: SearchSpace) -> None:
    """Caches overflow, say: then a chain's share is what counts."""
    spec = next(spec for spec in space.specs() if keeps_shape(spec))
    machine = Machine([spec])
    machine.boundaries_ms = dict.fromkeys(machine.boundaries_ms, -0.2)
    (entry,) = measured(machine, [spec]).entries
    expected_ms = (COPIES * machine.ops_ms[spec] - 0.2) / COPIES + machine.null_ms
    assert entry.latency_ms == pytest.approx(expected_ms, rel=1e-9)


def test_an_operation_faster_than_a_null_call_takes_no_negative_time(space: SearchSpace) -> None:
    stem, *_ = space.specs()
    machine = Machine([stem])
    machine.ops_ms[stem] = -0.002
    machine.boundaries_ms = dict.fromkeys(machine.boundaries_ms, 0.0)
    (entry,) = measured(machine, [stem]).entries
    assert entry.latency_ms == machine.null_ms


def test_without_whole_networks_there_is_no_scale(space: SearchSpace) -> None:
    specs = tuple(space.specs())[:2]
    found = measured(Machine(specs), specs)
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


def test_an_emulated_device_is_not_measured() -> None:
    with pytest.raises(QuadranasError, match=r"'board' is emulated \(a script\)") as caught:
        Bench(board(), ScriptedBackend(lambda *_: 1.0, emulated=True))
    assert caught.value.hint == "Measure on a real device."
