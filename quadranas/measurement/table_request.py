"""A latency table to be made: its space, device, operations and file, and its header."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quadranas.errors import QuadranasError
from quadranas.files import refuse_special, stamp
from quadranas.latency.conditions import Conditions
from quadranas.latency.device import ANALYTIC, Device
from quadranas.latency.journal import read_identity
from quadranas.latency.runtimes import FASTEST
from quadranas.latency.table import MEASURED, LatencyTable, TableEntry, TableHeader
from quadranas.latency.table_files import load_table, locate_table, table_paths
from quadranas.measurement.bench import fastest_runtime, with_runtime
from quadranas.measurement.lut_entries import MeasuredEntries
from quadranas.measurement.summary import STATISTIC
from quadranas.measurement.timing import TIMINGS
from quadranas.reporter import Reporter
from quadranas.space.operation import OpSpec
from quadranas.space.search_space import SearchSpace

ONLY_SUSPECT = "--only-suspect"

CLASS_COUNTS = (10, 100, 1000)
"""Every table has heads for these numbers of classes."""


@dataclass(frozen=True, kw_only=True)
class TableRequest:
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
        """`analytic`, or the runtime to measure with, where none is named."""
        if self.existing is not None:
            return self.existing.header.backend
        if self.device.analytic is not None and not self.device.has_way:
            return ANALYTIC
        return self.device.runtime or ANALYTIC

    @property
    def missing(self) -> list[OpSpec]:
        """The operations without an entry."""
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
            return header.backend if header.measurement is not None else None
        return None

    def device_to_measure(self, backend: str, reporter: Reporter) -> Device:
        """The device with the runtime to measure with.

        Args:
            backend: a runtime, or `fastest`.
        """
        device = self.device
        own = self.existing.header if self.existing and device.runtime == FASTEST else None
        if own is not None and (own.method, own.backend) == (MEASURED, backend):
            reporter.message(f"completing the table with its own runtime: {own.summary()}")
            return with_runtime(device, own)
        if backend != FASTEST:
            return device.configured(runtime=backend)
        begun = self.begun_with()
        if begun is not None:
            return device.configured(runtime=begun)
        return fastest_runtime(device, self.space, reporter)

    def check(self, conditions: Conditions) -> None:
        """Refuse to replace a measured table, or to add entries made under other conditions.

        Args:
            conditions: the conditions of the new entries.
        """
        other, hint = self.existing, "Omit --only-missing, or"
        if other is None and self.target.is_file():
            other, hint = load_table(self.target), "Delete it, or"
            if other.header.measurement is None:
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

    def save(self, header: TableHeader, entries: Sequence[TableEntry]) -> LatencyTable:
        """Save the table; its existing entries come first."""
        kept = self.existing.entries if self.existing else ()
        table = LatencyTable(header=header, entries=(*kept, *entries))
        table.save(self.target)
        return table

    def save_measured(self, conditions: Conditions, measured: MeasuredEntries) -> LatencyTable:
        """Save the table with entries that were measured under some conditions."""
        if self.existing is None:
            return self.save(self.measured_header(conditions, measured), measured.entries)
        header = self.existing.header
        return self.save(header, measured.with_null_call(header.null_ms))


def table_request(
    space: SearchSpace,
    device: Device,
    output: str | Path | None,
    only_missing: bool,
    num_classes: Sequence[int],
    command: str,
) -> TableRequest:
    """The request for a table.

    Args:
        output: file of the table; `None` for the usual place.
        only_missing: complete the existing table.
        num_classes: numbers of classes to add head entries for, besides 10, 100 and 1000.

    Raises:
        QuadranasError: the output is no file, or the existing table cannot be read.
    """
    named = None if output is None else Path(output)
    target = named or table_paths(space.name, device.name)[0]
    refuse_special(target)
    found = locate_table(space.name, device, named) if only_missing else None
    counts = CLASS_COUNTS if space.model is None else ()  # one's own model has its own
    classes = dict.fromkeys((*counts, space.num_classes, *num_classes))
    specs = dict.fromkeys(s for n in classes for s in space.with_num_classes(n).specs())
    return TableRequest(
        space=space,
        device=device,
        specs=tuple(specs),
        target=target,
        existing=load_table(found) if found else None,
        command=command,
    )
