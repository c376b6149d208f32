"""The target of an export: format, target device, and the device that checks the file."""

import math
import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from quadranas.errors import QuadranasError, printable, unknown
from quadranas.latency.budget import parse_budget
from quadranas.latency.contract import DEFAULT_TOLERANCE
from quadranas.latency.device import Device, load_device
from quadranas.latency.runtimes import (
    LOCAL_SETTINGS,
    REACH_SETTINGS,
    RUNTIMES,
    Runtime,
    RuntimeFiles,
    file_formats,
    files_of,
    precisions_in_words,
)
from quadranas.runs.config import DataConfig, load_config
from quadranas.runs.run_device import device_of, open_device_argument
from quadranas.space.architecture import Architecture

HOST = "host"
FREE_BATCH = 8
"""The batch size that a file for any batch size is checked with."""
MAX_BATCH = 8192


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Options of an export: the file, its target device, and how it is checked.

    Args:
        format: file format, a key of `file_formats()`.
        precision: precision of the file.
        device: target device; by default the one that the architecture was derived for if it can
            run the format, else this machine.
        batch: images per call, or `dynamic` for any number.
        resolution: input size in pixels; by default the deployment resolution.
        opset: ONNX opset; by default the one of the device's runtime.
        max_drop: largest drop of accuracy for int8, in percentage points; by default 1.
        budget: latency budget, such as `30ms`.
        tolerance: allowed overshoot of a measured latency, as a fraction of the budget.
        images: number of validation images to check with; by default 1000, or 16 on a board.
        table: latency table to use instead of the default one.
        data, val, skip_corrupt: the images; by default those of the run.
        threads, tuning_trials, rpc, rpc_tracker, rpc_key, worker_python, ssh, python: settings
            that replace those of the device's file.
        allow_commands: time the file with the command of the device's file.
    """

    format: str = "onnx"
    precision: str = "fp32"
    device: str | Path | Device | None = None
    batch: int | str = 1
    resolution: int | None = None
    opset: int | None = None
    max_drop: float | None = None
    budget: str | None = None
    tolerance: float = DEFAULT_TOLERANCE
    images: int | None = None
    table: str | Path | None = None
    data: str | None = None
    val: str | None = None
    skip_corrupt: bool | None = None
    threads: int | None = None
    tuning_trials: int | None = None
    rpc: str | None = None
    rpc_tracker: str | None = None
    rpc_key: str | None = None
    worker_python: str | None = None
    ssh: str | None = None
    python: str | None = None
    allow_commands: bool = False

    @property
    def batch_size(self) -> int | None:
        """Images per call; `None` for any number.

        Raises:
            QuadranasError: `batch` is neither a number of at least 1 nor `dynamic`.
        """
        text = str(self.batch)
        if text == "dynamic":
            return None
        if not re.fullmatch(r"0*[1-9][0-9]{0,8}", text):
            raise QuadranasError(
                "--batch must be dynamic or a number from 1 to 999999999, got "
                f"{printable(text[:40])!r}"
            )
        return int(text)

    @property
    def checked_batch(self) -> int:
        """Images per call when the file is checked."""
        return FREE_BATCH if self.batch_size is None else self.batch_size

    @property
    def budget_ms(self) -> float | None:
        """The budget in milliseconds."""
        return parse_budget(self.budget) if self.budget else None

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of the device that were given."""
        return self._given(*LOCAL_SETTINGS, *REACH_SETTINGS)

    @property
    def images_of(self) -> DataConfig:
        """The data that were given."""
        return load_config(DataConfig, None, **self._given("data", "val", "skip_corrupt"))

    def _given(self, *names: str) -> dict[str, Any]:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: values[name] for name in names if values[name] is not None}

    def check(self) -> None:
        """Check everything that does not depend on the network.

        Raises:
            QuadranasError: an impossible option; names the accepted values.
        """
        if self.format not in file_formats():
            raise unknown("format", self.format, file_formats())
        files = files_of(self.format)
        if self.precision not in files.precisions:
            raise QuadranasError(
                f"format {self.format} has no precision {self.precision!r}; accepted: "
                f"{', '.join(files.precisions)}",
                f"{precisions_in_words()}.",
            )
        if self.batch_size is None and not files.free_batch:
            raise QuadranasError(
                f"format {self.format} takes batches of one size only", "Name it: --batch 1."
            )
        if self.batch_size is not None and self.batch_size > MAX_BATCH:
            raise QuadranasError(f"--batch must be at most {MAX_BATCH}, got {self.batch}")
        self._check_fit(files)
        if self.max_drop is not None and not math.isfinite(self.max_drop):
            raise QuadranasError(f"--max-drop must be a finite number, got {self.max_drop}")
        if self.opset is not None and self.opset not in files.opsets:
            raise QuadranasError(
                f"ONNX opset {self.opset} is not supported; accepted: {files.opsets[0]} to "
                f"{files.opsets[-1]}",
                "Omit it for the default of the device.",
            )
        if self.budget:
            parse_budget(self.budget)

    def _check_fit(self, files: RuntimeFiles) -> None:
        """Refuse options that do not apply to the format and precision."""
        tuned = [
            name
            for name, runtime in file_formats().items()
            if "tuning_trials" in RUNTIMES[runtime].settings
        ]
        for option, value, fits, what in (
            ("--opset", self.opset, bool(files.opsets), "the format onnx"),
            ("--max-drop", self.max_drop, self.precision == "int8", "the precision int8"),
            (
                *("--tuning-trials", self.tuning_trials),
                *(self.format in tuned, f"the format {' or '.join(tuned)}"),
            ),
        ):
            if value is not None and not fits:
                raise QuadranasError(
                    f"{option} needs {what}; got {self.format} in {self.precision}",
                    "Omit it.",
                )


