"""The runtimes by name, and how a device is opened with its own."""

from collections.abc import Callable
from pathlib import Path

from quadranas.backends.cuda import CudaBackend
from quadranas.backends.executorch import ExecuTorchBackend
from quadranas.backends.interface import Backend
from quadranas.backends.onnxruntime import OnnxRuntimeBackend
from quadranas.backends.openvino import OpenVinoBackend
from quadranas.backends.openvino_worker import OpenVinoWorkerBackend
from quadranas.backends.pytorch import PyTorchBackend
from quadranas.backends.tvm import TvmBackend
from quadranas.latency.device import Device

BACKENDS: dict[str, Callable[[Device, Path], Backend]] = {
    "onnxruntime": OnnxRuntimeBackend,
    "openvino": OpenVinoBackend,
    "tvm": TvmBackend,
    "torch": PyTorchBackend,
    "executorch": ExecuTorchBackend,
    "cuda": CudaBackend,
}
"""Opens a device by the name of its runtime; the folder is the runtime's to keep records in."""


def open_backend(device: Device, records: Path) -> Backend:
    """Open a device for compiling and timing.

    Args:
        records: a folder for what the runtime learns and can use again, such as tuning records.

    Raises:
        MissingExtraError: the runtime is not installed.
        QuadranasError: the device is not there, or cannot run at its precision.
    """
    assert device.runtime in BACKENDS, "choose the runtime first"
    if device.runtime == "openvino" and device.reach.worker_python is not None:
        return OpenVinoWorkerBackend(device, records)
    return BACKENDS[device.runtime](device, records)
