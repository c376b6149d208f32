"""build-lut: make the latency table of a space on a device, by its model or by measuring."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from quadranas import __version__
from quadranas.errors import QuadranasError, unknown
from quadranas.files import source_commit
from quadranas.latency.analytic import op_latency_ms
from quadranas.latency.conditions import Conditions
from quadranas.latency.device import Device
from quadranas.latency.journal import Journal, read_identity
from quadranas.latency.runtimes import FASTEST, RUNTIMES
from quadranas.latency.table import LatencyTable, TableEntry, TableHeader
from quadranas.latency.table_files import load_table, table_paths
from quadranas.measurement.bench import as_measured, fastest_runtime, open_bench
from quadranas.measurement.lut_entries import (
    MeasuredEntries,
    calibration_networks,
    carrier_network,
    measure_entries,
)
from quadranas.measurement.timing import STATISTIC, TIMINGS, Plan
from quadranas.reporter import Reporter
from quadranas.space.operation import OpSpec
from quadranas.space.search_space import SearchSpace

CLASS_COUNTS = (10, 100, 1000)

ANALYTIC = "analytic"


@dataclass(frozen=True)
class _Request:
    """A table to be made: its space, operations and file, and the entries that it has already."""

    space: SearchSpace
    device: Device
    specs: tuple[OpSpec, ...]
    target: Path
    existing: LatencyTable | None
    command: str

    @property
    def missing(self) -> list[OpSpec]:
        kept = self.existing.latencies_ms if self.existing else {}
        return [spec for spec in self.specs if spec not in kept]

    @property
    def timings(self) -> Path:
        """Where the timings lie until the table is whole."""
        return self.target.with_name(f"{self.target.name}{TIMINGS}")

    def begun_with(self) -> str | None:
        """The runtime of a measurement that was stopped, or of the table that is there."""
        if self.timings.is_file():
            return str(read_identity(self.timings).get("backend") or "") or None
        if self.target.is_file():
            header = load_table(self.target).header
            return header.backend if header.method == "measured" else None
        return None

    def header(self, conditions: Conditions, **changes: Any) -> TableHeader:
        own = conditions.known()
        common = {
            **{key: own[key] for key in own if key in TableHeader.model_fields},
            "title": self.device.title,
            "space_digest": self.space.digest,
            "resolution": self.space.resolution,
            "quadranas": __version__,
            "command": self.command,
            "date": datetime.now(UTC).strftime("%Y-%m-%d"),
            "commit": source_commit(),
        }
        return TableHeader.model_validate({**common, **changes})

    def check(self, conditions: Conditions) -> None:
        """Refuse to mix entries with ones of another kind, or to replace measured ones by them.

        Args:
            conditions: those of the entries to be made.
        """
        other, path, hint = self.existing, self.target, "Leave out --only-missing, or"
        if other is None and path.is_file():
            other, hint = load_table(path), "Delete it, or"
            if other.header.method != "measured":
                return
        if other is None:
            return
        difference = other.header.conditions.difference(conditions)
        if difference is not None:
            key, there, wanted = difference
            raise QuadranasError(
                f"{path} was made with {key} {there!r}; wanted is {wanted!r}",
                f"{hint} choose another --output.",
            )

    def table(self, header: TableHeader, entries: Sequence[TableEntry]) -> LatencyTable:
        kept = self.existing.entries if self.existing else ()
        return LatencyTable(header=header, entries=(*kept, *entries))


def build_lut(
    space: SearchSpace,
    device: Device,
    *,
    reporter: Reporter | None = None,
    backend: str | None = None,
    output: Path | None = None,
    num_classes: Sequence[int] = (),
    only_missing: bool = False,
    plan: Plan | None = None,
    command: str = "",
) -> tuple[Path, LatencyTable]:
    """Make a table, or complete one, and save it.

    A measurement that was stopped is continued: its timings lie beside the table until it is
    whole.

    Args:
        reporter: told of the progress of a measurement.
        backend: `analytic`, or the runtime to measure with. If not given, a device that has no
            analytic model, or a description of how to reach it, is measured with its own.
        output: the table's file; `latency_tables/<space>/<device>.json` in the working folder if
            not given.
        num_classes: class counts to price the head for, besides the usual ones.
        only_missing: keep the entries of the existing table.
        plan: how often everything is timed.

    Raises:
        QuadranasError: unknown backend, no model of the device, a device that cannot be measured,
            entries of another kind in the way, or an unwritable file.
    """
    places = (output,) if output else table_paths(space.name, device.name)
    found = next((path for path in places if path.is_file()), None) if only_missing else None
    existing = load_table(found) if found else None
    backend = backend or (existing.header.backend if existing else _default_backend(device))
    if backend not in (ANALYTIC, FASTEST, *RUNTIMES):
        raise unknown("backend", backend, (ANALYTIC, FASTEST, *RUNTIMES))
    classes = dict.fromkeys((*CLASS_COUNTS, space.num_classes, *num_classes))
    specs = dict.fromkeys(s for n in classes for s in space.with_num_classes(n).specs())
    request = _Request(
        space=space,
        device=device,
        specs=tuple(specs),
        target=places[0],
        existing=existing,
        command=command,
    )
    if backend == ANALYTIC:
        table = _analytic_table(request)
        table.save(request.target)
    else:
        table = _measured_table(request, backend, reporter or Reporter(quiet=True), plan or Plan())
    return request.target, table


def _default_backend(device: Device) -> str:
    reachable = bool(device.reach.model_dump(exclude_none=True))
    if device.analytic is not None and not reachable:
        return ANALYTIC
    return device.runtime or ANALYTIC


def _analytic_table(request: _Request) -> LatencyTable:
    device, model = request.device, request.device.analytic
    if model is None:
        raise QuadranasError(
            f"device {device.name!r} has no analytic model",
            f"Add the section 'analytic' to its YAML file, or measure it: --backend "
            f"{' or '.join(RUNTIMES)}.",
        )
    conditions = device.conditions | Conditions(
        space=request.space.name, method="analytic", backend=ANALYTIC, runtime=model.runtime
    )
    request.check(conditions)
    header = request.header(
        conditions,
        statistic="model",
        fitted_to=model.fitted_to,
        expected_error=model.expected_error,
    )
    if request.existing is not None:
        kept = {key: getattr(request.existing.header, key) for key in ("scale", "null_ms")}
        header = header.model_copy(update=kept)
    entries = [
        TableEntry(op=spec, latency_ms=op_latency_ms(spec, model, device.precision))
        for spec in request.missing
    ]
    return request.table(header, entries)


def _measured_table(
    request: _Request, backend: str, reporter: Reporter, plan: Plan
) -> LatencyTable:
    """Measure, save the table, and only then let go of the timings."""
    device, existing = request.device, request.existing
    own = existing.header if existing is not None and device.runtime == FASTEST else None
    if own is not None and (own.method, own.backend) == ("measured", backend):
        device = as_measured(device, own)
        reporter.message(f"completing the table as it was measured: {own.summary()}")
    elif backend == FASTEST:
        begun = request.begun_with()
        device = (
            device.configured(runtime=begun)
            if begun
            else fastest_runtime(device, request.space, reporter)
        )
    else:
        device = device.configured(runtime=backend)
    request = replace(request, device=device)
    with open_bench(device) as bench:
        conditions = bench.conditions | Conditions(space=request.space.name, method="measured")
        request.check(conditions)
        with Journal(request.timings, bench.identity("build-lut", request.space)) as journal:
            if journal.num_timings:
                reporter.message(
                    f"continuing: {journal.num_timings} timings lie in {journal.path}"
                )
            networks = [] if existing else calibration_networks(request.space)
            carrier = carrier_network(request.space)
            measured = measure_entries(
                *(request.missing, carrier, networks, bench, journal, reporter, plan)
            )
            table = _with_entries(request, conditions, measured)
            table.save(request.target)
            journal.remove()
    return table


def _with_entries(
    request: _Request, conditions: Conditions, measured: MeasuredEntries
) -> LatencyTable:
    """The measured entries as a table of their own, or added to the existing one."""
    if request.existing is not None:
        header = request.existing.header
        added = [
            # In this order an operation as fast as a null call stays so when it is rounded.
            entry.model_copy(
                update={"latency_ms": (entry.latency_ms - measured.null_ms) + header.null_ms}
            )
            for entry in measured.entries
        ]
        return request.table(header, added)
    calibration = measured.calibration
    error = "unknown: the space has one network only, so nothing was calibrated"
    if calibration is not None:
        error = (
            f"{calibration.residual:.1%} standard deviation on the "
            f"{len(calibration.networks)} networks of the calibration"
        )
    header = request.header(
        conditions,
        statistic=STATISTIC,
        expected_error=error,
        scale=measured.scale or 1.0,
        null_ms=measured.null_ms,
        measurement=measured.measurement,
        calibration=calibration,
    )
    return request.table(header, measured.entries)