@dataclass(frozen=True)
class ExportTarget:
    """The device that a file is for, and the device that checks and times it.

    Args:
        device: the device that the file is for.
        checked_on: the same if it can be opened and its runtime reads the file, else this machine.
        files: facts about the files of that runtime.
        opset: ONNX opset; `None` for the runtime's default.
        timer: the device, if its command times the file; `None`: the file is timed where it is
            checked.
    """

    device: Device
    checked_on: Device
    files: RuntimeFiles
    opset: int | None
    timer: Device | None = None

    @property
    def is_checked_there(self) -> bool:
        """Whether the file is measured on the device that its latency was predicted for."""
        return self.timed_on is self.device

    @property
    def timed_on(self) -> Device:
        """The device that times the file."""
        return self.timer or self.checked_on

    @property
    def runtime(self) -> str:
        """Name of the runtime that the file is for: the device's, if it can run the file."""
        name = self.device.runtime or ""
        is_own = name in RUNTIMES and self.files.format in RUNTIMES[name].formats
        return name if is_own else file_formats()[self.files.format]


def find_target(
    options: ExportOptions, architecture: Architecture, folder: Path | None = None
) -> ExportTarget:
    """Choose the device that a file is for, and the one that it is checked on.

    Args:
        folder: the run folder of the network, which may describe its device.

    Raises:
        QuadranasError: unknown device, or one whose runtime cannot read the file.
    """
    home = file_formats()[options.format]
    device = _device(options, architecture, folder)
    if device.name == HOST:
        device = device.configured(runtime=home)
    runtime = RUNTIMES.get(device.runtime or "")
    _check_refused(options, device, runtime)
    files = runtime.files if runtime is not None else None
    reads = runtime if files is not None and files.format == options.format else None
    opset = _opset(options, device, reads)
    _check_reach(options, device, reads)
    needed = reads.needs_reach if reads is not None else ""
    _check_precision(options, device, reads)
    is_reachable = not device.is_away and (not needed or getattr(device.reach, needed) is not None)
    if reads is not None and is_reachable:
        return ExportTarget(device, device, reads.own_files, opset)
    here = {key: value for key, value in options.settings.items() if key in LOCAL_SETTINGS}
    host = load_device(HOST).configured(runtime=home, **here)
    timer = device if _is_timed_by_command(options, device) else None
    if timer is not None and timer.command is not None:
        opset = opset or timer.command.opset
    return ExportTarget(device, host, files_of(options.format), opset, timer)


