"""LiteRT, formerly TensorFlow Lite, with the kernels of XNNPACK on this machine's CPU.

Files take images as every other runtime does, (B, C, H, W). LiteRT's own layout is B, H, W, C, so
a file begins with a transposition. Written for ai-edge-litert 2.3.0.
"""

import os
import tempfile
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from quadranas.backends.interface import (
    ClosedOnExit,
    Conversion,
    ConvertedFile,
    Provenance,
    as_shape,
    calibration_noise,
    check_host_device,
    example_input,
    only_shape,
    reason_of,
    refuse_shape,
)
from quadranas.backends.litert_converter import Converter, unconvertible
from quadranas.backends.litert_file import operators_of, products_of
from quadranas.backends.lowering import lower
from quadranas.backends.onnx_quantization import refuse_unknown
from quadranas.errors import QuadranasError
from quadranas.files import write_atomically
from quadranas.latency.device import Device
from quadranas.latency.host import cpu_name
from quadranas.latency.processor import call_times_ms
from quadranas.latency.runtimes import RUNTIMES

FACTS = RUNTIMES["litert"]


class LiteRtBackend(ClosedOnExit):
    """Runs fp32 and int8; XNNPACK runs the operators that it has kernels for.

    For a device with int8 a network is timed with the operators that an export in int8 has.
    """

    max_parallel = 1
    # A QuadraNet of 664 M MACs, one thread of an AMD EPYC, 2026-11-29: 25.2 ms without passes,
    # 24.6 with these; further ones change that by 1 to 3 % (24.0 with decomposed norms).
    lowering = ("fold_batch_norm", "fold_layer_scale")

    def __init__(self, device: Device, records: Path) -> None:
        FACTS.require()
        check_host_device(device, FACTS.title, precisions=("fp32", "int8"))
        self.precision = device.precision
        self.threads = device.threads
        self.converter = Converter()

    def compile(self, network: nn.Module, input_shape: Sequence[int]) -> "LiteRtProgram":
        """See `Backend`."""
        content, program = self._converted(network, Conversion(input_shape=as_shape(input_shape)))
        if self.precision == "fp32":
            return program
        with tempfile.TemporaryDirectory(prefix="quadranas-") as folder:
            source, target = Path(folder) / "fp32.tflite", Path(folder) / "int8.tflite"
            source.write_bytes(content)
            self.quantize(source, target, calibration_noise(input_shape), ())
            return self._read(target)

    def convert(self, network: nn.Module, conversion: Conversion, path: Path) -> ConvertedFile:
        """See `FileBackend`."""
        conversion.check(FACTS)
        content, _ = self._converted(network, conversion)
        write_atomically(path, content)
        return ConvertedFile(path=path, passes=self.lowering)

    def load(self, path: Path, input_shape: Sequence[int]) -> "LiteRtProgram":
        """See `FileBackend`."""
        program = self._read(path)
        # A size that the file leaves open is 1 in the program.
        shapes = {name: place["shape"].tolist() for name, place in program.inputs.items()}
        refuse_shape(path, only_shape(path, shapes), input_shape)
        return program

    def input_shapes(self, path: Path) -> dict[str, tuple[int | None, ...]]:
        """See `TimingBackend`."""
        return dict(self._read(path).shapes)

    def open_file(self, path: Path, shapes: Mapping[str, Sequence[int]]) -> "LiteRtProgram":
        """See `TimingBackend`."""
        return self._read(path, shapes)

    def count_operators(self, path: Path) -> dict[str, int]:
        """See `FileBackend`."""
        self._read(path)  # LiteRT checks the file
        return dict(Counter(operators_of(_content_of(path))).most_common())

    def quantize(
        self,
        source: Path,
        target: Path,
        images: Sequence[NDArray[np.float32]],
        kept: Collection[str],
    ) -> None:
        """See `QuantizingBackend`.

        Raises:
            QuadranasError: a layer to keep does not exist, or the file cannot be quantised.
        """
        content = _content_of(source)
        refuse_unknown(kept, self.layers(source))
        chosen = [output for output, layer in products_of(content).items() if layer not in kept]
        if chosen:
            content = self.converter.quantize(source, images, chosen)
        write_atomically(target, content)

    def layers(self, path: Path) -> list[str]:
        """See `QuantizingBackend`."""
        return list(dict.fromkeys(products_of(_content_of(path)).values()))

    def _read(
        self, path: Path, shapes: Mapping[str, Sequence[int]] | None = None
    ) -> "LiteRtProgram":
        """Load a file.

        Raises:
            QuadranasError: LiteRT cannot read it, or not run it on such inputs.
        """
        try:
            return LiteRtProgram(_content_of(path), self.threads, shapes)
        except (RuntimeError, TypeError, ValueError) as error:
            raise QuadranasError(
                f"{path} is not a LiteRT file that can run here, or it is damaged: "
                f"{reason_of(error)}",
                "Convert the network again.",
            ) from error

    def _converted(
        self, network: nn.Module, conversion: Conversion
    ) -> tuple[bytes, "LiteRtProgram"]:
        """A network as a file, which may have operators that LiteRT lacks, and loaded.

        Raises:
            QuadranasError: it cannot be converted, or LiteRT cannot run what comes of it.
        """
        lowered, half = lower(network, self.lowering), conversion.half_weights
        content = self.converter.convert(lowered, conversion.input_shape, half_weights=half)
        try:
            return content, LiteRtProgram(content, self.threads)
        except (RuntimeError, ValueError) as error:
            raise unconvertible(type(network).__name__, reason_of(error)) from error

    def provenance(self) -> Provenance:
        """See `Backend`."""
        versions = {"ai-edge-litert": version("ai-edge-litert"), "torch": torch.__version__}
        converted_by = self.converter.versions()
        return Provenance(
            runtime=f"LiteRT {versions['ai-edge-litert']} (XNNPACK)",
            hardware=cpu_name(),
            versions=converted_by | versions,
        )

    def close(self) -> None:
        """End the process that converts."""
        self.converter.close()


