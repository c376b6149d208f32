"""The Myriad X, through OpenVINO 2021.4.2 in another process.

OpenVINO dropped the Myriad after 2022.3, and the wheels that still drive it are for Python 3.6 to
3.9. So a worker in an old environment drives the stick; it reads ONNX and gets requests
over pipes (`worker_client.py`, `worker_main.py`). The same wheel's CPU device works
in the same way, and is used for tests without a stick.
"""

import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from quadranas.backends.interface import (
    ClosedOnExit,
    Conversion,
    ConvertedFile,
    Provenance,
    as_shape,
    refuse_shape,
)
from quadranas.backends.lowering import lower
from quadranas.backends.onnx_file import OLD_LOWERING, count_nodes, read_onnx, to_onnx
from quadranas.backends.openvino2021_target import (
    HOW_TO_INSTALL,
    RELEASE,
    find_python,
    find_target,
)
from quadranas.backends.worker_client import Patience, WorkerClient, WorkerProgram
from quadranas.backends.worker_process import (
    SCRIPT,
    RefusedError,
    WorkerLostError,
    WorkerProcess,
)
from quadranas.errors import DeviceLostError, QuadranasError
from quadranas.files import write_atomically
from quadranas.latency.device import Device
from quadranas.latency.runtimes import RUNTIMES

FACTS = RUNTIMES["openvino2021"]
OPSET = FACTS.own_files.opsets[-1]
"""The newest opset that it reads."""

LIBUSB_MISSING = "libusb-1.0.so.0"
"""The system library that the plugin for the stick loads; wheels do not contain it."""

STICK_GONE = re.compile(r"NC_(ERROR|TIMEOUT|BUSY|DEVICE_NOT_FOUND|MYRIAD_ERROR)|X_LINK_")
"""Errors of the plugin that mean that the stick does not respond."""


