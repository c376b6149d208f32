"""The entries of a measured latency table, and the scale with which they add up to networks.

An operation alone is faster than inside a network, where others have evicted its weights from the
caches, and slower, where a runtime changes the layout of the feature map at its ends: by a third
in both directions (OpenVINO 2026.4, mbconv-mobile, 2 cores of a Zen 5, 2026-11-21), which no
single scale corrects. So operations are timed inside a baseline network, the smallest network of
the space. A shape-preserving operation can be repeated there:
`t(op) = (t(baseline with n copies) - t(baseline)) / n`. An operation that changes the shape cannot
be repeated. These are timed alone, less the null call and the cost of entering and leaving their
feature maps, and share one factor, with which the entries of the baseline network add up to its
latency. Parts of a user's own model: see `own_programs`.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Protocol

from quadranas.errors import QuadranasError
from quadranas.latency.calibration import Calibration, NetworkLatency, calibrate, fit_scale
from quadranas.latency.journal import Journal
from quadranas.latency.table import Measurement, TableEntry
from quadranas.measurement.bench import Job, chain_job, network_job
from quadranas.measurement.own_programs import own_added_ms, own_jobs, own_program
from quadranas.measurement.plan import Plan
from quadranas.measurement.probes import null_probe, preserves_shape
from quadranas.measurement.summary import Timing, Timings
from quadranas.reporter import Reporter
from quadranas.space.architecture import Architecture
from quadranas.space.cost import count_macs
from quadranas.space.operation import OpSpec
from quadranas.space.sampling import random_architectures
from quadranas.space.search_space import SearchSpace

NULL = "null"
"""Name of the program without work, whose latency is the cost of a call."""

BASELINE = "carrier"
"""The baseline network's name in journals of timings, the same as in version 0.1.0."""

COPIES = 8
"""Number of copies of an operation that are added to the baseline network."""

NUM_BASELINES = 4
"""Number of baseline networks to average; the baseline is subtracted from every entry."""

IMAGE_CHANNELS = 3

NUM_CALIBRATION = 8
TINY = 1e-3
"""Lower limit on an operation's latency, as a fraction of the baseline's: noise can make a
difference zero or negative."""
PURPOSE = "calibration"


@dataclass(frozen=True)
class MeasuredEntries:
    """Entries of a table, and the description of their measurement for its header.

    Args:
        timings: what the entries were computed from.
        scale, calibration: `None` if no whole network was measured.
    """

    timings: Timings

    entries: tuple[TableEntry, ...]
    null_ms: float
    measurement: Measurement
    scale: float | None
    calibration: Calibration | None

    def with_null_call(self, null_ms: float) -> tuple[TableEntry, ...]:
        """The entries with the null call of another table, which they are added to."""
        # The old null call is subtracted first. Rounding then cannot put an operation as fast as a
        # null call below the new one.
        return tuple(
            entry.model_copy(update={"latency_ms": (entry.latency_ms - self.null_ms) + null_ms})
            for entry in self.entries
        )


class Timer(Protocol):
    """What times the programs of a table: a bench, or the times that a person has taken."""

    def time(
        self,
        jobs: Mapping[str, Job],
        reporter: Reporter,
        plan: Plan | None = None,
        journal: Journal | None = None,
        companions: Collection[str] = (),
    ) -> Timings:
        """See `Bench`."""

    def describe(self, timings: Timings, plan: Plan) -> Measurement:
        """See `Bench`."""


def calibration_networks(space: SearchSpace) -> list[Architecture]:
    """The whole networks that a table of the space is calibrated with."""
    return random_architectures(space, NUM_CALIBRATION, PURPOSE)


def baseline_network(space: SearchSpace) -> Architecture:
    """The smallest network of a space."""
    return space.extreme(count_macs, largest=False)


