"""The steps of an export: convert, verify, quantise, and find accuracy and latency."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

from quadranas.backends.interface import ConvertedFile, FileBackend, QuantizingBackend
from quadranas.deployment.latency import describe_latency, is_comparable, measured
from quadranas.deployment.manifest import Accuracy, Latency, LatencyNote, Quantization
from quadranas.deployment.proof import (
    TOLERANCES,
    compare,
    first_diverging_layer,
    pytorch_outputs,
)
from quadranas.deployment.quantization import quantized
from quadranas.deployment.target import ExportOptions, ExportTarget
from quadranas.deployment.work import ExportWork
from quadranas.errors import PromiseMissedError, QuadranasError
from quadranas.latency.contract import missed_budget
from quadranas.latency.device import ANALYTIC
from quadranas.latency.runtimes import RUNTIMES
from quadranas.measurement.bench import open_device

NUM_CALIBRATION_IMAGES = 128

DEFAULT_MAX_DROP = 1.0
"""Loss of accuracy, in percentage points, above which a warning is printed."""


def convert(work: ExportWork) -> ConvertedFile:
    """Write the network as a file in floating point: in the bundle, unless it is to be quantised.

    Raises:
        QuadranasError: the runtime cannot convert the network.
    """
    folder = work.scratch if work.is_int8 else work.folder
    name = work.target.files.artefact
    work.reporter.message(f"writing {name} for {work.target.checked_on.name}")
    return work.backend.convert(work.network, work.conversion, folder / name)


def verify(work: ExportWork, path: Path) -> Tensor:
    """Check that a file in floating point agrees with PyTorch on the validation images.

    Returns: the file's outputs.

    Raises:
        PromiseMissedError: the outputs differ by too much; names the first diverging layer.
    """
    outputs, tolerance = work.outputs(path), tolerance_of(work)
    comparison = compare(outputs, work.expected)
    if comparison.relative <= tolerance:
        return outputs
    images = next(work.images.batches(work.batch))
    layer = first_diverging_layer(
        *(work.backend, work.network, work.conversion, images),
        tolerance=tolerance,
        suffix=path.suffix,
    )
    raise PromiseMissedError(
        f"the exported file does not agree with PyTorch: largest error {comparison.largest:.3g}, "
        f"{comparison.relative:.2g} of the largest logit; accepted: {tolerance:g}; "
        f"first diverging layer: {layer or 'none when exported one by one'}; nothing was kept"
    )


def tolerance_of(work: ExportWork) -> float:
    """Largest allowed error of floating-point outputs, relative to the largest output."""
    weights = "fp16" if work.options.precision == "fp16" else "fp32"
    return max(TOLERANCES[weights], TOLERANCES[work.target.checked_on.precision])


def quantize(
    work: ExportWork, source: Path, outputs: Tensor
) -> tuple[Tensor, Quantization | None]:
    """Write the bundle's file in 8 bits, if it is to be quantised.

    Args:
        outputs: outputs of the file `source`.

    Returns: outputs of the bundle's file, and how it was quantised.

    Raises:
        QuadranasError: the device's runtime cannot quantise files.
        PromiseMissedError: the accuracy drops by more than allowed.
    """
    if not work.is_int8:
        return outputs, None
    if not isinstance(work.backend, QuantizingBackend):
        raise QuadranasError(
            f"the runtime of device {work.target.checked_on.name!r} cannot quantise files",
            "Name another --device, or choose --precision fp32.",
        )
    quantization = quantized(
        work.backend,
        source,
        work.path,
        network=work.network,
        images=work.images.calibration(NUM_CALIBRATION_IMAGES, work.batch),
        accuracy=lambda path: work.accuracy(work.outputs(path)),
        reference_accuracy=work.accuracy(work.expected),
        max_drop=DEFAULT_MAX_DROP if work.options.max_drop is None else work.options.max_drop,
        reporter=work.reporter,
    )
    return work.outputs(work.path), quantization


def find_accuracy(work: ExportWork, outputs: Tensor) -> Accuracy | None:
    """Accuracy in PyTorch and of the file; warns if the file's resolution reduces it."""
    images = work.images
    if not images.labelled:
        return None
    pytorch = before = work.accuracy(work.expected)
    if images.trained_resolution != images.resolution:
        trained = pytorch_outputs(work.network, images.as_trained().batches(work.batch))
        before = work.accuracy(trained[: images.num_images])
    accuracy = Accuracy(
        images=images.name,
        num_images=images.num_images,
        pytorch=pytorch,
        exported=work.accuracy(outputs),
        trained_resolution=images.trained_resolution,
        at_trained_resolution=before,
    )
    if accuracy.lost_to_resolution:
        work.reporter.warning(
            f"{accuracy.lost_to_resolution}. Export with --resolution "
            f"{accuracy.trained_resolution}, or train at {images.resolution}"
        )
    return accuracy


