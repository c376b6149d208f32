"""The entries of a measured look-up table, and the scale that makes whole networks of them.

An operation alone pays at both ends for what a network pays once: runtimes change the layout of
a feature map where it enters and leaves (measured on 2026-11-21 with OpenVINO 2026.4 and
mbconv-mobile: up to a third of an operation that changes the resolution; without the correction
the networks of the calibration were 8 % off). So every shape of a feature map has its boundary,
found by timing an operation that keeps the shape once and as a chain: `boundary = t(1) - t(op)`
with `t(op) = (t(n) - t(1)) / (n - 1)`. An entry is what remains of a timing without the null
call and half a boundary at each end.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from quadranas.architecture import Architecture, OpSpec
from quadranas.latency.calibration import Calibration, NetworkLatency, calibrate, fit_scale
from quadranas.latency.journal import Journal
from quadranas.latency.table import Measurement, TableEntry
from quadranas.measurement import NULL, Bench, network_job, op_job
from quadranas.probes import keeps_shape, random_architectures
from quadranas.reporter import Reporter
from quadranas.space import SearchSpace
from quadranas.timing import Plan, Timings

COPIES = 4
"""An operation that can follow itself is timed as a chain of so many."""

IMAGE_CHANNELS = 3

MIN_SHARE = 0.25
"""Of an operation's own timing, whatever its boundaries cost."""

NUM_CALIBRATION = 8
PURPOSE = "calibration"


@dataclass(frozen=True)
class MeasuredEntries:
    """What a measurement gives a table.

    Args:
        scale, calibration: none where no whole network was measured.
    """

    entries: tuple[TableEntry, ...]
    null_ms: float
    measurement: Measurement
    scale: float | None
    calibration: Calibration | None


def calibration_networks(space: SearchSpace) -> list[Architecture]:
    """The whole networks that a table of the space is calibrated with."""
    return random_architectures(space, NUM_CALIBRATION, PURPOSE)


def measure_entries(
    specs: Sequence[OpSpec],
    networks: Sequence[Architecture],
    bench: Bench,
    journal: Journal,
    reporter: Reporter,
    plan: Plan,
) -> MeasuredEntries:
    """Time operations and calibration networks in the same shuffled rounds."""
    shapes = dict.fromkeys(shape for spec in specs for shape in _ends(spec))
    probes = {shape: _boundary_op(shape, specs) for shape in shapes}
    jobs = {_chain(spec): op_job(spec, _copies(spec)) for spec in (*specs, *probes.values())}
    jobs |= {_single(spec): op_job(spec, copies=1) for spec in probes.values()}
    jobs |= {network.name: network_job(network) for network in networks}
    timings = bench.time(jobs, journal, reporter, plan)
    null = timings.programs[NULL]
    boundaries_ms = {shape: _boundary_ms(spec, timings) for shape, spec in probes.items()}
    entries = tuple(_entry(spec, timings, boundaries_ms) for spec in specs)
    scale, calibration = _calibrate(entries, networks, timings)
    return MeasuredEntries(
        entries, null.latency_ms, bench.describe(timings, plan), scale, calibration
    )


Shape = tuple[int, int]
"""Channels and resolution of a feature map."""


def _ends(spec: OpSpec) -> list[Shape]:
    """The feature maps an operation takes and gives, but for images and class scores."""
    taken = [(spec.in_channels, spec.resolution)] if spec.in_channels > IMAGE_CHANNELS else []
    return taken if spec.is_head else [*taken, (spec.out_channels, spec.out_resolution)]


def _boundary_op(shape: Shape, specs: Sequence[OpSpec]) -> OpSpec:
    """An operation that keeps a shape: one of the space's own if there is one."""
    for spec in specs:
        if keeps_shape(spec) and (spec.in_channels, spec.resolution) == shape:
            return spec
    channels, resolution = shape
    return OpSpec(
        kind="conv_bn", in_channels=channels, out_channels=channels, resolution=resolution
    )


def _copies(spec: OpSpec) -> int:
    return COPIES if keeps_shape(spec) else 1


def _chain(spec: OpSpec) -> str:
    return f"{spec} x{_copies(spec)}"


def _single(spec: OpSpec) -> str:
    return f"{spec} x1"


def _boundary_ms(spec: OpSpec, timings: Timings) -> float:
    """What entering and leaving a feature map's shape costs, from an operation that keeps it."""
    once, chain = (timings.programs[n].latency_ms for n in (_single(spec), _chain(spec)))
    one_ms = (chain - once) / (COPIES - 1)
    return max(once - timings.programs[NULL].latency_ms - one_ms, 0.0)


def _entry(spec: OpSpec, timings: Timings, boundaries_ms: Mapping[Shape, float]) -> TableEntry:
    """One operation and one null call."""
    boundary_ms = sum(boundaries_ms[shape] for shape in _ends(spec)) / 2
    timing, null = timings.programs[_chain(spec)], timings.programs[NULL]

    def one_copy(all_ms: float, null_ms: float) -> float:
        added_ms = max(all_ms - null_ms, 0.0)
        return max(added_ms - boundary_ms, MIN_SHARE * added_ms) / _copies(spec) + null_ms

    return TableEntry(
        op=spec,
        latency_ms=one_copy(timing.latency_ms, null.latency_ms),
        minimum_ms=one_copy(timing.minimum_ms, null.minimum_ms),
        median_ms=one_copy(timing.median_ms, null.median_ms),
        spread=timing.spread,
    )


def _calibrate(
    entries: Iterable[TableEntry], networks: Sequence[Architecture], timings: Timings
) -> tuple[float | None, Calibration | None]:
    if len(networks) < 2:
        return None, None
    null_ms = timings.programs[NULL].latency_ms
    added_ms = {entry.op: entry.latency_ms - null_ms for entry in entries}
    sums_ms = [sum(added_ms[op] for op in network.ops()) for network in networks]
    measured_ms = [timings.programs[network.name].latency_ms for network in networks]
    scale = fit_scale(sums_ms, measured_ms, null_ms)
    latencies = [
        NetworkLatency(name=network.name, predicted_ms=scale * total + null_ms, measured_ms=ms)
        for network, total, ms in zip(networks, sums_ms, measured_ms, strict=True)
    ]
    return scale, calibrate(latencies)
