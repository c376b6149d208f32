"""The steps of an export that find out about a file: does it agree, how accurate, how fast."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from quadranas.backends.interface import Conversion, FileBackend, QuantizingBackend
from quadranas.data.task import top1_accuracy
from quadranas.deployment.images import ExportImages
from quadranas.deployment.latency import describe_latency, is_comparable, measured
from quadranas.deployment.manifest import Accuracy, Latency, LatencyNote, Quantization
from quadranas.deployment.proof import (
    TOLERANCES,
    compare,
    first_diverging_layer,
    program_outputs,
    pytorch_outputs,
)
from quadranas.deployment.quantization import quantized
from quadranas.deployment.target import ExportOptions, ExportTarget
from quadranas.errors import PromiseMissedError, QuadranasError
from quadranas.latency.table import LatencyTable
from quadranas.network.skeleton import Network
from quadranas.reporter import Reporter
from quadranas.runs.stored_network import StoredNetwork
from quadranas.space.architecture import Architecture

NUM_CALIBRATION_IMAGES = 128

DEFAULT_MAX_DROP = 1.0
"""Points of accuracy."""


@dataclass(frozen=True, kw_only=True)
class ExportWork:
    """What the steps of an export share.

    Args:
        expected: what PyTorch computes for the validation images.
        prediction: the latency by the table, or why there is none.
    """

    stored: StoredNetwork
    architecture: Architecture
    network: Network
    options: ExportOptions
    target: ExportTarget
    images: ExportImages
    expected: Tensor
    prediction: LatencyNote | str
    backend: FileBackend
    reporter: Reporter

    @property
    def conversion(self) -> Conversion:
        """How the network becomes a file."""
        size = self.architecture.resolution
        return Conversion(
            input_shape=(self.batch, 3, size, size),
            dynamic_batch=self.options.batch is None,
            opset=self.target.opset,
            half_weights=self.options.precision == "fp16",
        )

    @property
    def batch(self) -> int:
        """Images at once when checking."""
        return self.options.checked_batch

    @property
    def is_int8(self) -> bool:
        """Whether the file is to be quantised."""
        return self.options.precision == "int8"

    def outputs(self, path: Path) -> Tensor:
        """What a file computes for the validation images."""
        program = self.backend.load(path, self.conversion.input_shape)
        return program_outputs(program, self.images.batches(self.batch))[: self.images.num_images]

    def accuracy(self, outputs: Tensor) -> float:
        """Top-1 accuracy on the validation images."""
        return top1_accuracy(outputs, self.images.labels)


def check_agreement(work: ExportWork, outputs: Tensor) -> None:
    """See that a file in floating point computes what PyTorch computes.

    Raises:
        PromiseMissedError: it does not; names the first layer where it begins.
    """
    tolerance = tolerance_of(work)
    comparison = compare(outputs, work.expected)
    if comparison.relative <= tolerance:
        return
    images = next(work.images.batches(work.batch))
    layer = first_diverging_layer(work.backend, work.network, work.conversion, images, tolerance)
    raise PromiseMissedError(
        f"the exported file computes something else: largest error {comparison.largest:.3g}, "
        f"{comparison.relative:.2g} of the largest logit; accepted: {tolerance:g}; "
        f"first diverging layer: {layer or 'none when exported one by one'}; nothing is kept"
    )


def tolerance_of(work: ExportWork) -> float:
    """The largest error of floating-point outputs, relative to the largest."""
    weights = "fp16" if work.options.precision == "fp16" else "fp32"
    return max(TOLERANCES[weights], TOLERANCES[work.target.checked_on.precision])


def quantize_file(work: ExportWork, source: Path, target: Path) -> Quantization:
    """Write the file again in 8 bits.

    Raises:
        QuadranasError: the backend does not quantise.
        PromiseMissedError: too much accuracy is lost.
    """
    if not isinstance(work.backend, QuantizingBackend):
        raise QuadranasError(
            f"what runs on device {work.target.checked_on.name!r} cannot be quantised here",
            "Leave out --worker-python, or choose --precision fp32.",
        )
    return quantized(
        work.backend,
        source,
        target,
        network=work.network,
        images=work.images.calibration(NUM_CALIBRATION_IMAGES, work.batch),
        accuracy=lambda path: work.accuracy(work.outputs(path)),
        reference_accuracy=work.accuracy(work.expected),
        max_drop=DEFAULT_MAX_DROP if work.options.max_drop is None else work.options.max_drop,
        reporter=work.reporter,
    )


def find_accuracy(work: ExportWork, outputs: Tensor) -> Accuracy | None:
    """Accuracy before and after; warns where the resolution costs a lot of it."""
    images = work.images
    if not images.labelled:
        return None
    pytorch = before = work.accuracy(work.expected)
    if images.dataset.resolution != images.resolution:
        trained = pytorch_outputs(work.network, images.batches(work.batch, as_trained=True))
        before = work.accuracy(trained[: images.num_images])
    found = Accuracy(
        images=images.name,
        num_images=images.num_images,
        pytorch=pytorch,
        exported=work.accuracy(outputs),
        trained_resolution=images.dataset.resolution,
        at_trained_resolution=before,
    )
    if found.lost_to_resolution:
        work.reporter.warning(
            f"{found.lost_to_resolution}. Export with --resolution {found.trained_resolution}, "
            f"or train at {images.resolution}"
        )
    return found


def find_latency(work: ExportWork, path: Path, plain: Path, table: LatencyTable | None) -> Latency:
    """What was predicted, and what the file takes."""
    device = work.target.checked_on
    shape = (work.options.batch or 1, *work.conversion.input_shape[1:])
    programs = {"file": work.backend.load(path, shape)}
    if work.is_int8:
        programs["fp32"] = work.backend.load(plain, shape)
    measurement: Mapping[str, LatencyNote] | str = "the device is emulated"
    if not work.backend.provenance().emulated:
        measurement = measured(work.backend, device, programs, work.reporter)
    comparable = work.target.is_checked_there and not work.is_int8 and is_comparable(table, device)
    return describe_latency(work.prediction, measurement, comparable=comparable)
