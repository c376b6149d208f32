"""Latency tables: the latency of every operation of a space on a device, and its provenance."""

import json
import math
import shlex
from collections.abc import Iterable
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from quadranas.errors import MissingEntryError, QuadranasError
from quadranas.files import write_atomically
from quadranas.latency.budget import MAX_MS
from quadranas.latency.calibration import Agreement, Calibration, Milliseconds
from quadranas.latency.conditions import Conditions, Difference
from quadranas.latency.device import ANALYTIC, Device, ModelNumbers, target_text
from quadranas.latency.runtimes import current_name
from quadranas.space.architecture import Architecture
from quadranas.space.operation import OpSpec
from quadranas.space.search_space import SearchSpace
from quadranas.validation import Frozen

FORMAT_VERSION = 2

MEASURED, CALIBRATED = "measured", "calibrated"
"""Methods of tables for which something was measured; see `TableHeader`."""


def dropped_text(dropped: float | Literal["unknown"] | None) -> str:
    """The share of calls that lost the processor, in words."""
    if not isinstance(dropped, float | int):
        return "unknown how many calls lost the processor"
    return f"{dropped:.1%} of the calls lost the processor and were dropped"


class Measurement(Frozen):
    """How the entries of a measured table were measured.

    Args:
        hardware: name that the hardware reports.
        target: the device in the runtime's terms; empty if the runtime has only one.
        versions: versions of the packages that compiled the programs.
        settings: other settings that affect the speed: tuning, clocks, driver.
        num_rounds, repeats: number of rounds, and of calls of every program in each.
        num_disturbed: number of rounds in which the reference operation was slow.
        num_throttled: number of rounds that were repeated because the device lowered its clock.
        noise, noise_p95: relative difference between odd and even rounds, median and 95th
            percentile over the programs; `noise_p95` is `None` in older tables.
        dropped: share of the calls that lost the processor to other processes, which were dropped
            and repeated; `unknown` for devices that cannot tell, and in older tables.
        reference_ms: latency of the reference operation.
        max_temperature_c, min_clock_mhz, max_clock_mhz: extremes of the device's sensors since the
            measurement was last started; `None` if it has none, or they are not read.
    """

    hardware: str
    target: str = ""
    versions: dict[str, str]
    settings: dict[str, str]
    num_rounds: int = Field(ge=1)
    repeats: int = Field(ge=1)
    num_disturbed: int = Field(ge=0)
    num_throttled: int = Field(default=0, ge=0)
    noise: float = Field(ge=0, allow_inf_nan=False)
    noise_p95: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    dropped: Annotated[float, Field(ge=0, le=1)] | Literal["unknown"] = "unknown"
    reference_ms: Milliseconds
    max_temperature_c: float | None = Field(default=None, allow_inf_nan=False)
    min_clock_mhz: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    max_clock_mhz: float | None = Field(default=None, ge=0, allow_inf_nan=False)

    def quality(self) -> str:
        """The noise and the share of dropped calls in words."""
        worst = "" if self.noise_p95 is None else f" (95th percentile {self.noise_p95:.1%})"
        return f"noise {self.noise:.1%}{worst}, {dropped_text(self.dropped)}"


class Transfer(Frozen):
    """How the entries of a calibrated table were made of those of another one.

    Args:
        source: the device of the other table, and its provenance in one line.
        factors: what the entries of each kind of operation and kernel size were multiplied by.
        prior: weight of the prior (`quadranas.latency.transfer`).
    """

    source: str
    factors: dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]]
    prior: float = Field(ge=0, allow_inf_nan=False)