def measure_entries(
    specs: Sequence[OpSpec],
    baseline: Architecture,
    networks: Sequence[Architecture],
    bench: Timer,
    journal: Journal,
    reporter: Reporter,
    plan: Plan,
) -> MeasuredEntries:
    """Time operations, baseline and calibration networks in the same shuffled rounds.

    Args:
        baseline: `baseline_network` of the space.
        networks: the networks to calibrate with; if empty, there is no scale.
    """
    timed = _timed_specs(specs, baseline)
    jobs = entry_jobs(specs, baseline, networks)
    timings = bench.time(jobs, reporter, plan, journal, companions=_baselines())
    entries = _entries(timed, baseline, timings)
    scale, calibration = _calibrate(entries.values(), networks, timings)
    return MeasuredEntries(
        timings=timings,
        entries=tuple(entries[spec] for spec in specs),
        null_ms=timings.programs[NULL].latency_ms,
        measurement=bench.describe(timings, plan),
        scale=scale,
        calibration=calibration,
    )


def _timed_specs(specs: Sequence[OpSpec], baseline: Architecture) -> tuple[OpSpec, ...]:
    # The baseline's own operations are always timed: the common factor is fitted to them.
    return tuple(dict.fromkeys((*specs, *baseline.ops())))


def entry_jobs(
    specs: Sequence[OpSpec], baseline: Architecture, networks: Sequence[Architecture]
) -> dict[str, Job]:
    """The programs that entries are computed from; arguments as in `measure_entries`."""
    timed = _timed_specs(specs, baseline)
    jobs = {NULL: Job(null_probe, 1, 1)}
    if baseline.model is not None:
        jobs |= {name: network_job(baseline) for name in _baselines()}
        jobs |= own_jobs(timed, baseline, COPIES)
    else:
        jobs |= _inserted_jobs(timed, baseline) | _single_jobs(timed)
    return jobs | {network.name: network_job(network) for network in networks}


def _inserted_jobs(specs: Iterable[OpSpec], baseline: Architecture) -> dict[str, Job]:
    """Several copies of the baseline, and the baseline with each shape-preserving operation."""
    ops = list(baseline.ops())
    jobs = {name: chain_job(ops) for name in _baselines()}
    for spec in filter(preserves_shape, specs):
        place = next(i for i, op in enumerate(ops) if _fits_after(op, spec))
        jobs[_inserted(spec)] = chain_job([*ops[: place + 1], *[spec] * COPIES, *ops[place + 1 :]])
    return jobs


def _fits_after(op: OpSpec, spec: OpSpec) -> bool:
    return (op.out_channels, op.out_resolution) == (spec.in_channels, spec.resolution)


def _single_jobs(specs: Sequence[OpSpec]) -> dict[str, Job]:
    """Operations that change the shape, and for each shape a convolution, once and twice."""
    jobs = {}
    for spec in specs:
        if not preserves_shape(spec):
            jobs[_single(spec)] = chain_job([spec])
            for conv in map(_preserving, _ends(spec)):
                jobs[_single(conv)] = chain_job([conv])
                jobs[_double(conv)] = chain_job([conv, conv])
    return jobs


Shape = tuple[int, int]
"""Channels and resolution of a feature map."""


def _ends(spec: OpSpec) -> list[Shape]:
    """Input and output of an operation, without images and class scores."""
    taken = [(spec.in_channels, spec.resolution)] if spec.in_channels > IMAGE_CHANNELS else []
    return taken if spec.is_head else [*taken, (spec.out_channels, spec.out_resolution)]


def _preserving(shape: Shape) -> OpSpec:
    """A cheap operation that preserves a shape."""
    channels, resolution = shape
    return OpSpec(
        kind="conv_bn", in_channels=channels, out_channels=channels, resolution=resolution
    )


def _baselines() -> list[str]:
    return [f"{BASELINE} {index}" for index in range(NUM_BASELINES)]


def _inserted(spec: OpSpec) -> str:
    return f"{BASELINE} + {spec} x{COPIES}"


def _single(spec: OpSpec) -> str:
    return f"{spec} alone"


def _double(spec: OpSpec) -> str:
    return f"{spec} twice"


def programs_of(spec: OpSpec) -> list[str]:
    """The programs that an entry is computed from, besides those that all entries share."""
    if spec.own is not None:
        return [] if spec.is_head else [own_program(spec)]
    if preserves_shape(spec):
        return [_inserted(spec)]
    convs = map(_preserving, _ends(spec))
    return [_single(spec), *(name for conv in convs for name in (_single(conv), _double(conv)))]


def shared_programs() -> list[str]:
    """The programs that all entries are computed from."""
    return [NULL, *_baselines()]


