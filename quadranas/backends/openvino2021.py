"""The Myriad X, through OpenVINO 2021.4.2 in another process.

OpenVINO dropped the Myriad after 2022.3, and the wheels that still drive it are for Python 3.6 to
3.9. So a worker in an old environment drives the stick; it reads ONNX and gets requests
over pipes (`openvino2021_process.py`, `openvino2021_main.py`). The same wheel's CPU device works
in the same way, and is used for tests without a stick.
"""

import re
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

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
from quadranas.backends.openvino2021_process import (
    RefusedError,
    WorkerLostError,
    WorkerProcess,
)
from quadranas.backends.openvino2021_target import (
    HOW_TO_INSTALL,
    RELEASE,
    find_python,
    find_target,
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


@dataclass(frozen=True, kw_only=True)
class Patience:
    """Time limits of requests to the worker, and the number of retries.

    Args:
        load_s: time limit for starting it, and for compiling a network.
        call_s: time limit for running or timing a network.
        retries: number of retries of a request, each with a new worker.
    """

    load_s: float = 120
    call_s: float = 60
    retries: int = 3


class WorkerProgram:
    """A network in the worker; it is loaded again when needed."""

    def __init__(self, backend: "OpenVino2021Backend", path: Path, shape: Sequence[int]) -> None:
        self._backend = backend
        self.path = path
        self.shape = tuple(shape)

    def run(self, images: Tensor) -> Tensor:
        """See `Program`."""
        if tuple(images.shape) != self.shape:
            raise QuadranasError(
                f"the network was compiled for {self.shape}, got {tuple(images.shape)}"
            )
        given, computed = self.path.with_suffix(".in.npy"), self.path.with_suffix(".out.npy")
        np.save(given, images.detach().cpu().float().numpy())
        self._backend.call(self, "run", images=str(given), output=str(computed))
        return torch.from_numpy(np.load(computed))

    def time_ms(self, repeats: int) -> list[float]:
        """See `Program`."""
        latencies_ms: list[float] = self._backend.call(self, "time", repeats=repeats)["ms"]
        return latencies_ms


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
        self._patience = patience or Patience()
        self._name, self._target = find_target(device)
        self._config = dict(self._target.config)
        if self._name == "CPU" and device.threads is not None:
            self._config["CPU_THREADS_NUM"] = str(device.threads)
        self._python = find_python(device)
        self._num_programs = 0
        self._ever_loaded = False
        self._loaded: dict[WorkerProgram, int] = {}
        self._folder = tempfile.TemporaryDirectory(prefix="quadranas-worker-")
        self.worker: WorkerProcess | None = None
        try:
            self._hello = self._first_hello()
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
        program = WorkerProgram(self, path, shape)
        what = f"load {name} {tuple(shape)}"
        self._insist(what, lambda worker: {"handle": self._handle(worker, program)})
        return program

    def call(self, program: WorkerProgram, do: str, **arguments: Any) -> dict[str, Any]:
        """Send a request for a program to the worker, and repeat it if the worker is lost."""

        def ask(worker: WorkerProcess) -> dict[str, Any]:
            return self._ask(worker, do, handle=self._handle(worker, program), **arguments)

        return self._insist(f"{do} a network of input {program.shape}", ask)

    def provenance(self) -> Provenance:
        """See `Backend`; the settings are those of the plugin."""
        runtime = self._hello["openvino"].split("-")[0]
        if (
            self._hello["name"] is None
        ):  # a stick may report its name only while a network is loaded
            self._hello = self._insist("name its device", self._ask_hello)
        return Provenance(
            runtime=f"OpenVINO {runtime} ({self._name})",
            hardware=self._hello["name"] or self._device.title,
            versions={
                "openvino": self._hello["openvino"],
                "numpy": self._hello["numpy"],
                "python": self._hello["python"],
                "torch": torch.__version__,
                "onnx opset": str(OPSET),
            },
            settings=self._config,
        )

    def close(self) -> None:
        """End the worker, which releases the stick."""
        try:
            self._stop()
        finally:
            self._folder.cleanup()

    def _first_hello(self) -> dict[str, Any]:
        """Start the worker and check its OpenVINO release."""
        try:
            hello = self._ask_hello(self._running())
        except OSError as error:
            fault = f"it cannot be started: {error.strerror or error}"
        except (RefusedError, WorkerLostError) as error:
            fault = f"OpenVINO {RELEASE} does not work there: {error}"
        else:
            if hello["openvino"].startswith(f"{RELEASE}."):
                return hello
            fault = f"it has OpenVINO {hello['openvino']}, expected {RELEASE}"
        raise QuadranasError(f"worker_python {self._python}: {fault}", HOW_TO_INSTALL)

    def _ask_hello(self, worker: WorkerProcess) -> dict[str, Any]:
        return worker.ask("hello", self._patience.load_s, device=self._name)

    def _insist(self, what: str, ask: Callable[[WorkerProcess], dict[str, Any]]) -> dict[str, Any]:
        """Get an answer; if the worker is lost, ask again with a new one."""
        for retries_left in reversed(range(self._patience.retries + 1)):
            try:
                return ask(self._running())
            except RefusedError as refusal:
                raise self._explained(what, refusal) from refusal
            except (OSError, WorkerLostError) as loss:
                self._stop()
                if not retries_left:
                    raise DeviceLostError(
                        f"the OpenVINO worker for {self._name} was lost "
                        f"{self._patience.retries + 1} times when asked to {what}; "
                        f"the last time, {loss}",
                        "Check that the stick is plugged in and no other process uses it, then "
                        "repeat the command.",
                    ) from loss
                time.sleep(self._target.recovery_s)
        raise AssertionError("the last turn returns or raises")

    def _ask(self, worker: WorkerProcess, do: str, **arguments: Any) -> dict[str, Any]:
        """Send one request; a stick that no longer responds counts as a lost worker."""
        timeout_s = self._patience.load_s if do == "load" else self._patience.call_s
        try:
            return worker.ask(do, timeout_s, **arguments)
        except RefusedError as refusal:
            if self._ever_loaded and STICK_GONE.search(str(refusal)):
                raise WorkerLostError(f"it answered: {refusal}") from refusal
            raise

    def _handle(self, worker: WorkerProcess, program: WorkerProgram) -> int:
        """The program's handle in the running worker; unloads another one if necessary."""
        handle = self._loaded.pop(program, None)
        if handle is None:
            while len(self._loaded) >= self._target.max_loaded:
                oldest = next(iter(self._loaded))
                self._ask(worker, "unload", handle=self._loaded.pop(oldest))
            onnx = str(program.path)
            answer = self._ask(worker, "load", path=onnx, device=self._name, config=self._config)
            handle = int(answer["handle"])
            self._ever_loaded = True
        self._loaded[program] = handle
        return handle

    def _explained(self, what: str, refusal: RefusedError) -> QuadranasError:
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

    def _running(self) -> WorkerProcess:
        if self.worker is None:
            self.worker = WorkerProcess(self._python, Path(self._folder.name) / "worker.log")
        return self.worker

    def _stop(self) -> None:
        self._loaded.clear()
        if self.worker is not None:
            self.worker.stop()
            self.worker = None