class TableHeader(Frozen):
    """The provenance of a table.

    Args:
        format_version: version of the file format.
        device, title: name of the device, and description of its hardware.
        space, space_digest: the search space, and the identity of its blocks.
        resolution: height and width of the input of the space's networks, in pixels.
        method: `analytic`, `emulated`, `measured`, or `calibrated`: another table's entries, made
            to fit whole networks that were measured.
        backend: name of the runtime, or `analytic`.
        runtime: name and version of the runtime that was measured or modelled.
        precision: precision of weights and activations.
        threads: number of threads on the device; `None` for devices without a thread count.
        batch_size: number of images per call; latencies are per call.
        unit: unit of every latency.
        tuning_trials: for a measured table, the number of schedules that the runtime tried per
            kernel; `None` if it has no such setting, or in a table of version 0.1.0.
        statistic: `model`, or the statistic of the timings that gives an entry.
        fitted_to: for an analytic table, the source of the device model.
        model: for an analytic table, the numbers of the device model; `None` in a table of version
            0.1.0.
        expected_error: description of the expected error of a predicted network latency.
        scale, null_ms: a network's latency is `scale * sum(entry - null_ms) + null_ms`.
        quadranas: version of quadranas that made the table.
        command, date, commit: command line, date and source revision that made the table.
        measurement, calibration, validation: for a measured or calibrated table: how it was
            measured, the whole networks that it was fitted to, and fresh networks that it was
            compared with.
        transfer: for a calibrated table, what it was made of.
    """

    format_version: int = FORMAT_VERSION
    device: str
    title: str
    space: str
    space_digest: str
    resolution: int = Field(ge=1)
    method: str = Field(pattern="^(analytic|emulated|measured|calibrated)$")
    backend: str
    runtime: str
    precision: str
    threads: int | None = None
    batch_size: int = Field(default=1, ge=1)
    unit: Literal["ms"] = "ms"
    tuning_trials: int | None = Field(default=None, ge=0)
    statistic: str
    fitted_to: str = ""
    model: ModelNumbers | None = None
    expected_error: str
    scale: float = Field(default=1.0, ge=1e-6, le=1e6)
    null_ms: float = Field(default=0.0, ge=0, le=MAX_MS)
    quadranas: str
    command: str
    date: str
    commit: str
    measurement: Measurement | None = None
    calibration: Calibration | None = None
    validation: Agreement | None = None
    transfer: Transfer | None = None

    @model_validator(mode="before")
    @classmethod
    def _rename_backend(cls, content: Any) -> Any:
        """Read the tables of version 0.1.0."""
        if not isinstance(content, dict) or content.get("backend") != "openvino":
            return content
        is_old = str(content.get("runtime")).startswith("OpenVINO 2021.4")
        return content | {"backend": current_name("openvino", worker=is_old)}

    @model_validator(mode="after")
    def _check_measured(self) -> Self:
        if (self.method in (MEASURED, CALIBRATED)) != (self.measurement is not None):
            raise ValueError("measured tables, and only these, need the section 'measurement'")
        if (self.method == CALIBRATED) != (self.transfer is not None):
            raise ValueError("calibrated tables, and only these, need the section 'transfer'")
        return self

    @property
    def conditions(self) -> Conditions:
        """The conditions that the entries were made under."""
        keys = set(Conditions.model_fields)
        known = self.model_dump(include=keys)
        for key in ("tuning_trials", "model"):
            if known[key] is None:  # unknown
                del known[key]
        if self.measurement is not None:
            known |= self.measurement.model_dump(include=keys)
            with suppress(ValueError):  # it is not JSON
                known["target"] = target_text(json.loads(known["target"]))
        return Conditions.model_validate(known)

    def differences(self, device: Device) -> list[Difference]:
        """The conditions in which this table and a device differ, as far as both know them.

        What the runtime reports, such as versions and clocks, is compared when the device is
        opened (`Bench.check_same`).
        """
        is_modelled = self.method == ANALYTIC
        there = device.modelled_conditions if is_modelled else device.conditions
        return self.conditions.differences(there)

    def summary(self) -> str:
        """The provenance in one line."""
        threads = (
            f", {self.threads} thread{'s' if self.threads != 1 else ''}" if self.threads else ""
        )
        return (
            f"{self.method} ({self.title}, {self.runtime}, {self.precision}{threads}, "
            f"batch {self.batch_size}; expected error {self.expected_error})"
        )


class TableEntry(Frozen):
    """The latency of one operation.

    Args:
        op: the operation.
        latency_ms: the latency, as the table's statistic.
        minimum_ms, median_ms, p95_ms: minimum, median and 95th percentile of all undisturbed
            calls of the program that the operation was timed in, in proportion to `latency_ms`;
            `None` if it was not measured, `p95_ms` also in older tables.
        spread: interquartile range of those calls, relative to their median.
        noise: relative difference between the latencies by odd and by even rounds; `None` if it
            was not measured, and in older tables.
    """

    op: OpSpec
    latency_ms: Milliseconds
    minimum_ms: Milliseconds | None = None
    median_ms: Milliseconds | None = None
    p95_ms: Milliseconds | None = None
    spread: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    noise: float | None = Field(default=None, ge=0, allow_inf_nan=False)