class LiteRtProgram:
    """A file in its own interpreter.

    Args:
        shapes: shapes of the inputs by name; by default those of the file.

    Attributes:
        shapes: shapes of the inputs by name as the file gives them; `None` for an open size.

    Raises:
        RuntimeError, ValueError: LiteRT cannot read the file, or not run it on such inputs.
        TypeError: an input is not numeric.
    """

    def __init__(
        self,
        content: bytes,
        threads: int | None,
        shapes: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        from ai_edge_litert.interpreter import Interpreter

        if not content:
            raise ValueError("it is empty")
        with _quiet():
            self.interpreter: Any = Interpreter(model_content=content, num_threads=threads)
            self.inputs = _inputs_of(self.interpreter)
            self.shapes = {
                name: tuple(None if size < 0 else int(size) for size in place["shape_signature"])
                for name, place in self.inputs.items()
            }
            for name, shape in (shapes or {}).items():
                self.interpreter.resize_tensor_input(self.inputs[name]["index"], shape)
            self.interpreter.allocate_tensors()
            self._fill()
            if shapes:
                self.interpreter.invoke()

    def _fill(self) -> None:
        """Set the inputs to what is timed."""
        for place in _inputs_of(self.interpreter).values():
            example = example_input(tuple(map(int, place["shape"])), np.dtype(place["dtype"]))
            self.interpreter.set_tensor(place["index"], example)

    def run(self, images: Tensor) -> Tensor:
        """See `Program`."""
        (place,) = self.inputs.values()
        (output,) = self.interpreter.get_output_details()
        if tuple(images.shape) != tuple(place["shape"]):
            raise QuadranasError(
                f"the program takes {tuple(map(int, place['shape']))}, got {tuple(images.shape)}"
            )
        self.interpreter.set_tensor(place["index"], images.detach().contiguous().numpy())
        self.interpreter.invoke()
        return torch.from_numpy(self.interpreter.get_tensor(output["index"]))

    def time_ms(self, repeats: int) -> list[float]:
        """See `Program`."""
        self._fill()
        return call_times_ms(self.interpreter.invoke, repeats)


def _content_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise QuadranasError(f"cannot read {path}: {error.strerror or error}") from error


def _inputs_of(interpreter: Any) -> dict[str, Any]:
    """The details of the inputs, by their names in the file's signature if it has one."""
    signatures = list(interpreter.get_signature_list())
    if len(signatures) == 1:
        runner = interpreter.get_signature_runner(signatures[0])
        named: dict[str, Any] = runner.get_input_details()
        return named
    return {place["name"]: place for place in interpreter.get_input_details()}


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress what LiteRT's libraries print on stderr; their errors are exceptions too."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
