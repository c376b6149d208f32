"""build-lut: make a device's latency table for a space, by its analytic model or by measuring."""

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Unpack

from quadranas.errors import QuadranasError, unknown
from quadranas.files import stamp
from quadranas.latency.analytic import op_latency_ms
from quadranas.latency.conditions import Conditions
from quadranas.latency.device import (
    ANALYTIC,
    AnalyticModel,
    Device,
    DeviceSettings,
    load_device,
)
from quadranas.latency.journal import Journal, read_identity
from quadranas.latency.runtimes import FASTEST, RUNTIMES
from quadranas.latency.table import LatencyTable, TableEntry, TableHeader
from quadranas.latency.table_files import load_table, locate_table, table_paths
from quadranas.measurement.bench import fastest_runtime, open_bench, with_runtime
from quadranas.measurement.lut_entries import (
    MeasuredEntries,
    baseline_network,
    calibration_networks,
    measure_entries,
)
from quadranas.measurement.plan import MAX_RESIDUAL, Plan, Trust
from quadranas.measurement.summary import STATISTIC
from quadranas.measurement.suspects import measure_trusted
from quadranas.measurement.timing import TIMINGS
from quadranas.reporter import Reporter
from quadranas.space.operation import OpSpec
from quadranas.space.search_space import SearchSpace
from quadranas.space.space_file import load_space
from quadranas.validation import CommandResult

ONLY_SUSPECT = "--only-suspect"

CLASS_COUNTS = (10, 100, 1000)
"""Every table has heads for these numbers of classes."""


class BuildLutResult(CommandResult):
    """The result of `quadranas build-lut`.

    Args:
        path: the table's file.
        device, space: name of the device and of the space.
        entries: number of operations in the table.
        method: `analytic` or `measured`.
        summary: the source of the table's numbers, in one line.
        quality: noise and share of dropped calls of the measurement; empty for an analytic table.
    """

    path: Path
    device: str
    space: str
    entries: int
    method: str
    summary: str
    quality: str = ""

    def table(self) -> LatencyTable:
        """Load the table."""
        return load_table(self.path)


def build_lut(
    space: str | Path | SearchSpace = "quadranet-mobile",
    *,
    device: str | Path | Device,
    backend: str | None = None,
    output: str | Path | None = None,
    only_missing: bool = False,
    only_suspect: bool = False,
    max_residual: float = MAX_RESIDUAL,
    num_classes: Sequence[int] = (),
    rounds: int = Plan.num_rounds,
    repeats: int = Plan.repeats,
    reporter: Reporter | None = None,
    command: str = "",
    **settings: Unpack[DeviceSettings],
) -> BuildLutResult:
    """Make a latency table, or complete one, and save it.

    An interrupted measurement resumes when it is called again: its timings are stored beside the
    table until the table is complete.

    Args:
        backend: `analytic`, `fastest`, or the runtime to measure with. Default: `analytic` if the
            device has a model and no address, otherwise its own runtime.
        output: file of the table; default: `latency_tables/<space>/<device>.json`.
        only_missing: keep the entries of the existing table.
        only_suspect: measure the suspect entries of a measurement again that ended with an error.
        max_residual: limit on the calibration's residual, a fraction of the latency.
        num_classes: numbers of classes to add head entries for, besides 10, 100 and 1000.
        rounds, repeats: number of rounds, and of calls of every program in each.
        command: the command line, recorded in the table.
        settings: values to use instead of those in the device's file.

    Raises:
        QuadranasError: an unsuitable backend, device, existing table or file; or the machine was
            too busy, or nothing is suspect. The timings are kept.
        PromiseMissedError: the residual is above its limit. The timings are kept.
    """
    chosen = load_space(space), load_device(device, **settings)
    request = _request(*chosen, output, only_missing, num_classes, command)
    backend = backend or request.default_backend
    if backend not in (ANALYTIC, FASTEST, *RUNTIMES):
        raise unknown("backend", backend, (ANALYTIC, FASTEST, *RUNTIMES))
    if backend == ANALYTIC:
        return _analytic(request, only_suspect=only_suspect)
    plan = Plan(num_rounds=rounds, repeats=repeats)
    trust = Trust(only_suspect=only_suspect, max_residual=max_residual)
    return _measured(request, backend, reporter or Reporter(quiet=True), plan, trust)


