"""OpenVINO: any device that the installed runtime offers (CPU, GPU, NPU ...)."""

import tempfile
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from quadranas.backends.interface import (
    Backend,
    Conversion,
    ConvertedFile,
    Provenance,
    as_shape,
    calibration_noise,
    example_input,
)
from quadranas.backends.lowering import lower
from quadranas.backends.onnx_file import to_onnx
from quadranas.backends.openvino_quantization import (
    compact_description,
    layers_of,
    quantized_model,
)
from quadranas.errors import QuadranasError
from quadranas.latency.device import Device
from quadranas.latency.processor import call_times_ms
from quadranas.latency.runtimes import RUNTIMES

FACTS = RUNTIMES["openvino"]

PRECISIONS = {"fp32": "f32", "fp16": "f16", "bf16": "bf16", "int8": "f32"}
"""The hints for precisions in device files: what is not in 8 bits of an int8 model is in fp32."""

REPORTED = {"float": "f32", "float32": "f32", "float16": "f16", "bfloat16": "bf16"}
"""Hints by other names that a compiled model reports."""

NAMES = {"f32": "fp32", "f16": "fp16", "bf16": "bf16"}


class OpenVinoBackend(Backend):
    """Runs in the precision of the device, or raises; by default OpenVINO would choose bf16."""

    max_parallel = 1
    lowering = (
        "fold_batch_norm",
        "fold_layer_scale",
        "linear_as_convolution",
        "decompose_layer_norm",
    )

    def __init__(self, device: Device, records: Path) -> None:
        FACTS.require()
        import openvino

        self.core: Any = openvino.Core()
        self.target = "CPU" if device.target is None else str(device.target)
        self.device = device
        offered = list(self.core.available_devices)
        if self.target.split(".")[0] not in {name.split(".")[0] for name in offered}:
            raise QuadranasError(
                f"device {device.name!r}: OpenVINO {openvino.__version__} finds no device "
                f"{self.target!r} on this machine; it offers: {', '.join(offered) or 'none'}",
                "Install the driver, or set 'target' to one of these.",
            )
        if device.precision not in PRECISIONS:
            raise self._refusal(f"OpenVINO takes {', '.join(PRECISIONS)}")

    def _refusal(self, reason: str) -> QuadranasError:
        name, precision = self.device.name, self.device.precision
        return QuadranasError(
            f"device {name!r}: {self.target} does not run {precision}: {reason}",
            "Set another precision.",
        )

    def _properties(self) -> dict[str, Any]:
        """The properties that affect the speed, as far as the device supports them."""
        wanted: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": PRECISIONS[self.device.precision],
            "NUM_STREAMS": 1,
            # The affinity of this process determines the cores.
            "ENABLE_CPU_PINNING": False,
        }
        if self.device.threads is not None:
            wanted["INFERENCE_NUM_THREADS"] = self.device.threads
        known = set(self.core.get_property(self.target, "SUPPORTED_PROPERTIES"))
        return {key: value for key, value in wanted.items() if key in known}

    def compile(self, network: nn.Module, input_shape: Sequence[int]) -> "OpenVinoProgram":
        """See `Backend`."""
        model = self._model(network, as_shape(input_shape))
        if self.device.precision == "int8":
            model = quantized_model(model, calibration_noise(input_shape), ())
        return self._compiled(model, input_shape)

    def convert(self, network: nn.Module, conversion: Conversion, path: Path) -> ConvertedFile:
        """See `FileBackend`: `path` (.xml) holds the graph, the .bin beside it the weights.

        Raises:
            QuadranasError: the files cannot be written.
        """
        conversion.check(FACTS)
        model = self._model(network, conversion.input_shape, conversion.dynamic_batch)
        write_model(model, path, half_weights=conversion.half_weights)
        return ConvertedFile(path=path, passes=self.lowering)

    def load(self, path: Path, input_shape: Sequence[int]) -> "OpenVinoProgram":
        """See `FileBackend`."""
        return self._compiled(self.read(path), input_shape)

    def input_shapes(self, path: Path) -> dict[str, tuple[int | None, ...]]:
        """See `TimingBackend`."""
        return {
            _name_of(place, number): tuple(
                size.get_length() if size.is_static else None for size in place.partial_shape
            )
            for number, place in enumerate(self.read(path).inputs)
        }

    def open_file(self, path: Path, shapes: Mapping[str, Sequence[int]]) -> "OpenVinoProgram":
        """See `TimingBackend`."""
        model = self.read(path)
        sizes = {
            place: list(shapes[_name_of(place, number)])
            for number, place in enumerate(model.inputs)
        }
        return OpenVinoProgram(self._compile_model(model, sizes))

    def read(self, path: Path) -> Any:
        """Read a model from its files.

        Raises:
            QuadranasError: OpenVINO cannot read them.
        """
        try:
            return self.core.read_model(path)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise QuadranasError(f"OpenVINO cannot read {path}: {reason}") from error

    def count_operators(self, path: Path) -> dict[str, int]:
        """See `FileBackend`."""
        operators = self.read(path).get_ordered_ops()
        return dict(Counter(op.get_type_name() for op in operators).most_common())

    def quantize(
        self,
        source: Path,
        target: Path,
        images: Sequence[NDArray[np.float32]],
        kept: Collection[str],
    ) -> None:
        """See `QuantizingBackend`.

        Raises:
            MissingExtraError: NNCF is not installed.
            QuadranasError: a layer to keep does not exist, or the file cannot be written.
        """
        model = quantized_model(self.read(source), images, kept)
        write_model(model, target)

    def layers(self, path: Path) -> list[str]:
        """See `QuantizingBackend`."""
        return layers_of(self.read(path))

    def _model(
        self, network: nn.Module, shape: tuple[int, int, int, int], dynamic_batch: bool = False
    ) -> Any:
        from openvino._offline_transformations import apply_moc_transformations

        conversion = Conversion(input_shape=shape, dynamic_batch=dynamic_batch)
        model = self.core.read_model(to_onnx(lower(network, self.lowering), conversion))
        # As openvino.convert_model does after reading, but without its telemetry:
        # fuses LayerNorm and GELU and folds constants, so that the file holds what is run.
        apply_moc_transformations(model, True)
        return model

    def _compiled(self, model: Any, input_shape: Sequence[int]) -> "OpenVinoProgram":
        return OpenVinoProgram(self._compile_model(model, list(input_shape)))

    def _compile_model(self, model: Any, shape: Any) -> Any:
        try:
            model.reshape(shape)
            compiled = self.core.compile_model(model, self.target, self._properties())
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise QuadranasError(
                f"device {self.device.name!r}: OpenVINO cannot compile for {self.target}: {reason}"
            ) from error
        self._check_precision(compiled)
        return compiled

    def _check_precision(self, compiled: Any) -> None:
        if "INFERENCE_PRECISION_HINT" not in compiled.get_property("SUPPORTED_PROPERTIES"):
            raise self._refusal("it does not report the precision that it runs")
        kind = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
        runs = REPORTED.get(kind, kind)
        if runs != PRECISIONS[self.device.precision]:
            raise self._refusal(f"it would run {NAMES.get(runs, runs)}")

    def provenance(self) -> Provenance:
        """See `Backend`."""
        import onnx
        import openvino

        return Provenance(
            runtime=f"OpenVINO {openvino.__version__.split('-')[0]} ({self.target})",
            hardware=self.core.get_property(self.target, "FULL_DEVICE_NAME"),
            versions={
                "openvino": openvino.__version__,
                "onnx": onnx.__version__,
                "torch": torch.__version__,
            },
        )

    def close(self) -> None:
        """Nothing to release."""