class OpenVino2021Backend(ClosedOnExit):
    """OpenVINO 2021.4 on a Myriad stick, or on the CPU.

    Args:
        device: its target is an OpenVINO device, by default `MYRIAD`; its reach names the
            interpreter.
        records: not used; there is nothing to tune.

    Raises:
        QuadranasError: OpenVINO 2021.4 does not support the device's settings, or the worker does
            not start; the hint says how to make its environment.
        MissingExtraError: the ONNX package is not installed.
    """

    lowering = OLD_LOWERING

    def __init__(self, device: Device, records: Path, patience: Patience | None = None) -> None:
        FACTS.require()
        self._device = device
        self._name, self._target = find_target(device)
        self._config = dict(self._target.config)
        if self._name == "CPU" and device.threads is not None:
            self._config["CPU_THREADS_NUM"] = str(device.threads)
        self._python = find_python(device)
        self._num_programs = 0
        self._folder = tempfile.TemporaryDirectory(prefix="quadranas-worker-")
        self.client = WorkerClient(
            self,
            "openvino2021",
            {"target": self._name, "config": self._config},
            patience or Patience(),
            self._target.max_loaded,
        )
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    @property
    def max_parallel(self) -> int:
        """One: the stick and its process handle one request at a time."""
        return 1

    def compile(self, network: nn.Module, input_shape: Sequence[int]) -> WorkerProgram:
        """Export a network in evaluation mode to ONNX and load it in the worker.

        Raises:
            QuadranasError: it cannot be exported, or OpenVINO refuses it, or there is no stick.
            DeviceLostError: the worker was lost repeatedly.
        """
        content = self._content(network, Conversion(input_shape=as_shape(input_shape)))
        return self._loaded_program(content, input_shape, type(network).__name__)

    def convert(self, network: nn.Module, conversion: Conversion, path: Path) -> ConvertedFile:
        """See `FileBackend`: ONNX of opset 13 at most, for one input shape."""
        conversion.check(FACTS)
        write_atomically(path, self._content(network, conversion))
        return ConvertedFile(path=path, passes=self.lowering, opset=OPSET)

    def load(self, path: Path, input_shape: Sequence[int]) -> WorkerProgram:
        """See `FileBackend`."""
        model = read_onnx(path)
        opset = max(one.version for one in model.opset_import if one.domain in ("", "ai.onnx"))
        if opset > OPSET:
            raise QuadranasError(
                f"{path} is of opset {opset}; OpenVINO {RELEASE} reads {OPSET} at most",
                f"Convert the network for this device, or with opset {OPSET}.",
            )
        sizes = model.graph.input[0].type.tensor_type.shape.dim
        refuse_shape(path, [size.dim_value for size in sizes], input_shape)
        return self._loaded_program(path.read_bytes(), input_shape, str(path))

    def count_operators(self, path: Path) -> dict[str, int]:
        """See `FileBackend`."""
        return count_nodes(path)

    def _content(self, network: nn.Module, conversion: Conversion) -> bytes:
        opset = OPSET if conversion.opset is None else conversion.opset
        if opset > OPSET:
            raise QuadranasError(
                f"OpenVINO {RELEASE} reads ONNX of opset {OPSET} at most, got opset {opset}",
                "Omit it for this device.",
            )
        return to_onnx(lower(network, self.lowering), replace(conversion, opset=opset))

    def _loaded_program(self, content: bytes, shape: Sequence[int], name: str) -> WorkerProgram:
        """Load a copy of a file, so that the program does not depend on the file."""
        self._num_programs += 1
        path = Path(self._folder.name) / f"{self._num_programs}.onnx"
        path.write_bytes(content)
        program = WorkerProgram(self.client, path, {"images": shape})
        self.client.load(program, f"{name} {tuple(shape)}")
        return program

    def provenance(self) -> Provenance:
        """See `Backend`; the settings are those of the plugin."""
        facts = self.client.facts
        if facts["hardware"] is None:  # a stick may report its name only while one is loaded
            facts = self.client.ask_facts()
        versions = facts["versions"]
        return Provenance(
            runtime=f"OpenVINO {versions['openvino'].split('-')[0]} ({self._name})",
            hardware=facts["hardware"] or self._device.title,
            versions=versions | {"torch": torch.__version__, "onnx opset": str(OPSET)},
            settings=self._config,
        )

    def close(self) -> None:
        """End the worker, which releases the stick."""
        try:
            self.client.stop()
        finally:
            self._folder.cleanup()

    def _open(self) -> None:
        """Start the worker and check its OpenVINO release."""
        try:
            self.client.start()
        except OSError as error:
            fault = f"it cannot be started: {error.strerror or error}"
        except (RefusedError, WorkerLostError) as error:
            fault = f"OpenVINO {RELEASE} does not work there: {error}"
        else:
            found = self.client.facts["versions"]["openvino"]
            if found.startswith(f"{RELEASE}."):
                return
            fault = f"it has OpenVINO {found}, expected {RELEASE}"
        raise QuadranasError(f"worker_python {self._python}: {fault}", HOW_TO_INSTALL)

    def start(self) -> WorkerProcess:
        """See `WorkerHost`."""
        command = [self._python, "-I", str(SCRIPT)]
        return WorkerProcess(command, Path(self._folder.name) / "worker.log")

    def place(self, path: Path) -> str:
        """See `WorkerHost`: the worker reads the files of this machine."""
        return str(path)

    def pause_s(self, attempt: int, loss: Exception) -> float:
        """See `WorkerHost`."""
        return self._target.recovery_s

    def is_loss(self, refusal: RefusedError) -> bool:
        """See `WorkerHost`: a stick that no longer responds counts as a lost worker."""
        return STICK_GONE.search(str(refusal)) is not None

    def lost(self, what: str, times: int, loss: Exception) -> DeviceLostError:
        """See `WorkerHost`."""
        return DeviceLostError(
            f"the OpenVINO worker for {self._name} was lost {times} times when asked to {what}; "
            f"the last time, {loss}",
            "Check that the stick is plugged in and no other process uses it, then repeat the "
            "command.",
        )

    def observe(self, answer: Mapping[str, Any]) -> None:
        """See `WorkerHost`: the stick has no sensors to look at."""

    def explained(self, what: str, refusal: RefusedError) -> QuadranasError:
        """See `WorkerHost`."""
        if STICK_GONE.search(str(refusal)):
            return QuadranasError(
                f"no Myriad stick responds as {self._name}: {refusal}",
                "Check that lsusb lists it (03e7:2485, Intel Movidius MyriadX), that a udev rule "
                "gives access to devices of vendor 03e7, and that no other process uses it.",
            )
        if LIBUSB_MISSING in str(refusal):
            return QuadranasError(
                f"OpenVINO {RELEASE} cannot use {self._name}: {LIBUSB_MISSING} is not installed",
                "Install libusb; on Debian and Ubuntu: apt-get install libusb-1.0-0",
            )
        return QuadranasError(f"OpenVINO {RELEASE} cannot {what} on {self._name}: {refusal}")
