"""The manifest of a bundle: everything known about an exported network, as plain data."""

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, ConfigDict, Field, PositiveFloat, model_validator

from quadranas.latency.device import Device
from quadranas.latency.runtimes import Precision, check_name, file_formats, files_of
from quadranas.space.architecture import Architecture
from quadranas.space.operation import MAX_RESOLUTION
from quadranas.validation import Frozen

FORMAT_VERSION = 1

FileFormat = Annotated[
    str, AfterValidator(lambda name: check_name("format", name, file_formats()))
]
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]*$", max_length=100)]
"""A name without folders, so that it cannot refer to a file outside the bundle."""

WORTH_A_WARNING = 0.02
"""Loss of accuracy at another resolution, above which a warning is printed."""

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Size = Annotated[int, Field(ge=1, le=MAX_RESOLUTION)]


class Described(Frozen):
    """Plain data that JSON can hold: its numbers are finite."""

    model_config = ConfigDict(allow_inf_nan=False)


class InputDescription(Described):
    """The input of the file.

    Args:
        name: name of the input in the file.
        shape: (B, C, H, W): number of images, number of channels, height and width in pixels; B is
            `None` if the file takes any batch size.
        layout, element_type, channel_order: order of the dimensions, type of the numbers, and
            order of the channels.
        resizing: how an image of another size is fitted.
        mean, std: normalisation per channel of pixels in [0, 1]; `None` where the training data
            are unknown.
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
            raise ValueError("mean and std must both be given, or neither")
        return self

    @property
    def batch_size(self) -> int:
        """Images per call; 1 if the file takes any number."""
        return self.shape[0] or 1

    @property
    def resolution(self) -> int:
        """Height and width, in pixels."""
        return self.shape[2]


class Agreement(Described):
    """How the file's outputs compare with PyTorch's.

    Args:
        images: description of the images, such as `digits, test`.
        num_images: number of images.
        max_abs_error: the largest absolute error of a logit.
        relative_error: the largest error relative to the largest logit.
        tolerance: upper limit of `relative_error`, a fraction; `None` for int8, which is judged by
            accuracy.
        top1_agreement: share of images for which both predict the same class.
    """

    images: str
    num_images: int = Field(ge=1)
    max_abs_error: float
    relative_error: float
    tolerance: float | None
    top1_agreement: float


class Accuracy(Described):
    """Top-1 accuracy on labelled validation images, in PyTorch and of the file.

    Args:
        images: description of the images, such as `digits, test`.
        num_images: number of images.
        pytorch: accuracy of the network in PyTorch, at the file's resolution, from 0 to 1.
        exported: accuracy of the file, from 0 to 1.
        trained_resolution: image size in training, in pixels.
        at_trained_resolution: accuracy of the network in PyTorch at that size, from 0 to 1.
    """

    images: str
    num_images: int = Field(ge=1)
    pytorch: float
    exported: float
    trained_resolution: int
    at_trained_resolution: float

    @property
    def lost_to_resolution(self) -> str:
        """A description of the accuracy lost to the resolution; empty if it is small."""
        if self.at_trained_resolution - self.pytorch <= WORTH_A_WARNING:
            return ""
        size = self.trained_resolution
        return (
            f"the network was trained at {size} pixels, where its accuracy is "
            f"{self.at_trained_resolution:.1%}; at the file's resolution it is {self.pytorch:.1%}"
        )


class LatencyNote(Described):
    """A latency and its source.

    Args:
        device: name of the device.
        ms: the latency, in milliseconds per call.
        source: summary of a table; or runtime, hardware, threads and statistic of a measurement.
        spread: interquartile range of all measured calls, relative to their median.
        p50_ms, p95_ms: median and 95th percentile of these calls.
        dropped: share of calls that lost the processor to other processes, which are in none of
            these numbers; `None` if unknown.
    """

    device: str
    ms: float = Field(gt=0)
    source: str
    spread: float | None = None
    p50_ms: float | None = None
    p95_ms: float | None = None
    dropped: float | None = None


class Latency(Described):
    """Predicted and measured latency of the file, of one call.

    Args:
        predicted: latency by the device's table.
        measured: latency of the file in its runtime.
        fp32: latency of the same network in fp32, measured in the same rounds.
        deviation: relative difference of measured from predicted, for the same device and runtime.
        not_predicted, not_measured: the reason why the latency is missing.
        budget_ms: the latency budget.
        missed: a description of how the budget was missed; empty if it was kept.
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
        layer: path of the layer.
        part: a branch (`a`, `b`, `c`), the `product` of the first two, or the `output`.
        minimum, maximum: the smallest and the largest value.
        typical: 99th percentile of the magnitudes.
        signal_to_noise_db: of the median channel, in 8 bits over the whole range; 0 means that
            rounding errors are as large as the values.
    """

    layer: str
    part: str
    minimum: float
    maximum: float
    typical: float
    signal_to_noise_db: float


class Quantization(Described):
    """How an int8 file was made.

    Args:
        num_layers: number of layers that could be quantised.
        kept: layers that stay in higher precision.
        num_calibration_images: number of images that the ranges were computed from.
        max_drop: largest allowed drop of accuracy, in percentage points.
        drop: drop of accuracy, in percentage points; negative if the accuracy rose.
        ranges: the ranges of the quadratic layers.
    """

    num_layers: int
    kept: tuple[str, ...]
    num_calibration_images: int
    max_drop: float
    drop: float
    ranges: tuple[BranchRange, ...] = ()


class Manifest(Described):
    """Everything known about an exported network; stored as `manifest.json`.

    Args:
        format_version: version of the file format.
        name: name of the network.
        created, quadranas, commit: date and time in UTC, version and source revision that made the
            bundle.
        format, precision: format of the file, and precision of its weights.
        opset: ONNX opset; `None` for formats without one.
        artefact: name of the file that the runtime loads; it may refer to other files.
        files: SHA-256 of every file of the bundle except the manifest.
        size_bytes: size of the artefact and the files that it refers to.
        weights_sha256: SHA-256 of the network's tensors in PyTorch; `None` in older bundles.
        params, macs: number of parameters and multiply-accumulates of the network.
        operators: number of operators of each type in the file.
        lowering: names of the lowering passes that were applied.
        runtime: name and version, as in `ONNX Runtime 1.31.1`.
        hardware: the processor that checked the file.
        versions: versions of the packages that made and checked the file.
        made_for: target device of the file.
        device: device that the file was checked on: the target device, or this machine.
        input: the input of the file.
        class_names: `None` if unknown.
        trained: whether the weights are trained.
        agreement: comparison of the file with PyTorch.
        accuracy: accuracy of the file; `None` without labelled images.
        quantization: how an int8 file was made; `None` for other files.
        latency: predicted and measured latency.
        table: header of the latency table used for the prediction.
        architecture: the complete description of the network.
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
    weights_sha256: Sha256 | None = None
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
        expected = files_of(self.format).artefact
        if self.artefact != expected:
            raise ValueError(f"artefact of the format {self.format} must be {expected!r}")
        num_classes = self.architecture.num_classes
        if self.class_names is not None and len(self.class_names) != num_classes:
            raise ValueError(f"{len(self.class_names)} class_names for {num_classes} classes")
        return self
