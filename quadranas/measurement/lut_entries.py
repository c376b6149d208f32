"""The entries of a measured look-up table, and the scale that makes whole networks of them.

An operation alone is faster than inside a network, where others have emptied the caches of its
weights, and slower, where a runtime changes the layout of the feature map at its ends: by a third
both ways (OpenVINO 2026.4, mbconv-mobile, 2 cores of a Zen 5, 2026-11-21), which no single scale
repairs. So operations are timed inside a carrier, the smallest network of the space: one that can
follow itself, `t(op) = (t(carrier with n copies) - t(carrier)) / n`. Of those that cannot, since
they change the shape, a network has one at each place. They are timed alone, without the null
call and what entering and leaving their feature maps costs, and share one factor, with which the
entries of the carrier add up to the carrier.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from quadranas.errors import QuadranasError
from quadranas.latency.calibration import Calibration, NetworkLatency, calibrate, fit_scale
from quadranas.latency.journal import Journal
from quadranas.latency.table import Measurement, TableEntry
from quadranas.measurement.bench import Bench, Job, chain_job, network_job
from quadranas.measurement.probes import keeps_shape, null_probe
from quadranas.measurement.timing import Plan, Timings
from quadranas.reporter import Reporter
from quadranas.space.architecture import Architecture
from quadranas.space.cost import count_macs
from quadranas.space.operation import OpSpec
from quadranas.space.sampling import random_architectures
from quadranas.space.search_space import SearchSpace

NULL = "null"
"""A program that does next to nothing, so that its latency is that of a call."""

COPIES = 8
"""Of an operation in the carrier."""

NUM_CARRIERS = 4
"""The carrier is in every difference, so it is compiled and timed so many times."""

IMAGE_CHANNELS = 3

NUM_CALIBRATION = 8
TINY = 1e-3
"""Of the carrier's latency: what an operation is taken to cost at least, whatever the noise."""
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
    carrier: Architecture,
    networks: Sequence[Architecture],
    bench: Bench,
    journal: Journal,
    reporter: Reporter,
    plan: Plan,
) -> MeasuredEntries:
    """Time operations, carrier and calibration networks in the same shuffled rounds.

    Args:
        carrier: `carrier_network` of the space.
        networks: to calibrate with; none leaves the scale open.
    """
    wanted = tuple(dict.fromkeys((*specs, *carrier.ops())))
    jobs = {NULL: Job(null_probe, 1, 1)}
    jobs |= _carried_jobs(wanted, carrier) | _single_jobs(wanted)
    jobs |= {network.name: network_job(network) for network in networks}
    timings = bench.time(jobs, reporter, plan, journal)
    entries = _entries(wanted, carrier, timings)
    kept = tuple(entries[spec] for spec in specs)
    scale, calibration = _calibrate(entries.values(), networks, timings)
    null_ms = timings.programs[NULL].latency_ms
    return MeasuredEntries(kept, null_ms, bench.describe(timings, plan), scale, calibration)


def carrier_network(space: SearchSpace) -> Architecture:
    """The smallest network of a space."""
    return space.extreme(count_macs, largest=False)


def _carried_jobs(specs: Iterable[OpSpec], carrier: Architecture) -> dict[str, Job]:
    """The carrier, so many times, and with copies of each operation that can follow itself."""
    ops = list(carrier.ops())
    jobs = {name: chain_job(ops) for name in _carriers()}
    for spec in filter(keeps_shape, specs):
        place = next(i for i, op in enumerate(ops) if _fits_after(op, spec))
        jobs[_carried(spec)] = chain_job([*ops[: place + 1], *[spec] * COPIES, *ops[place + 1 :]])
    return jobs


def _fits_after(op: OpSpec, spec: OpSpec) -> bool:
    return (op.out_channels, op.out_resolution) == (spec.in_channels, spec.resolution)


def _single_jobs(specs: Sequence[OpSpec]) -> dict[str, Job]:
    """Operations that change the shape, alone, and for each shape one that keeps it, alone."""
    jobs = {}
    for spec in specs:
        if not keeps_shape(spec):
            jobs[_single(spec)] = chain_job([spec])
            for keeper in (_keeper(shape) for shape in _ends(spec)):
                jobs[_single(keeper)] = chain_job([keeper])
                jobs[_double(keeper)] = chain_job([keeper, keeper])
    return jobs


