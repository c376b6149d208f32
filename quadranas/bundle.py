"""The bundle: a folder with a file for a runtime, and all that its user must know."""

from typing import Any, Literal

from pydantic import Field

from quadranas.architecture import Architecture, Frozen
from quadranas.latency.device import Device

FORMAT_VERSION = 1
MANIFEST = "manifest.json"

FileFormat = Literal["onnx", "openvino", "tvm", "torch", "executorch"]
Precision = Literal["fp32", "fp16", "int8"]


class InputDescription(Frozen):
    """What the file takes.

    Args:
        shape: (B, C, H, W); none for a batch of any size.
        mean, std: subtracted and divided by, per channel, for pixels in [0, 1]; none where nobody
            knows what the network was trained on.
    """

    name: str = "images"
    shape: tuple[int | None, int, int, int]
    layout: Literal["NCHW"] = "NCHW"
    element_type: Literal["float32"] = "float32"
    channel_order: Literal["RGB"] = "RGB"
    resizing: Literal["shorter side, bilinear, then the centre"] = (
        "shorter side, bilinear, then the centre"
    )
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None


class Agreement(Frozen):
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


class Accuracy(Frozen):
    """Top-1 accuracy on labelled validation images, before and after.

    Args:
        pytorch: of the network in PyTorch, at the file's resolution.
        trained_resolution: of the images in training.
    """

    images: str
    num_images: int = Field(ge=1)
    pytorch: float
    exported: float
    trained_resolution: int


class LatencyNote(Frozen):
    """A latency and where it comes from.

    Args:
        source: a table's summary; or runtime, hardware, threads and statistic of a measurement.
    """

    device: str
    ms: float = Field(gt=0)
    source: str


class Latency(Frozen):
    """Predicted and measured latency of the file, of one call.

    Args:
        fp32: of the same network in fp32, measured in the same rounds.
        deviation: of measured from predicted, where both are of the same device and runtime.
    """

    predicted: LatencyNote | None = None
    measured: LatencyNote | None = None
    fp32: LatencyNote | None = None
    deviation: float | None = None


class BranchRange(Frozen):
    """The values of one part of a quadratic layer on the calibration images.

    Args:
        part: a branch (`a`, `b`, `c`), the `product` of the first two, or the `output`.
        typical: the value that 99 % of the magnitudes stay below.
        signal_to_noise_db: that 8 bits over the whole range leave.
    """

    layer: str
    part: str
    minimum: float
    maximum: float
    typical: float
    signal_to_noise_db: float


class Quantization(Frozen):
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


class Manifest(Frozen):
    """All that is known of an exported network; `manifest.json`.

    Args:
        artefact: the name of the file that a runtime is given; others may belong to it.
        files: SHA-256 of every file of the bundle but this one.
        size_bytes: of the artefact and the files that belong to it.
        device: how the runtime was opened that the file was made for and checked in.
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
    artefact: str
    files: dict[str, str]
    size_bytes: int
    params: int
    macs: int
    operators: dict[str, int]
    lowering: tuple[str, ...]
    runtime: str
    hardware: str
    versions: dict[str, str]
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
