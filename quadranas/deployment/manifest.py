"""The manifest of a bundle: all that is known of an exported network, as plain data."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, PositiveFloat, model_validator

from quadranas.latency.device import Device
from quadranas.space.architecture import Architecture
from quadranas.space.operation import MAX_RESOLUTION
from quadranas.validation import Frozen

FORMAT_VERSION = 1

FileFormat = Literal["onnx", "openvino", "tvm", "torch", "executorch"]
Precision = Literal["fp32", "fp16", "int8"]
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]*$", max_length=100)]
"""Plain, so that it cannot lead out of the bundle."""

WORTH_A_WARNING = 0.02
"""Accuracy lost to another resolution than that of training."""

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Size = Annotated[int, Field(ge=1, le=MAX_RESOLUTION)]


@dataclass(frozen=True, kw_only=True)
class FormatFacts:
    """What a format can hold.

    Args:
        runtime: runs the files; a name in `BACKENDS`.
        package: on PyPI, that the files need.
        artefact: the file's name in a bundle.
        free_batch: a file can take any number of images at once.
    """

    runtime: str
    package: str
    artefact: str
    precisions: tuple[Precision, ...]
    free_batch: bool


FORMATS: Mapping[str, FormatFacts] = {
    "onnx": FormatFacts(
        runtime="onnxruntime",
        package="onnxruntime",
        artefact="model.onnx",
        precisions=("fp32", "int8"),
        free_batch=True,
    ),
    "openvino": FormatFacts(
        runtime="openvino",
        package="openvino",
        artefact="model.xml",
        precisions=("fp32", "fp16", "int8"),
        free_batch=True,
    ),
    "tvm": FormatFacts(
        runtime="tvm",
        package="apache-tvm",
        artefact="model.so",
        precisions=("fp32",),
        free_batch=False,
    ),
    "torch": FormatFacts(
        runtime="torch",
        package="torch",
        artefact="model.pt2",
        precisions=("fp32",),
        free_batch=True,
    ),
    "executorch": FormatFacts(
        runtime="executorch",
        package="executorch",
        artefact="model.pte",
        precisions=("fp32",),
        free_batch=False,
    ),
}


class Described(Frozen):
    """Plain data that JSON can hold: its numbers are finite."""

    model_config = ConfigDict(allow_inf_nan=False)


class InputDescription(Described):
    """What the file takes.

    Args:
        shape: (B, C, H, W); none for a batch of any size.
        mean, std: subtracted and divided by, per channel, for pixels in [0, 1]; none where nobody
            knows what the network was trained on.
    """

    name: str = "images"
    shape: tuple[Size | None, Size, Size, Size]
    layout: Literal["NCHW"] = "NCHW"
    element_type: Literal["float32"] = "float32"
    channel_order: Literal["RGB"] = "RGB"
    resizing: Literal["shorter side, bilinear, then the centre"] = (
        "shorter side, bilinear, then the centre"
    )
    mean: tuple[float, float, float] | None = None
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        _, channels, height, width = self.shape
        if channels != 3 or height != width:
            raise ValueError(f"the shape must be (B, 3, R, R), got {self.shape}")
        if (self.mean is None) != (self.std is None):
            raise ValueError("mean and std go together")
        return self

    @property
    def batch_size(self) -> int:
        """Images per call; 1 where the file takes any number."""
        return self.shape[0] or 1

    @property
    def resolution(self) -> int:
        """Height and width, in pixels."""
        return self.shape[2]


class Agreement(Described):
    """How the file's outputs compare with PyTorch's.

    Args:
        images: where they come from, such as `digits, test`.
        relative_error: the largest error relative to the largest logit.
        tolerance: what `relative_error` may be; none for int8, which is judged by its accuracy.
        top1_agreement: share of images with the same first answer.
    """

    images: str
    num_images: int = Field(ge=1)
    max_abs_error: float
    relative_error: float
    tolerance: float | None
    top1_agreement: float


class Accuracy(Described):
    """Top-1 accuracy on labelled validation images, before and after.

    Args:
        pytorch: of the network in PyTorch, at the file's resolution.
        trained_resolution: of the images in training.
        at_trained_resolution: of the network in PyTorch, there.
    """

    images: str
    num_images: int = Field(ge=1)
    pytorch: float
    exported: float
    trained_resolution: int
    at_trained_resolution: float

    @property
    def lost_to_resolution(self) -> str:
        """What the file's resolution costs, in words; empty where that is little."""
        if self.at_trained_resolution - self.pytorch <= WORTH_A_WARNING:
            return ""
        size = self.trained_resolution
        return (
            f"the network was trained at {size} pixels, where its accuracy is "
            f"{self.at_trained_resolution:.1%}; at the file's resolution it is {self.pytorch:.1%}"
        )