@dataclass(frozen=True, kw_only=True)
class _Request:
    """A table to be made: its space, device, operations and file.

    Args:
        existing: the table to be completed.
    """

    space: SearchSpace
    device: Device
    specs: tuple[OpSpec, ...]
    target: Path
    existing: LatencyTable | None
    command: str

    @property
    def default_backend(self) -> str:
        if self.existing is not None:
            return self.existing.header.backend
        if self.device.analytic is not None and not self.device.has_way:
            return ANALYTIC
        return self.device.runtime or ANALYTIC

    @property
    def missing(self) -> list[OpSpec]:
        kept = self.existing.latencies_ms if self.existing else {}
        return [spec for spec in self.specs if spec not in kept]

    @property
    def timings(self) -> Path:
        """The file of the timings until the table is complete."""
        return self.target.with_name(f"{self.target.name}{TIMINGS}")

    def suspect_command(self) -> str:
        """The command that measures the suspect entries again."""
        command = self.command or shlex.join(
            [
                *("quadranas", "build-lut", "--device", self.device.name),
                *("--space", self.space.name, "--backend", str(self.device.runtime)),
                *("--output", str(self.target)),
            ]
        )
        return command if ONLY_SUSPECT in command.split() else f"{command} {ONLY_SUSPECT}"

    def begun_with(self) -> str | None:
        """The runtime of an interrupted measurement, or of the existing table."""
        if self.timings.is_file():
            return str(read_identity(self.timings).get("backend") or "") or None
        if self.target.is_file():
            header = load_table(self.target).header
            return header.backend if header.method == "measured" else None
        return None

    def check(self, conditions: Conditions) -> None:
        """Refuse to replace a measured table, or to add entries made under other conditions.

        Args:
            conditions: the conditions of the new entries.
        """
        other, hint = self.existing, "Omit --only-missing, or"
        if other is None and self.target.is_file():
            other, hint = load_table(self.target), "Delete it, or"
            if other.header.method != "measured":
                return
        if other is None:
            return
        difference = other.header.conditions.difference(conditions)
        if difference is not None:
            key, there, wanted = difference
            raise QuadranasError(
                f"{self.target} was made with {key} {there!r}; expected {wanted!r}",
                f"{hint} choose another --output.",
            )

    def header(self, conditions: Conditions, **changes: Any) -> TableHeader:
        """The header of a new table."""
        known, now = conditions.known(), stamp()
        made = {
            "title": self.device.title,
            "space_digest": self.space.digest,
            "resolution": self.space.resolution,
            "quadranas": now.quadranas,
            "command": self.command,
            "date": now.date,
            "commit": now.commit,
        }
        shared = {key: known[key] for key in known if key in TableHeader.model_fields}
        return TableHeader.model_validate({**shared, **made, **changes})

    def measured_header(self, conditions: Conditions, measured: MeasuredEntries) -> TableHeader:
        """The header of a new table that was measured."""
        calibration = measured.calibration
        error = "unknown: the space has one network only, so nothing was calibrated"
        if calibration is not None:
            error = (
                f"{calibration.residual:.1%} standard deviation on the "
                f"{len(calibration.networks)} networks of the calibration"
            )
        return self.header(
            conditions,
            statistic=STATISTIC,
            expected_error=error,
            scale=measured.scale or 1.0,
            null_ms=measured.null_ms,
            measurement=measured.measurement,
            calibration=calibration,
        )

    def save(self, header: TableHeader, entries: Sequence[TableEntry]) -> BuildLutResult:
        """Save the table; its existing entries come first."""
        kept = self.existing.entries if self.existing else ()
        table = LatencyTable(header=header, entries=(*kept, *entries))
        table.save(self.target)
        return BuildLutResult(
            path=self.target,
            device=header.device,
            space=header.space,
            entries=len(table.entries),
            method=header.method,
            summary=header.summary(),
            quality=header.measurement.quality() if header.measurement else "",
        )


def _request(
    space: SearchSpace,
    device: Device,
    output: str | Path | None,
    only_missing: bool,
    num_classes: Sequence[int],
    command: str,
) -> _Request:
    named = None if output is None else Path(output)
    found = locate_table(space.name, device, named) if only_missing else None
    classes = dict.fromkeys((*CLASS_COUNTS, space.num_classes, *num_classes))
    specs = dict.fromkeys(s for n in classes for s in space.with_num_classes(n).specs())
    return _Request(
        space=space,
        device=device,
        specs=tuple(specs),
        target=named or table_paths(space.name, device.name)[0],
        existing=load_table(found) if found else None,
        command=command,
    )