def _is_timed_by_command(options: ExportOptions, device: Device) -> bool:
    """Whether the command of a device may run, and times files of the format.

    Raises:
        QuadranasError: it may run, but times files of another format.
    """
    if device.command is None or not device.allows_commands:
        return False
    if device.command.format != options.format:
        raise QuadranasError(
            f"device {device.name!r}: its command times {device.command.format} files, not "
            f"{options.format}",
            f"Choose --format {device.command.format}, or omit --allow-commands.",
        )
    return True


def _check_refused(options: ExportOptions, device: Device, runtime: Runtime | None) -> None:
    """Refuse formats that a device's runtime reads only in other versions."""
    refused = runtime.files.refused if runtime is not None and runtime.files is not None else ()
    for name, reason, hint in refused:
        if name == options.format:
            raise QuadranasError(f"device {device.name!r}: {reason}", hint)


def _check_precision(options: ExportOptions, device: Device, reads: Runtime | None) -> None:
    """Refuse another file than the int8 one that the latency table of a device is of."""
    if reads is not None and device.precision == "int8" != options.precision:
        raise QuadranasError(
            f"device {device.name!r} runs int8, and so its latencies are not those of a file in "
            f"{options.precision}",
            "Add --precision int8, or name another device with --device.",
        )


def _check_reach(options: ExportOptions, device: Device, reads: Runtime | None) -> None:
    """Refuse options for reaching a device that is not reached with them or cannot run a file."""
    ways = reads.reach if reads is not None else ()
    for key in sorted(options.settings):
        if key in REACH_SETTINGS and key not in ways:
            raise QuadranasError(
                f"--{key.replace('_', '-')} needs a device that is reached with it and runs "
                f"{options.format} files; {device.name!r} is not",
                "Omit it, or name the device's own format with --format, or another device with "
                "--device.",
            )


def _opset(options: ExportOptions, device: Device, reads: Runtime | None) -> int | None:
    """The opset of a file: the requested one, otherwise the default of the device's runtime.

    Raises:
        QuadranasError: the named device cannot read the file.
    """
    if reads is None or reads.files == files_of(options.format):
        return options.opset
    files = reads.own_files
    is_read = options.opset is None or options.opset in files.opsets
    is_read = is_read and (options.batch_size is not None or files.free_batch)
    if options.device is not None and not is_read:
        asked = f"opset {options.opset}" if options.batch_size else "a free batch"
        raise QuadranasError(
            f"device {device.name!r}: {reads.title} reads ONNX of opset "
            f"{files.opset} with a fixed batch, not {asked}",
            "Omit --opset and --batch, or name another device with --device.",
        )
    return options.opset or files.opset


def _device(options: ExportOptions, architecture: Architecture, folder: Path | None) -> Device:
    if options.device is not None:
        named = open_device_argument(options.device).configured(**options.settings)
        return named.allowing_commands() if options.allow_commands else named
    found_for = device_of(folder, architecture)
    device = found_for.without_reach() if found_for is not None else load_device(HOST)
    if not _can_run(device, options.format):
        device = load_device(HOST)
    return device.configured(**options.settings)


def _can_run(device: Device, file_format: str) -> bool:
    """Whether a device's runtime can run a format, here or elsewhere."""
    runtime = RUNTIMES.get(device.runtime or "")
    reads = runtime is not None and file_format in runtime.formats
    return files_of(file_format).interchange or reads
