"""ONNX Runtime on this machine's CPU."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from quadranas.backends.interface import (
    BATCH,
    Backend,
    Conversion,
    ConvertedFile,
    Provenance,
    as_shape,
    check_host_device,
    reason_of,
    refuse_shape,
)
from quadranas.backends.lowering import lower
from quadranas.backends.onnx_file import count_nodes, passes_for, to_onnx
from quadranas.backends.onnx_quantization import layers_of, quantize_onnx
from quadranas.errors import QuadranasError
from quadranas.files import write_atomically
from quadranas.latency.device import Device
from quadranas.latency.host import cpu_name
from quadranas.latency.processor import call_times_ms
from quadranas.latency.runtimes import ONNX_OPSET, RUNTIMES

FACTS = RUNTIMES["onnxruntime"]


class OnnxRuntimeBackend(Backend):
    """Runs fp32 only: ONNX Runtime emulates other precisions on a CPU."""

    max_parallel = 1
    lowering = ("fold_batch_norm", "fold_layer_scale")

    def __init__(self, device: Device, records: Path) -> None:
        FACTS.require()
        check_host_device(device, FACTS.title)
        self.threads = device.threads or 0

    def compile(self, network: nn.Module, input_shape: Sequence[int]) -> "OnnxRuntimeProgram":
        """See `Backend`."""
        conversion = Conversion(input_shape=as_shape(input_shape))
        return OnnxRuntimeProgram(self._content(network, conversion), input_shape, self.threads)

    def convert(self, network: nn.Module, conversion: Conversion, path: Path) -> ConvertedFile:
        """See `FileBackend`."""
        conversion.check(FACTS)
        write_atomically(path, self._content(network, conversion))
        return ConvertedFile(
            path=path,
            passes=passes_for(conversion, self.lowering),
            opset=conversion.opset or ONNX_OPSET,
        )

    def _content(self, network: nn.Module, conversion: Conversion) -> bytes:
        return to_onnx(lower(network, passes_for(conversion, self.lowering)), conversion)

    def load(self, path: Path, input_shape: Sequence[int]) -> "OnnxRuntimeProgram":
        """See `FileBackend`."""
        from onnxruntime.capi import onnxruntime_pybind11_state as failures

        try:
            program = OnnxRuntimeProgram(path.read_bytes(), input_shape, self.threads)
        except OSError as error:
            raise QuadranasError(f"cannot read {path}: {error.strerror or error}") from error
        except (
            failures.Fail,
            failures.InvalidArgument,
            failures.InvalidGraph,
            failures.InvalidProtobuf,
        ) as error:
            raise QuadranasError(
                f"ONNX Runtime cannot read {path}: {reason_of(error)}",
                "Convert the network again.",
            ) from error
        refuse_shape(path, program.session.get_inputs()[0].shape, input_shape)
        return program

    def count_operators(self, path: Path) -> dict[str, int]:
        """See `FileBackend`."""
        return count_nodes(path)

    def quantize(
        self,
        source: Path,
        target: Path,
        images: Sequence[NDArray[np.float32]],
        kept: Collection[str],
    ) -> None:
        """See `QuantizingBackend`.

        Raises:
            QuadranasError: a layer to keep does not exist, or the file cannot be written.
        """
        quantize_onnx(source, target, images, kept)

    def layers(self, path: Path) -> list[str]:
        """See `QuantizingBackend`."""
        import onnx

        return layers_of(onnx.load(path))

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
        """Nothing to release."""


class OnnxRuntimeProgram:
    """An ONNX model in its own session."""

    def __init__(self, content: bytes, input_shape: Sequence[int], threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.add_free_dimension_override_by_name(BATCH, input_shape[0])
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
        return call_times_ms(lambda: run(None, example), repeats)