Shape = tuple[int, int]
"""Channels and resolution of a feature map."""


def _ends(spec: OpSpec) -> list[Shape]:
    """The feature maps an operation takes and gives, but for images and class scores."""
    taken = [(spec.in_channels, spec.resolution)] if spec.in_channels > IMAGE_CHANNELS else []
    return taken if spec.is_head else [*taken, (spec.out_channels, spec.out_resolution)]


def _keeper(shape: Shape) -> OpSpec:
    """A cheap operation that keeps a shape: its second copy costs what the first does inside."""
    channels, resolution = shape
    return OpSpec(
        kind="conv_bn", in_channels=channels, out_channels=channels, resolution=resolution
    )


def _carriers() -> list[str]:
    return [f"carrier {index}" for index in range(NUM_CARRIERS)]


def _carried(spec: OpSpec) -> str:
    return f"carrier + {spec} x{COPIES}"


def _single(spec: OpSpec) -> str:
    return f"{spec} alone"


def _double(spec: OpSpec) -> str:
    return f"{spec} twice"


def _entries(
    specs: Sequence[OpSpec], carrier: Architecture, timings: Timings
) -> dict[OpSpec, TableEntry]:
    """One operation and one null call each."""
    null_ms = timings.programs[NULL].latency_ms
    entries = {}
    for spec, added_ms in _added_ms(specs, carrier, timings).items():
        program = timings.programs[_carried(spec) if keeps_shape(spec) else _single(spec)]
        latency_ms = added_ms + null_ms
        entries[spec] = TableEntry(
            op=spec,
            latency_ms=latency_ms,
            minimum_ms=latency_ms * (program.minimum_ms / program.latency_ms),
            median_ms=latency_ms * (program.median_ms / program.latency_ms),
            spread=program.spread,
        )
    return entries


def _added_ms(
    specs: Sequence[OpSpec], carrier: Architecture, timings: Timings
) -> dict[OpSpec, float]:
    """What each operation adds to a network."""
    ms = {name: timing.latency_ms for name, timing in timings.programs.items()}
    carrier_ms = fmean(ms[name] for name in _carriers())
    added = {}
    for spec in specs:
        if keeps_shape(spec):
            added[spec] = max((ms[_carried(spec)] - carrier_ms) / COPIES, TINY * carrier_ms)
        else:
            alone_ms = ms[_single(spec)] - ms[NULL]
            ends_ms = sum(_boundary_ms(_keeper(shape), ms) for shape in _ends(spec)) / 2
            added[spec] = max(alone_ms - ends_ms, TINY * carrier_ms)
    repeatable_ms = sum(added[op] for op in carrier.ops() if keeps_shape(op))
    others_ms = sum(added[op] for op in carrier.ops() if not keeps_shape(op))
    factor = max(carrier_ms - ms[NULL] - repeatable_ms, TINY * carrier_ms) / others_ms
    return {s: value if keeps_shape(s) else factor * value for s, value in added.items()}


def _boundary_ms(keeper: OpSpec, ms: Mapping[str, float]) -> float:
    """What entering and leaving a shape costs: once, less what a copy costs inside."""
    once_ms, twice_ms = ms[_single(keeper)], ms[_double(keeper)]
    return max(2 * once_ms - twice_ms - ms[NULL], 0.0)


def _calibrate(
    entries: Iterable[TableEntry], networks: Sequence[Architecture], timings: Timings
) -> tuple[float | None, Calibration | None]:
    if len(networks) < 2:
        return None, None
    null_ms = timings.programs[NULL].latency_ms
    added_ms = {entry.op: entry.latency_ms - null_ms for entry in entries}
    sums_ms = [sum(added_ms[op] for op in network.ops()) for network in networks]
    measured_ms = [timings.programs[network.name].latency_ms for network in networks]
    if min(measured_ms) <= null_ms:
        raise QuadranasError(
            "whole networks take no longer than a null call, so there is nothing to calibrate",
            "Measure on a quieter machine; delete the file of timings to begin anew.",
        )
    scale = fit_scale(sums_ms, measured_ms, null_ms)
    latencies = [
        NetworkLatency(name=network.name, predicted_ms=scale * total + null_ms, measured_ms=ms)
        for network, total, ms in zip(networks, sums_ms, measured_ms, strict=True)
    ]
    return scale, calibrate(latencies)