def time_file(work: ExportWork, plain: Path) -> Latency:
    """Predicted and measured latency of the bundle's file, and whether the budget is kept.

    Args:
        plain: the file in floating point.
    """
    options, device = work.options, work.target.timed_on
    shape = (options.batch_size or 1, *work.conversion.input_shape[1:])
    with _timing_backend(work) as backend:
        programs = {"file": backend.load(work.path, shape)}
        if work.is_int8:
            programs["fp32"] = backend.load(plain, shape)
        measurement: Mapping[str, LatencyNote] | str = "the device is emulated"
        if not backend.provenance().emulated:
            measurement = measured(backend, device, programs, work.reporter)
    comparable = (
        work.target.is_checked_there
        and not work.is_int8
        and is_comparable(work.table, device, shape[0])
    )
    latency = describe_latency(work.prediction, measurement, comparable=comparable)
    missed = _missed(latency, work.target, options)
    return latency.model_copy(update={"budget_ms": options.budget_ms, "missed": missed})


@contextmanager
def _timing_backend(work: ExportWork) -> Iterator[FileBackend]:
    """The backend that times the file: the one that checks it, unless a command does."""
    if work.target.timer is None:
        yield work.backend
        return
    with open_device(work.target.timer) as backend:
        assert isinstance(backend, FileBackend)
        yield backend


def latency_notes(work: ExportWork, latency: Latency) -> Iterator[str]:
    """How the file departs from what the network was derived for: budget and runtime."""
    device, derived = work.target.device, work.stored.architecture.provenance
    is_main = derived.get("device") == device.name
    budget_ms = derived.get("budget_ms" if is_main else f"budget_ms.{device.name}")
    measured_there = latency.measured
    if latency.budget_ms is not None or not work.target.is_checked_there:
        measured_there = None  # it is judged already, or says nothing about the device
    if measured_there is not None and isinstance(budget_ms, int | float):
        missed = missed_budget(
            *(float(budget_ms), work.options.tolerance),
            predicted_ms=None,
            measured_ms=measured_there.ms,
        )
        if missed:
            yield f"{missed}, which the network was derived for"
    if work.table is None or latency.predicted is None:
        return
    header, runtime = work.table.header, work.target.runtime
    title = RUNTIMES[runtime].title
    # An analytic model names the runtime that it was fitted to, in words.
    is_same = title in header.runtime if header.method == ANALYTIC else runtime == header.backend
    if not is_same:
        yield (
            f"the predicted latency is for {header.runtime} on the device; the file is for "
            f"{title}, which may be slower or faster there"
        )


def _missed(latency: Latency, target: ExportTarget, options: ExportOptions) -> str:
    """A description of how a file misses its budget; empty if it is kept, or without a budget.

    A measurement on another machine than the device says nothing about the device's budget.

    Raises:
        QuadranasError: the machine was too busy to measure, and there is no prediction.
    """
    if options.budget_ms is None:
        return ""
    predicted, here = latency.predicted, latency.measured if target.is_checked_there else None
    if here is None and predicted is None and target.is_checked_there:
        raise QuadranasError(
            f"cannot check the budget of {options.budget_ms:.4g} ms: the latency is not predicted "
            f"({latency.not_predicted}) and not measured ({latency.not_measured}); nothing was "
            "kept",
            "Repeat the command on an idle machine, or omit --budget.",
        )
    missed = missed_budget(
        *(options.budget_ms, options.tolerance),
        predicted_ms=predicted.ms if predicted else None,
        measured_ms=here.ms if here else None,
    )
    judged = here or predicted
    return f"{missed}; {judged.device}: {judged.source}" if missed and judged else missed