class OpenVinoProgram:
    """A model compiled for a device."""

    def __init__(self, compiled: Any) -> None:
        self.request = compiled.create_infer_request()
        self.example = {
            number: example_input(tuple(place.shape), np.dtype(place.element_type.to_dtype()))
            for number, place in enumerate(compiled.inputs)
        }

    def run(self, images: Tensor) -> Tensor:
        """See `Program`."""
        self.request.infer({0: images.contiguous().numpy()})
        return torch.from_numpy(self.request.get_output_tensor(0).data.copy())

    def time_ms(self, repeats: int) -> list[float]:
        """See `Program`."""
        # The input stays in the request; only the computation is repeated.
        self.request.infer(self.example)
        return call_times_ms(self.request.infer, repeats)


def _name_of(place: Any, number: int) -> str:
    """The name of an input; files may have inputs without one."""
    return place.get_any_name() if place.get_names() else f"input{number}"


def write_model(model: Any, path: Path, *, half_weights: bool = False) -> None:
    """Write OpenVINO's two files, both completely or neither.

    Raises:
        QuadranasError: they cannot be written.
    """
    import openvino

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            written = Path(folder) / f"{path.stem}.xml"
            openvino.save_model(model, str(written), compress_to_fp16=half_weights)
            description = compact_description(written.read_text(encoding="utf-8"))
            written.write_text(description, encoding="utf-8")
            # The graph last, so that its presence shows that the weights are complete.
            written.with_suffix(".bin").replace(path.with_suffix(".bin"))
            written.replace(path)
    except (OSError, RuntimeError) as error:
        raise QuadranasError(
            f"cannot write {path}: {getattr(error, 'strerror', None) or error}",
            "Free some space or choose another folder.",
        ) from error
