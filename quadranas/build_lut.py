"""build-lut: make the latency table of a space on a device."""

import subprocess
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from quadranas import __version__
from quadranas.architecture import OpSpec
from quadranas.errors import QuadranasError, unknown
from quadranas.files import PACKAGE
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
    kept: dict[OpSpec, float] = {}
    if only_missing:
        existing = (target,) if output else table_paths(space.name, device.name)
        kept = _entries_of(existing, space, device, backend)
    classes = dict.fromkeys((*CLASS_COUNTS, space.num_classes, *num_classes))
    specs = dict.fromkeys(s for n in classes for s in space.with_num_classes(n).specs())
    entries = kept | {spec: latency_ms(spec) for spec in specs if spec not in kept}
    table = LatencyTable(
        header=_header(space, device, backend, command),
        entries=tuple(TableEntry(op=op, latency_ms=ms) for op, ms in entries.items()),
    )
    table.save(target)
    return target, table


def _entries_of(
    paths: Sequence[Path], space: SearchSpace, device: Device, backend: str
) -> dict[OpSpec, float]:
    """The entries of the first table found, refusing one of another kind."""
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        return {}
    table = load_table(path)
    found = (table.header.space, table.header.device, table.header.backend)
    if found != (space.name, device.name, backend):
        raise QuadranasError(
            f"{path} was made for {'/'.join(found)}, not for "
            f"{space.name}/{device.name}/{backend} (space/device/backend)",
            "Leave out --only-missing, or choose another --output.",
        )
    return table.latencies_ms


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
        runtime=device.runtime,
        precision=device.precision,
        threads=device.threads,
        batch_size=device.batch_size,
        statistic="model",
        fitted_to=model.fitted_to,
        expected_error=model.expected_error,
        quadranas=__version__,
        command=command,
        date=datetime.now(UTC).strftime("%Y-%m-%d"),
        commit=_commit(),
    )


def _commit() -> str:
    """The commit of the checkout this package runs from; empty for an installed package."""
    if not (PACKAGE.parent / ".git").exists():
        return ""
    result = subprocess.run(
        ["git", "rev-parse", "--short=12", "HEAD"],
        cwd=PACKAGE.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return result.stdout.strip()
