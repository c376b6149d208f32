"""ONNX Runtime on this machine's CPU."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
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
    example_input,
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
        with _reading(path):
            program = OnnxRuntimeProgram(path.read_bytes(), input_shape, self.threads)
        refuse_shape(path, program.session.get_inputs()[0].shape, input_shape)
        return program

    def input_shapes(self, path: Path) -> dict[str, tuple[int | None, ...]]:
        """See `TimingBackend`."""
        with _reading(path):
            session = session_for(path, self.threads)
        return {
            place.name: tuple(size if isinstance(size, int) else None for size in place.shape)
            for place in session.get_inputs()
        }

    def open_file(self, path: Path, shapes: Mapping[str, Sequence[int]]) -> "FileProgram":
        """See `TimingBackend`."""
        with _reading(path):
            return FileProgram(session_for(path, self.threads), shapes)

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


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn the errors of reading a file into one."""
    from onnxruntime.capi import onnxruntime_pybind11_state as failures

    try:
        yield
    except OSError as error:
        raise QuadranasError(f"cannot read {path}: {error.strerror or error}") from error
    except (
        failures.Fail,
        failures.InvalidArgument,
        failures.InvalidGraph,
        failures.InvalidProtobuf,
        failures.NoSuchFile,
        failures.NotImplemented,
    ) as error:
        raise QuadranasError(
            f"ONNX Runtime cannot read {path}: {reason_of(error)}",
            "Convert the network again.",
        ) from error


def session_for(model: bytes | Path, threads: int, batch: int | None = None) -> Any:
    """A session that runs a model on the CPU.

    Args:
        model: its content; or its file, which may refer to others for its weights.
        threads: number of threads; 0 for ONNX Runtime's default.
        batch: size of a free batch dimension.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if batch is not None:
        options.add_free_dimension_override_by_name(BATCH, batch)
    source = str(model) if isinstance(model, Path) else model
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


class OnnxRuntimeProgram:
    """An ONNX model in its own session."""

    def __init__(self, content: bytes, input_shape: Sequence[int], threads: int) -> None:
        self.session: Any = session_for(content, threads, input_shape[0])
        self.example = {"images": example_input(input_shape, np.dtype(np.float32))}

    def run(self, images: Tensor) -> Tensor:
        """See `Program`."""
        (output,) = self.session.run(None, {"images": images.contiguous().numpy()})
        return torch.from_numpy(output)

    def time_ms(self, repeats: int) -> list[float]:
        """See `Program`."""
        run, example = self.session.run, self.example
        return call_times_ms(lambda: run(None, example), repeats)


class FileProgram(OnnxRuntimeProgram):
    """A file with any number of inputs, of any types."""

    def __init__(self, session: Any, shapes: Mapping[str, Sequence[int]]) -> None:
        self.session = session
        self.example = {
            place.name: example_input(shapes[place.name], _dtype_of(place))
            for place in session.get_inputs()
        }


def _dtype_of(place: Any) -> "np.dtype[Any]":
    """The type of an input, such as `tensor(float)`.

    Raises:
        QuadranasError: numpy has no such type.
    """
    name = str(place.type).removeprefix("tensor(").removesuffix(")")
    try:
        return np.dtype({"float": "float32", "double": "float64"}.get(name, name))
    except TypeError as error:
        raise QuadranasError(
            f"input {place.name!r} has the type {place.type}, for which no example can be made",
            "Time a file whose inputs are numbers.",
        ) from error
