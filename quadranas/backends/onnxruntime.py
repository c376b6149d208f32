"""ONNX Runtime on this machine's CPU."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from quadranas.backends.extras import require_extra
from quadranas.backends.interface import Backend, Provenance, call_times_ms
from quadranas.backends.onnx_file import BATCH, to_onnx
from quadranas.errors import QuadranasError
from quadranas.files import write_atomically
from quadranas.latency.device import Device
from quadranas.latency.host import cpu_name


class OnnxRuntimeBackend(Backend):
    """Runs fp32: on a CPU, ONNX Runtime emulates other precisions."""

    max_parallel = 1

    def __init__(self, device: Device, records: Path) -> None:
        require_extra("onnxruntime", "onnx", "onnxscript", "onnxruntime")
        if device.precision != "fp32":
            raise QuadranasError(
                f"device {device.name!r}: ONNX Runtime on a CPU runs fp32, not {device.precision}",
                "Set precision: fp32, or name another runtime.",
            )
        if device.target is not None:
            raise QuadranasError(
                f"device {device.name!r}: ONNX Runtime runs on this machine's CPU and takes no "
                f"target, got {device.target!r}",
                "Remove the key 'target'.",
            )
        self.threads = device.threads or 0

    def compile(self, network: nn.Module, input_shape: Sequence[int]) -> "OnnxRuntimeProgram":
        """See `Backend`."""
        _, channels, resolution, _ = input_shape
        content = to_onnx(network, channels, resolution)
        return OnnxRuntimeProgram(content, input_shape, self.threads)

    def load(self, path: Path, input_shape: Sequence[int]) -> "OnnxRuntimeProgram":
        """A saved program, for any batch size."""
        return OnnxRuntimeProgram(path.read_bytes(), input_shape, self.threads)

    def provenance(self) -> Provenance:
        """See `Backend`."""
        import onnx
        import onnxruntime

        return Provenance(
            runtime=f"ONNX Runtime {onnxruntime.__version__}",
            hardware=cpu_name(),
            versions={
                "onnxruntime": onnxruntime.__version__,
                "onnx": onnx.__version__,
                "torch": torch.__version__,
            },
        )

    def close(self) -> None:
        """Nothing is held."""


class OnnxRuntimeProgram:
    """An ONNX model in a session of its own."""

    def __init__(self, content: bytes, input_shape: Sequence[int], threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.add_free_dimension_override_by_name(BATCH, input_shape[0])
        self.content = content
        self.session: Any = onnxruntime.InferenceSession(
            content, options, providers=["CPUExecutionProvider"]
        )
        generator = torch.Generator().manual_seed(0)
        self.example = {"images": torch.randn(*input_shape, generator=generator).numpy()}

    def run(self, images: Tensor) -> Tensor:
        """See `Program`."""
        (output,) = self.session.run(None, {"images": images.contiguous().numpy()})
        return torch.from_numpy(output)

    def time_ms(self, repeats: int) -> list[float]:
        """See `Program`."""
        run, example = self.session.run, self.example
        run(None, example)
        return call_times_ms(lambda: run(None, example), repeats)

    def save(self, path: Path) -> None:
        """Write the ONNX model; it takes any batch size."""
        write_atomically(path, self.content)
