"""ONNX Runtime on this machine, on its CPU or with another execution provider."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
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
    calibration_noise,
    example_input,
    reason_of,
    refuse_shape,
)
from quadranas.backends.lowering import lower
from quadranas.backends.onnx_file import count_nodes, passes_for, to_onnx
from quadranas.backends.onnx_quantization import layers_of, quantize_onnx, quantized_content
from quadranas.backends.onnxruntime_providers import (
    CPU,
    Provider,
    Providers,
    bound,
    providers_of,
)
from quadranas.errors import QuadranasError, some
from quadranas.files import write_atomically
from quadranas.latency.device import Device
from quadranas.latency.host import cpu_name
from quadranas.latency.processor import call_times_ms
from quadranas.latency.runtimes import ONNX_OPSET, RUNTIMES

FACTS = RUNTIMES["onnxruntime"]


class OnnxRuntimeBackend(Backend):
    """On a CPU it runs fp32 and int8: ONNX Runtime emulates other precisions there.

    For a device with int8 a network is timed with the operators that an export in int8 has.
    """

    max_parallel = 1
    lowering = ("fold_batch_norm", "fold_layer_scale")

    def __init__(self, device: Device, records: Path) -> None:
        FACTS.require()
        self.device = device
        self.sessions = Sessions(device, providers_of(device))

    def compile(self, network: nn.Module, input_shape: Sequence[int]) -> "OnnxRuntimeProgram":
        """See `Backend`."""
        conversion = Conversion(input_shape=as_shape(input_shape))
        content = self._content(network, conversion)
        if self.device.precision == "int8":
            content = quantized_content(content, calibration_noise(input_shape))
        return OnnxRuntimeProgram(self.sessions, content, input_shape, type(network).__name__)

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
            program = OnnxRuntimeProgram(self.sessions, path.read_bytes(), input_shape, path)
        refuse_shape(path, program.session.get_inputs()[0].shape, input_shape)
        return program

    def input_shapes(self, path: Path) -> dict[str, tuple[int | None, ...]]:
        """See `TimingBackend`."""
        with _reading(path):
            session, _ = Sessions(self.device, CPU_ONLY).open(path, path)
        return {
            place.name: tuple(size if isinstance(size, int) else None for size in place.shape)
            for place in session.get_inputs()
        }

    def open_file(self, path: Path, shapes: Mapping[str, Sequence[int]]) -> "FileProgram":
        """See `TimingBackend`."""
        with _reading(path):
            return FileProgram(self.sessions, path, shapes)

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

        providers = self.sessions.providers
        versions = {
            "onnxruntime": onnxruntime.__version__,
            "onnx": onnx.__version__,
            "torch": torch.__version__,
        }
        if providers.is_cpu:
            return Provenance(
                runtime=f"ONNX Runtime {onnxruntime.__version__}",
                hardware=cpu_name(),
                versions=versions,
            )
        return Provenance(
            runtime=f"ONNX Runtime {onnxruntime.__version__} ({', '.join(providers.names)})",
            hardware=f"{self.device.title}, {cpu_name()}",
            versions=versions | providers.versions,
            settings={"copies": "timed"} if self.device.time_copies else {},
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


CPU_ONLY = Providers("", (Provider(CPU, {}),))


@dataclass(frozen=True)
class Sessions:
    """Opens sessions with the providers and threads of a device."""

    device: Device
    providers: Providers

    def open(
        self, model: bytes | Path, name: object, batch: int | None = None
    ) -> tuple[Any, tuple[str, ...]]:
        """A session, and the nodes that run on the CPU though another provider was asked for.

        Args:
            model: its content; or its file, which may refer to others for its weights.
            name: what it is, for messages.
            batch: size of a free batch dimension.

        Raises:
            QuadranasError: a provider cannot be started, or leaves nodes that it must not leave.
        """
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.device.threads or 0
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        if batch is not None:
            options.add_free_dimension_override_by_name(BATCH, batch)
        if not self.providers.is_cpu:
            options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        named = self.providers.apply(options)
        source = str(model) if isinstance(model, Path) else model
        try:
            session = onnxruntime.InferenceSession(source, options, providers=named)
        except Exception as error:  # each provider raises its own kinds
            if self.providers.is_cpu:
                raise
            raise QuadranasError(
                f"device {self.device.name!r}: ONNX Runtime cannot run {name} on "
                f"{', '.join(self.providers.names)}: {reason_of(error)}",
                "Correct the options in 'target', or name another execution provider.",
            ) from error
        return session, self.providers.check(session, name)


class OnnxRuntimeProgram:
    """An ONNX model in its own session.

    Attributes:
        notes: how it runs otherwise than asked for.
    """

    notes: tuple[str, ...] = ()

    def __init__(
        self, sessions: Sessions, content: bytes, input_shape: Sequence[int], name: object
    ) -> None:
        self._open(sessions, content, name, input_shape[0])
        self.example = {"images": example_input(input_shape, np.dtype(np.float32))}

    def _open(
        self, sessions: Sessions, model: bytes | Path, name: object, batch: int | None = None
    ) -> None:
        self.sessions = sessions
        self.session, nodes = sessions.open(model, name, batch)
        if nodes:
            self.notes = (f"{len(nodes)} nodes run on the CPU: {some(nodes, 5)}",)

    def run(self, images: Tensor) -> Tensor:
        """See `Program`."""
        (output,) = self.session.run(None, {"images": images.contiguous().numpy()})
        return torch.from_numpy(output)

    def time_ms(self, repeats: int) -> list[float]:
        """See `Program`."""
        session, example, providers = self.session, self.example, self.sessions.providers
        if providers.is_cpu or self.sessions.device.time_copies:
            return call_times_ms(lambda: session.run(None, example), repeats)
        binding = bound(session, example, providers.memory)

        def call() -> None:
            session.run_with_iobinding(binding)
            binding.synchronize_outputs()

        return call_times_ms(call, repeats)


class FileProgram(OnnxRuntimeProgram):
    """A file with any number of inputs, of any types."""

    def __init__(
        self, sessions: Sessions, path: Path, shapes: Mapping[str, Sequence[int]]
    ) -> None:
        self._open(sessions, path, path)
        self.example = {
            place.name: example_input(shapes[place.name], _dtype_of(place))
            for place in self.session.get_inputs()
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