def _entries(
    specs: Sequence[OpSpec], baseline: Architecture, timings: Timings
) -> dict[OpSpec, TableEntry]:
    """The entries; each includes one null call."""
    null_ms = timings.programs[NULL].latency_ms
    even = _added_ms(specs, baseline, timings, lambda timing: timing.halves_ms[0])
    odd = _added_ms(specs, baseline, timings, lambda timing: timing.halves_ms[1])
    entries = {}
    added = _added_ms(specs, baseline, timings, lambda timing: timing.latency_ms)
    for spec, added_ms in added.items():
        # Minimum, percentiles and spread are known for the timed program, not for the difference;
        # they are scaled to the entry.
        program = timings.programs[next(iter(programs_of(spec)), _baselines()[0])]
        latency_ms = added_ms + null_ms
        entries[spec] = TableEntry(
            op=spec,
            latency_ms=latency_ms,
            minimum_ms=latency_ms * (program.minimum_ms / program.latency_ms),
            median_ms=latency_ms * (program.median_ms / program.latency_ms),
            p95_ms=latency_ms * (program.p95_ms / program.latency_ms),
            spread=program.spread,
            noise=abs(even[spec] - odd[spec]) / latency_ms,
        )
    return entries


def _added_ms(
    specs: Sequence[OpSpec],
    baseline: Architecture,
    timings: Timings,
    latency_of: Callable[[Timing], float],
) -> dict[OpSpec, float]:
    """The latency that each operation adds to a network."""
    ms = {name: latency_of(timing) for name, timing in timings.programs.items()}
    baseline_ms = fmean(ms[name] for name in _baselines())
    least_ms = TINY * baseline_ms
    if baseline.model is not None:

        def more_ms(name: str) -> float:
            return ms[name] - fmean(map(latency_of, timings.beside(name).values()))

        net_ms = baseline_ms - ms[NULL]
        return own_added_ms(specs, baseline, more_ms, net_ms, COPIES, least_ms)
    added = {}
    for spec in specs:
        if preserves_shape(spec):
            # The baseline is the smallest network because the noise of the difference grows with
            # the latency of the baseline. Of the rounds of a program that was timed again, only
            # those of the baseline are comparable that were made beside it.
            beside = timings.beside(_inserted(spec)).values()
            beside_ms = fmean(map(latency_of, beside))
            added[spec] = max((ms[_inserted(spec)] - beside_ms) / COPIES, least_ms)
        else:
            # A single operation enters one shape and leaves another: half of each boundary cost.
            alone_ms = ms[_single(spec)] - ms[NULL]
            ends_ms = sum(_boundary_ms(_preserving(shape), ms) for shape in _ends(spec)) / 2
            added[spec] = max(alone_ms - ends_ms, least_ms)
    # The rest of the baseline's latency belongs to the operations that change the shape. They
    # were timed alone, with warm caches, and only their sum inside a network is known. So they
    # share one factor.
    preserving_ms = sum(added[op] for op in baseline.ops() if preserves_shape(op))
    others_ms = sum(added[op] for op in baseline.ops() if not preserves_shape(op))
    factor = max(baseline_ms - ms[NULL] - preserving_ms, least_ms) / others_ms
    return {s: value if preserves_shape(s) else factor * value for s, value in added.items()}


def _boundary_ms(conv: OpSpec, ms: Mapping[str, float]) -> float:
    """The cost of entering and leaving a feature map of this shape."""
    # once = null + boundary + conv and twice = null + boundary + 2 conv, solved for the boundary.
    return max(2 * ms[_single(conv)] - ms[_double(conv)] - ms[NULL], 0.0)


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
            "cannot calibrate the table: whole networks take no longer than a null call",
            "Measure on a quieter machine; delete the file of timings to start again.",
        )
    # One scale for the whole table: eight networks are too few to fit one per operation, and a
    # common scale preserves the order of the networks.
    scale = fit_scale(sums_ms, measured_ms, null_ms)
    latencies = [
        NetworkLatency(name=network.name, predicted_ms=scale * total + null_ms, measured_ms=ms)
        for network, total, ms in zip(networks, sums_ms, measured_ms, strict=True)
    ]
    return scale, calibrate(latencies)
