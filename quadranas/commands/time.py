"""time: the latency of any model file on a device, measured like a table."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Unpack

from quadranas.backends.interface import ProgramWithNotes, Provenance, TimingBackend
from quadranas.errors import QuadranasError
from quadranas.files import require_readable
from quadranas.latency.analytic import primitive_ms
from quadranas.latency.device import Device, DeviceSettings, load_device
from quadranas.latency.runtimes import FASTEST, RUNTIMES, file_formats, files_of
from quadranas.measurement import bench
from quadranas.measurement.file_inputs import closed_shapes
from quadranas.measurement.summary import STATISTIC, Timing, busy_text
from quadranas.prediction.fusion import fuse
from quadranas.prediction.graph import read_graph
from quadranas.reporter import Reporter
from quadranas.validation import CommandResult

ONNX = ".onnx"
PROGRAM = "file"


class TimeResult(CommandResult):
    """The result of `quadranas time`.

    Args:
        model: the file.
        inputs: shapes of its inputs by name: the number of elements in each dimension.
        device, title: name of the device, and description of its hardware.
        runtime: name and version of the runtime.
        hardware: name that the hardware reports.
        threads: number of threads on the device.
        latency_ms: the latency, by `statistic`.
        statistic: the statistic of the timings that gives the latency.
        minimum_ms, p50_ms, p95_ms: minimum, median and 95th percentile of all undisturbed calls,
            or of what the tool reports in each round.
        spread: interquartile range of all calls, relative to their median.
        noise: relative difference between the latencies by odd and by even rounds.
        dropped: share of calls that lost the processor; None if unknown.
        rounds: number of rounds.
        predicted_ms: estimate of the analytic model of the device; None without one.
        is_lower_bound: whether operators without a price are missing from the estimate.
        deviation: the measured latency relative to the estimate, less 1; a relative difference.
        not_predicted: why there is no estimate.
        notes: how the file runs otherwise than asked for, such as nodes that run on the CPU.
    """

    model: Path
    inputs: dict[str, tuple[int, ...]]
    device: str
    title: str
    runtime: str
    hardware: str
    threads: int | None
    latency_ms: float
    statistic: str
    minimum_ms: float
    p50_ms: float
    p95_ms: float
    spread: float
    noise: float
    dropped: float | None
    rounds: int
    predicted_ms: float | None
    is_lower_bound: bool
    deviation: float | None
    not_predicted: str
    notes: tuple[str, ...]


def time(
    model: str | Path,
    *,
    device: str | Path | Device,
    resolution: int | None = None,
    inputs: Mapping[str, Sequence[int]] | None = None,
    rounds: int | None = None,
    reporter: Reporter | None = None,
    **settings: Unpack[DeviceSettings],
) -> TimeResult:
    """Time a model file of any origin, in the same rounds as the networks of a table.

    Args:
        model: a file that the runtime of the device reads: ONNX, OpenVINO's .xml, .pt2, .pte
            or .tflite.
        resolution: height and width of the input, if the file leaves them open.
        inputs: whole shapes by the names of inputs, for other sizes that the file leaves open.
        rounds: number of rounds. Default: as for the networks that a search finds.
        settings: values to use instead of those in the device's file.

    Raises:
        QuadranasError: the file cannot be read or run there, a size remains open, or the machine
            is too busy.
    """
    path = Path(model)
    require_readable(path, "model")
    opened = _with_runtime(load_device(device, **settings), path)
    plan = bench.default_plan(rounds)
    with bench.open_bench(opened) as timing_bench:
        backend = timing_bench.backend
        assert isinstance(backend, TimingBackend)
        shapes = closed_shapes(
            path,
            backend.input_shapes(path),
            batch=opened.batch_size,
            resolution=resolution,
            given=inputs or {},
        )
        program = backend.open_file(path, shapes)
        timings = timing_bench.time({PROGRAM: program}, reporter or Reporter(quiet=True), plan)
        provenance = timing_bench.provenance
    timing = timings.programs[PROGRAM]
    if timing.is_busy:
        raise QuadranasError(
            f"{path} is not measured: {busy_text(timing)}",
            "Repeat the command on an idle machine.",
        )
    notes = program.notes if isinstance(program, ProgramWithNotes) else ()
    return _result(path, opened, shapes, provenance, timing, notes)


def _result(
    path: Path,
    device: Device,
    shapes: dict[str, tuple[int, ...]],
    provenance: Provenance,
    timing: Timing,
    notes: tuple[str, ...],
) -> TimeResult:
    estimate = _estimate(path, device, shapes)
    predicted_ms, is_lower_bound = (None, False) if isinstance(estimate, str) else estimate
    return TimeResult(
        model=path,
        inputs=shapes,
        device=device.name,
        title=device.title,
        runtime=provenance.runtime,
        hardware=provenance.hardware,
        threads=device.threads,
        latency_ms=timing.latency_ms,
        statistic=STATISTIC,
        minimum_ms=timing.minimum_ms,
        p50_ms=timing.median_ms,
        p95_ms=timing.p95_ms,
        spread=timing.spread,
        noise=timing.disagreement,
        dropped=timing.dropped,
        rounds=timing.num_rounds,
        predicted_ms=predicted_ms,
        is_lower_bound=is_lower_bound,
        deviation=None if predicted_ms is None else timing.latency_ms / predicted_ms - 1,
        not_predicted=estimate if isinstance(estimate, str) else "",
        notes=notes,
    )


def _with_runtime(device: Device, path: Path) -> Device:
    """The device with a runtime that times the file.

    Raises:
        QuadranasError: its runtime does not read such files.
    """
    homes = {files_of(name).suffix: home for name, home in file_formats().items()}
    if device.runtime == FASTEST and path.suffix in homes:
        device = device.configured(runtime=homes[path.suffix])
    accepted = _suffixes(device)
    if path.suffix in accepted:
        return device
    title = RUNTIMES[device.runtime].title if device.runtime in RUNTIMES else "no runtime"
    kinds = f"files of {' and '.join(accepted)}" if accepted else "no files"
    raise QuadranasError(
        f"device {device.name!r} ({title}) times {kinds}, not {path.name}",
        "Convert the file, or name a device that reads it: host, or a YAML file.",
    )


def _suffixes(device: Device) -> list[str]:
    """The suffixes of the files that a device can time; machine code is not timed."""
    runtime = RUNTIMES.get(device.runtime or "")
    if runtime is not None and device.command is not None:
        formats: tuple[str, ...] = (device.command.format,)
    elif runtime is None or runtime.files is None or runtime.needs_reach:
        formats = ()
    else:
        formats = (runtime.files.format, *runtime.files.reads)
    return [files_of(name).suffix for name in formats if not files_of(name).native]


def _estimate(
    path: Path, device: Device, shapes: Mapping[str, Sequence[int]]
) -> tuple[float, bool] | str:
    """The estimate of the device's analytic model, and whether it is a lower bound; or why not."""
    if device.analytic is None:
        return f"device {device.name!r} has no analytic model"
    if path.suffix != ONNX:
        return "only ONNX files are predicted"
    try:
        launches, unpriced = fuse(read_graph(path, inputs=shapes))
    except QuadranasError as error:
        return error.message
    model, precision = device.analytic, device.precision
    ms = math.fsum(primitive_ms(launch.primitive, model, precision) for launch in launches)
    return (ms, bool(unpriced)) if ms > 0 else "none of its operators has a price"
