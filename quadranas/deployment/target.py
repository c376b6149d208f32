"""What an export is for: a format, the device it is meant for, where it is checked."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quadranas.backends.onnx_file import OPSETS, TRACED_OPSETS, unsupported_opset
from quadranas.deployment.manifest import FORMATS
from quadranas.errors import QuadranasError, unknown
from quadranas.latency.device import Device, load_device
from quadranas.space.architecture import Architecture

HOST = "host"
LOCAL = ("threads", "tuning_trials")
"""Settings that also mean something on this machine."""
FREE_BATCH = 8
"""The batch that a file for any is checked with."""
MAX_BATCH = 8192


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """What an exported file shall be.

    Args:
        device: the device it is meant for, whose table predicts its latency; the one that the
            architecture was derived for if none, else this machine; this machine too where that
            device cannot run the format.
        settings: of the device's file, given otherwise, such as `rpc` and `tuning_trials`.
        opset: of ONNX; 13 where the device is a Myriad, else what most readers know.
        batch: images per call; none for any number.
        resolution: of the input; the architecture's deployment resolution if none.
        max_drop: points of accuracy that int8 may cost; one if none.
        budget_ms: a latency that is to be kept.
        tolerance: measured excess over it that is no missed promise.
        num_images: validation images to check with.
        table: this latency table instead of the usual one.
    """

    file_format: str = "onnx"
    precision: str = "fp32"
    device: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    opset: int | None = None
    batch: int | None = 1
    resolution: int | None = None
    max_drop: float | None = None
    budget_ms: float | None = None
    tolerance: float = 0.05
    num_images: int | None = None
    table: Path | None = None

    @property
    def checked_batch(self) -> int:
        """Images at once when the file is checked."""
        return FREE_BATCH if self.batch is None else self.batch

    def check(self) -> None:
        """Refuse what no format offers.

        Raises:
            QuadranasError: names the option and what is accepted.
        """
        if self.file_format not in FORMATS:
            raise unknown("format", self.file_format, FORMATS)
        known = FORMATS[self.file_format]
        if self.precision not in known.precisions:
            raise QuadranasError(
                f"format {self.file_format} has no precision {self.precision!r}; accepted: "
                f"{', '.join(known.precisions)}",
                "int8 is for onnx and openvino, fp16 for openvino.",
            )
        if self.batch is None and not known.free_batch:
            raise QuadranasError(
                f"format {self.file_format} takes batches of one size only", "Name it: --batch 1."
            )
        if self.batch is not None and self.batch > MAX_BATCH:
            raise QuadranasError(f"--batch must be at most {MAX_BATCH}, got {self.batch}")
        self._check_fit()
        if self.max_drop is not None and not math.isfinite(self.max_drop):
            raise QuadranasError(f"--max-drop must be a finite number, got {self.max_drop}")
        if self.opset is not None and self.opset not in OPSETS:
            raise unsupported_opset(self.opset)

    def _check_fit(self) -> None:
        """Refuse options that mean nothing for the format and precision."""
        for option, value, fits, what in (
            ("--opset", self.opset, self.file_format == "onnx", "the format onnx"),
            ("--max-drop", self.max_drop, self.precision == "int8", "the precision int8"),
            (
                *("--tuning-trials", self.settings.get("tuning_trials")),
                *(self.file_format == "tvm", "the format tvm"),
            ),
        ):
            if value is not None and not fits:
                raise QuadranasError(
                    f"{option} is for {what}, not for {self.file_format} in {self.precision}",
                    "Leave it out.",
                )


@dataclass(frozen=True)
class ExportTarget:
    """Where a file will run, and where it is checked and timed.

    Args:
        device: that it is meant for.
        checked_on: the same where its runtime reads the format, else this machine.
    """

    device: Device
    checked_on: Device
    opset: int | None

    @property
    def is_checked_there(self) -> bool:
        """Whether what is measured is what was predicted."""
        return self.checked_on is self.device


def find_target(options: ExportOptions, architecture: Architecture) -> ExportTarget:
    """Choose the device and the runtime.

    Raises:
        QuadranasError: unknown device, or one whose runtime reads another format.
    """
    runtime = FORMATS[options.file_format].runtime
    device = _device(options, architecture)
    if device.name == HOST:
        device = device.configured(runtime=runtime)
    is_myriad = _is_myriad(device)
    if is_myriad and options.file_format == "openvino":
        raise QuadranasError(
            f"device {device.name!r}: OpenVINO 2021.4, the last with a Myriad, does not read this "
            "OpenVINO's files",
            "Export ONNX, which it reads: --format onnx",
        )
    opset = options.opset
    if options.file_format == "onnx" and is_myriad:
        opset = _myriad_opset(options, device) if options.device else opset or TRACED_OPSETS[0]
    by_worker = is_myriad and device.reach.worker_python is not None
    reads = by_worker if is_myriad else device.runtime == runtime
    if reads and (options.file_format == "onnx" or not is_myriad):
        return ExportTarget(device, device, opset)
    settings = dict(options.settings)
    here = {key: settings.pop(key) for key in LOCAL if key in settings}
    if settings:
        raise QuadranasError(
            f"--{min(settings).replace('_', '-')} says how to reach a device that reads "
            f"{options.file_format}; {device.name!r}, which the file would be for, is none",
            "Leave it out, or name the device's own format with --format, or another device with "
            "--device.",
        )
    return ExportTarget(device, load_device(HOST).configured(runtime=runtime, **here), opset)


def _myriad_opset(options: ExportOptions, device: Device) -> int:
    """The opset for a Myriad, whose OpenVINO reads no newer one, and no free batch."""
    oldest = TRACED_OPSETS[0]
    if options.opset not in (None, oldest) or options.batch is None:
        asked = "a free batch" if options.batch is None else f"opset {options.opset}"
        raise QuadranasError(
            f"device {device.name!r}: the OpenVINO of a Myriad reads ONNX of opset {oldest} with "
            f"a fixed batch, not {asked}",
            "Leave out --opset and --batch, or name another device with --device.",
        )
    return oldest


def _device(options: ExportOptions, architecture: Architecture) -> Device:
    if options.device is not None:
        return load_device(options.device).configured(**options.settings)
    derived_for = architecture.provenance.get("device")
    try:
        device = load_device(str(derived_for or HOST))
    except QuadranasError:  # the user's own, of which only the name was kept
        device = load_device(HOST)
    if not _could_run(device, options.file_format):
        device = load_device(HOST)
    return device.configured(**options.settings)


def _is_myriad(device: Device) -> bool:
    return device.runtime == "openvino" and (
        device.target == "MYRIAD" or device.reach.worker_python is not None
    )


def _could_run(device: Device, file_format: str) -> bool:
    """Whether a device could run a format: ONNX is for all, PyTorch's for CUDA too."""
    if file_format == "onnx":
        return True
    if _is_myriad(device):
        return False
    runtimes = {FORMATS[file_format].runtime, "cuda" if file_format == "torch" else ""}
    return device.runtime in runtimes