class LatencyTable(Frozen):
    """The latencies of the operations of a space on one device.

    Args:
        header: the provenance of the table.
        entries: the entries; each operation once.
    """

    header: TableHeader
    entries: tuple[TableEntry, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _check_unique(self) -> Self:
        if len({entry.op for entry in self.entries}) < len(self.entries):
            raise ValueError("an operation has two entries")
        if any(entry.latency_ms < self.header.null_ms for entry in self.entries):
            raise ValueError("an entry is below null_ms: an operation cannot take negative time")
        return self

    @cached_property
    def latencies_ms(self) -> dict[OpSpec, float]:
        """Entries by operation."""
        return {entry.op: entry.latency_ms for entry in self.entries}

    def op_ms(self, spec: OpSpec) -> float:
        """The latency that an operation adds to a network, in milliseconds.

        A classifier gets the entry of the smallest head with at least as many classes. This is an
        upper bound, so that a budget kept by the prediction is kept by the network.

        Raises:
            MissingEntryError: the operation has no entry; names the command that adds it.
        """
        found = self.latencies_ms.get(spec)
        if found is None and spec.is_head:
            found = min(
                (ms for op, ms in self.latencies_ms.items() if _bounds(op, spec)), default=None
            )
        if found is None:
            raise self._missing((spec,))
        return self.header.scale * (found - self.header.null_ms)

    def predict_ms(self, architecture: Architecture) -> float:
        """Predict the latency of a whole network, in milliseconds.

        Raises:
            QuadranasError: the network has replaced layers, for which tables have no entries.
            MissingEntryError: some of its operations have no entry.
        """
        if architecture.changes:
            raise QuadranasError(
                f"{architecture.name} has {len(architecture.changes)} replaced layers, which "
                "latency tables do not cover",
                "Export it, and run: quadranas predict FILE.onnx --device DEVICE",
            )
        try:
            # Rounded once, so that the order of the operations does not matter.
            added_ms = math.fsum(map(self.op_ms, architecture.ops()))
        except MissingEntryError:
            self.require(architecture.ops())  # its error counts all missing entries
            raise
        return added_ms + self.header.null_ms

    def require(self, specs: Iterable[OpSpec], command: str = "") -> None:
        """Check that every operation has an entry.

        Args:
            command: the command that makes the table, for the error message.

        Raises:
            MissingEntryError: gives the number of missing entries, the first, and the command.
        """
        missing = []
        for spec in dict.fromkeys(specs):
            try:
                self.op_ms(spec)
            except MissingEntryError:
                missing.append(spec)
        if missing:
            raise self._missing(tuple(missing), command)

    def _missing(self, specs: tuple[OpSpec, ...], command: str = "") -> MissingEntryError:
        header = self.header
        command = command or build_command(header.space, header.device)
        classes = next((f" --num-classes {s.out_channels}" for s in specs if s.is_head), "")
        return MissingEntryError(
            f"the latency table of device {header.device!r} for space {header.space!r} has no "
            f"entry for {len(specs)} operation{'s' if len(specs) > 1 else ''}, first: {specs[0]}",
            f"Make it again with: {header.command}{classes}"
            if header.transfer is not None
            else f"Fill it with: {command} --backend {header.backend} --only-missing{classes}",
        )

    def save(self, path: Path) -> None:
        """Write the table as JSON, one entry a line."""
        lines = ",\n  ".join(
            entry.model_dump_json(exclude_defaults=True) for entry in self.entries
        )
        header = self.header.model_dump_json(indent=1, exclude_none=True)
        write_atomically(path, f'{{"header": {header},\n"entries": [\n  {lines}\n]}}\n')


def _bounds(priced: OpSpec, wanted: OpSpec) -> bool:
    """Whether `priced` is the head `wanted` with at least as many classes."""
    same = priced.model_copy(update={"out_channels": wanted.out_channels}) == wanted
    return same and priced.out_channels >= wanted.out_channels


def argument_of(thing: str | Path | Device | SearchSpace) -> str:
    """A device or space as named on the command line."""
    return str(thing) if isinstance(thing, str | Path) else thing.name


def build_command(space: str, device: str, command: str = "build-lut") -> str:
    """The command that makes a table, with space and device as given on the command line."""
    return shlex.join(["quadranas", command, "--device", device, "--space", space])