def _analytic(request: _Request, *, only_suspect: bool) -> BuildLutResult:
    if only_suspect:
        raise _nothing_suspect(request)
    device, model = request.device, request.device.analytic
    if model is None:
        raise QuadranasError(
            f"device {device.name!r} has no analytic model",
            f"Add the section 'analytic' to its YAML file, or measure it: --backend "
            f"{' or '.join(RUNTIMES)}.",
        )
    conditions = device.modelled_conditions | Conditions(space=request.space.name)
    request.check(conditions)
    kept = request.existing.header if request.existing else None
    if request.existing is not None:
        _check_entries(request, model)
    if kept is not None and not request.missing:  # a table of version 0.1.0 gets its model
        return request.save(kept.model_copy(update={"model": model.numbers}), ())
    header = request.header(
        conditions,
        statistic="model",
        fitted_to=model.fitted_to,
        expected_error=model.expected_error,
        scale=kept.scale if kept else 1.0,
        null_ms=kept.null_ms if kept else 0.0,
    )
    entries = [
        TableEntry(op=spec, latency_ms=_modelled_ms(spec, device, model))
        for spec in request.missing
    ]
    return request.save(header, entries)


def _modelled_ms(spec: OpSpec, device: Device, model: AnalyticModel) -> float:
    return op_latency_ms(spec, model, device.precision, device.batch_size)


def _check_entries(request: _Request, model: AnalyticModel) -> None:
    """Check that the entries of a table that names no model were made by this one.

    Raises:
        QuadranasError: an entry differs.
    """
    assert request.existing is not None
    if request.existing.header.model is not None:
        return
    for spec, ms in request.existing.latencies_ms.items():
        expected = _modelled_ms(spec, request.device, model)
        if not math.isclose(ms, expected, rel_tol=1e-9):
            raise QuadranasError(
                f"{request.target} was made by another analytic model than that of device "
                f"{request.device.name!r}: {ms:.6g} ms, not {expected:.6g} ms, for {spec}",
                "Omit --only-missing to make the whole table again, or choose another --output.",
            )


def _measured(
    request: _Request, backend: str, reporter: Reporter, plan: Plan, trust: Trust
) -> BuildLutResult:
    """Measure, save the table, and only then delete the timings."""
    if trust.only_suspect and not request.timings.is_file():
        raise _nothing_suspect(request)
    request = replace(request, device=_device_to_measure(request, backend, reporter))
    space, existing = request.space, request.existing
    with open_bench(request.device) as bench:
        conditions = bench.conditions | Conditions(space=space.name, method="measured")
        request.check(conditions)
        with Journal(request.timings, bench.identity("build-lut", space)) as journal:
            if journal.num_timings:
                reporter.message(
                    f"continuing with {journal.num_timings} timings from {journal.path}"
                )

            def measure() -> MeasuredEntries:
                return measure_entries(
                    request.missing,
                    baseline_network(space),
                    [] if existing else calibration_networks(space),
                    *(bench, journal, reporter, plan),
                )

            measured = measure_trusted(
                measure, journal, reporter, trust, request.suspect_command()
            )
            if existing is None:
                header, entries = request.measured_header(conditions, measured), measured.entries
            else:
                header = existing.header
                entries = measured.with_null_call(header.null_ms)
            result = request.save(header, entries)
            journal.remove()
    return result


def _nothing_suspect(request: _Request) -> QuadranasError:
    return QuadranasError(
        f"there is nothing suspect to measure again: {request.timings} does not exist",
        "Omit --only-suspect. It is for a measurement that ended with an error about suspect "
        "entries.",
    )


def _device_to_measure(request: _Request, backend: str, reporter: Reporter) -> Device:
    """The device with the runtime to measure with."""
    device = request.device
    own = request.existing.header if request.existing and device.runtime == FASTEST else None
    if own is not None and (own.method, own.backend) == ("measured", backend):
        reporter.message(f"completing the table with its own runtime: {own.summary()}")
        return with_runtime(device, own)
    if backend != FASTEST:
        return device.configured(runtime=backend)
    begun = request.begun_with()
    if begun is not None:
        return device.configured(runtime=begun)
    return fastest_runtime(device, request.space, reporter)