class LatencyNote(Described):
    """A latency and where it comes from.

    Args:
        source: a table's summary; or runtime, hardware, threads and statistic of a measurement.
        spread: of a measurement: interquartile range of all calls, relative to their median.
    """

    device: str
    ms: float = Field(gt=0)
    source: str
    spread: float | None = None


class Latency(Described):
    """Predicted and measured latency of the file, of one call.

    Args:
        fp32: of the same network in fp32, measured in the same rounds.
        deviation: of measured from predicted, where both are of the same device and runtime.
        not_predicted, not_measured: why there is no such latency.
        budget_ms: that was to be kept.
        missed: what of it is not kept, in words.
    """

    predicted: LatencyNote | None = None
    measured: LatencyNote | None = None
    fp32: LatencyNote | None = None
    deviation: float | None = None
    not_predicted: str = ""
    not_measured: str = ""
    budget_ms: float | None = None
    missed: str = ""


class BranchRange(Described):
    """The values of one part of a quadratic layer on the calibration images.

    Args:
        part: a branch (`a`, `b`, `c`), the `product` of the first two, or the `output`.
        typical: the value that 99 % of the magnitudes stay below.
        signal_to_noise_db: that 8 bits over the whole range leave, of the median channel; 0 means
            that rounding is as large as the values.
    """

    layer: str
    part: str
    minimum: float
    maximum: float
    typical: float
    signal_to_noise_db: float


class Quantization(Described):
    """How an int8 file came about.

    Args:
        kept: layers that stay in higher precision.
        max_drop: of accuracy, in points, that was allowed.
        drop: in points; negative where the accuracy rose.
    """

    num_layers: int
    kept: tuple[str, ...]
    num_calibration_images: int
    max_drop: float
    drop: float
    ranges: tuple[BranchRange, ...] = ()


class Manifest(Described):
    """All that is known of an exported network; `manifest.json`.

    Args:
        artefact: the name of the file that a runtime is given; others may belong to it.
        files: SHA-256 of every file of the bundle but this one.
        size_bytes: of the artefact and the files that belong to it.
        made_for: the device that the file is meant for.
        device: that it was checked on, as its runtime was opened: the same, or this machine.
        runtime: with its version, as in `ONNX Runtime 1.31.1`.
        lowering: the passes that the network went through.
        table: header of the latency table behind the prediction.
        class_names: none where nobody knows them.
    """

    format_version: int = Field(default=FORMAT_VERSION, ge=1, le=FORMAT_VERSION)
    name: str
    created: str
    quadranas: str
    commit: str = ""
    format: FileFormat
    precision: Precision
    opset: int | None = None
    artefact: FileName
    files: dict[FileName, Sha256]
    size_bytes: int = Field(ge=0)
    params: int = Field(ge=0)
    macs: int = Field(ge=0)
    operators: dict[str, int]
    lowering: tuple[str, ...]
    runtime: str
    hardware: str
    versions: dict[str, str]
    made_for: Device
    device: Device
    input: InputDescription
    class_names: tuple[str, ...] | None = None
    trained: bool = True
    agreement: Agreement
    accuracy: Accuracy | None = None
    quantization: Quantization | None = None
    latency: Latency = Latency()
    table: dict[str, Any] | None = None
    architecture: Architecture

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.artefact not in self.files:
            raise ValueError(f"files has no checksum of the artefact, {self.artefact!r}")
        num_classes = self.architecture.num_classes
        if self.class_names is not None and len(self.class_names) != num_classes:
            raise ValueError(f"{len(self.class_names)} class_names for {num_classes} classes")
        return self
