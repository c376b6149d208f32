"""The latency of an exported file: predicted by a table, and measured where the file runs."""

from collections.abc import Mapping
from pathlib import Path

from quadranas.backends.interface import Backend, Program
from quadranas.deployment.manifest import Latency, LatencyNote
from quadranas.deployment.target import HOST
from quadranas.errors import QuadranasError
from quadranas.latency.conditions import Conditions
from quadranas.latency.device import Device
from quadranas.latency.runtimes import FASTEST
from quadranas.latency.table import LatencyTable
from quadranas.latency.table_files import check_conditions, load_table, locate_table
from quadranas.measurement.bench import Bench
from quadranas.measurement.plan import Plan
from quadranas.measurement.summary import STATISTIC, busy_text
from quadranas.reporter import Reporter
from quadranas.runs.run_device import table_place
from quadranas.space.architecture import Architecture


def find_prediction_table(
    architecture: Architecture, device: Device, folder: Path | None, path: Path | None
) -> LatencyTable | str:
    """The table that predicts the latency of a network, or the reason why it is missing.

    Args:
        folder: the run folder of the network.
        path: latency table to use instead of the run's or the default one.

    Raises:
        QuadranasError: the named table was made for another device or under other conditions.
    """
    if device.name == HOST:  # an export sets its runtime to that of the file, its tables need not
        device = device.model_copy(update={"runtime": FASTEST})
    own = table_place(folder, device.name) if folder is not None else None
    place = path or locate_table(architecture.space, device, own=own)
    if place is None:
        return "no latency table of the device for the network's space"
    table = load_table(place)
    try:
        check_conditions(table.header, device, place)
    except QuadranasError as error:
        if path is not None:
            raise
        return f"{error.message}. {error.hint}"
    return table


def predicted(
    architecture: Architecture, table: LatencyTable | str, *, resolution: int, batch: int
) -> LatencyNote | str:
    """The predicted latency of a network, or the reason why it cannot be predicted.

    Args:
        architecture: the architecture at its deployment resolution.
        table: the table, or the reason why it is missing.
        resolution, batch: input size and batch size of the file.
    """
    if isinstance(table, str):
        return table
    if resolution != architecture.resolution:
        return f"latency tables are for {architecture.resolution} pixels"
    if table.header.batch_size != batch:
        return f"the latency table is for a batch size of {table.header.batch_size}"
    try:
        ms = table.predict_ms(architecture)
    except QuadranasError as error:
        return error.message
    return LatencyNote(device=table.header.device, ms=ms, source=table.header.summary())


def measured(
    backend: Backend,
    device: Device,
    programs: Mapping[str, Program],
    reporter: Reporter,
    plan: Plan | None = None,
) -> dict[str, LatencyNote] | str:
    """Measure programs of one device together.

    Args:
        plan: `DEFAULT_PLAN` of the bench if not given.

    Returns: the latencies, or the reason why they are missing: the machine is busy.

    Raises:
        QuadranasError: the device is emulated; emulated times are not latencies.
    """
    bench = Bench(device, backend)
    timings, provenance = bench.time(programs, reporter, plan), bench.provenance
    if timings.busy:
        reason = busy_text(timings.programs[timings.busy[0]])
        reporter.warning(f"the file is not measured: {reason}")
        return reason
    threads = f"{device.threads} thread{'s' if device.threads != 1 else ''}, "
    source = (
        f"measured ({provenance.hardware}, {provenance.runtime}, "
        f"{threads if device.threads else ''}{STATISTIC}, {timings.num_rounds} rounds)"
    )
    return {
        name: LatencyNote(
            device=device.name,
            ms=timing.latency_ms,
            source=source,
            spread=timing.spread,
            p50_ms=timing.median_ms,
            p95_ms=timing.p95_ms,
            dropped=timing.dropped,
        )
        for name, timing in timings.programs.items()
    }


def describe_latency(
    prediction: LatencyNote | str,
    measurement: Mapping[str, LatencyNote] | str,
    *,
    comparable: bool,
) -> Latency:
    """Describe prediction and measurement, or the reasons why they are missing.

    Args:
        measurement: latencies of `file`, and of `fp32` if the file has another precision.
        comparable: whether prediction and measurement were made under the same conditions, so that
            their deviation is meaningful.
    """
    note = prediction if isinstance(prediction, LatencyNote) else None
    notes = {} if isinstance(measurement, str) else measurement
    own = notes.get("file")
    both = comparable and note is not None and own is not None
    return Latency(
        predicted=note,
        measured=own,
        fp32=notes.get("fp32"),
        deviation=own.ms / note.ms - 1 if both else None,  # type: ignore[union-attr] # mypy 2.4
        not_predicted=prediction if isinstance(prediction, str) else "",
        not_measured=measurement if isinstance(measurement, str) else "",
    )


def is_comparable(table: LatencyTable | None, device: Device, batch_size: int) -> bool:
    """Whether a table predicts what is measured on a device with a file of this batch size."""
    if table is None:
        return False
    here = device.conditions | Conditions(batch_size=batch_size)
    return table.header.conditions.difference(here) is None
