"""build-lut: make the latency table of a space on a device."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from quadranas import __version__
from quadranas.architecture import OpSpec
from quadranas.errors import QuadranasError, unknown
from quadranas.files import source_commit
from quadranas.latency.analytic import op_latency_ms
from quadranas.latency.device import Device
from quadranas.latency.table import (
    LatencyTable,
    TableEntry,
    TableHeader,
    load_table,
    table_paths,
)
from quadranas.space import SearchSpace

CLASS_COUNTS = (10, 100, 1000)

LatencySource = Callable[[OpSpec], float]
"""Milliseconds of one operation on the device it was opened for."""


def _analytic(device: Device) -> LatencySource:
    model = device.analytic
    if model is None:
        raise QuadranasError(
            f"device {device.name!r} has no analytic model",
            "Add the section 'analytic' to its YAML file.",
        )
    return lambda spec: op_latency_ms(spec, model, device.precision)


LATENCY_SOURCES: dict[str, Callable[[Device], LatencySource]] = {"analytic": _analytic}
"""Where a table's numbers can come from; a measuring backend is one more line."""


def build_lut(
    space: SearchSpace,
    device: Device,
    *,
    backend: str = "analytic",
    output: Path | None = None,
    num_classes: Sequence[int] = (),
    only_missing: bool = False,
    command: str = "",
) -> tuple[Path, LatencyTable]:
    """Make a table, or complete one, and save it.

    Args:
        output: the table's file; `latency_tables/<space>/<device>.json` in the working folder if
            not given.
        num_classes: class counts to price the head for, besides the usual ones.
        only_missing: keep the entries of the existing table.

    Raises:
        QuadranasError: unknown backend, no model of the device, or an unwritable file.
    """
    if backend not in LATENCY_SOURCES:
        raise unknown("backend", backend, LATENCY_SOURCES)
    latency_ms = LATENCY_SOURCES[backend](device)
    target = output or table_paths(space.name, device.name)[0]
    header = _header(space, device, backend, command)
    kept: dict[OpSpec, float] = {}
    if only_missing:
        existing = _existing((target,) if output else table_paths(space.name, device.name), header)
        if existing is not None:
            kept = existing.latencies_ms
            calibration = {"scale": existing.header.scale, "null_ms": existing.header.null_ms}
            header = header.model_copy(update=calibration)
    classes = dict.fromkeys((*CLASS_COUNTS, space.num_classes, *num_classes))
    specs = dict.fromkeys(s for n in classes for s in space.with_num_classes(n).specs())
    entries = kept | {spec: latency_ms(spec) for spec in specs if spec not in kept}
    table = LatencyTable(
        header=header,
        entries=tuple(TableEntry(op=op, latency_ms=ms) for op, ms in entries.items()),
    )
    table.save(target)
    return target, table


def _existing(paths: Sequence[Path], wanted: TableHeader) -> LatencyTable | None:
    """The first table found, refusing one whose entries are of another kind than wanted."""
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        return None
    table = load_table(path)
    hint = "Leave out --only-missing, or choose another --output."
    found, needed = ("/".join(_identity(header)) for header in (table.header, wanted))
    if found != needed:
        message = f"{path} was made for {found}, not for {needed} (space/device/backend)"
        raise QuadranasError(message, hint)
    for key in ("runtime", "precision", "threads", "batch_size"):
        old, new = getattr(table.header, key), getattr(wanted, key)
        if old != new:
            message = f"{path} was made with {key} {old!r}; device {wanted.device!r} has {new!r}"
            raise QuadranasError(message, hint)
    return table


def _identity(header: TableHeader) -> tuple[str, str, str]:
    return header.space, header.device, header.backend


def _header(space: SearchSpace, device: Device, backend: str, command: str) -> TableHeader:
    model = device.analytic
    assert model is not None
    return TableHeader(
        device=device.name,
        title=device.title,
        space=space.name,
        space_digest=space.digest,
        resolution=space.resolution,
        method="analytic",
        backend=backend,
        runtime=model.runtime,
        precision=device.precision,
        threads=device.threads,
        batch_size=device.batch_size,
        statistic="model",
        fitted_to=model.fitted_to,
        expected_error=model.expected_error,
        quadranas=__version__,
        command=command,
        date=datetime.now(UTC).strftime("%Y-%m-%d"),
        commit=source_commit(),
    )
