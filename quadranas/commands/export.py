"""export: write a network as a bundle: a verified, timed model file and its description."""

from pathlib import Path
from typing import Any

from quadranas.deployment.bundle import check_place, write_papers
from quadranas.deployment.checks import convert, latency_notes, quantize, time_file, verify
from quadranas.deployment.description import describe
from quadranas.deployment.manifest import Latency, Manifest
from quadranas.deployment.target import ExportOptions, find_target
from quadranas.deployment.work import ExportWork, find_inputs, open_work
from quadranas.errors import QuadranasError
from quadranas.files import file_name
from quadranas.latency.device import Device
from quadranas.reporter import Reporter
from quadranas.runs import layout
from quadranas.runs.stored_network import Model, StoredNetwork, open_network
from quadranas.runs.whole_folder import restore_replaced, whole_folder
from quadranas.validation import CommandResult


class ExportResult(CommandResult):
    """The result of `quadranas export`.

    Args:
        bundle: the bundle's folder.
        path: the model file in it.
        format, precision: format of the file, and precision of its weights.
        opset: ONNX opset of the file; `None` for formats without one.
        resolution: height and width of the input, in pixels.
        batch_size: number of images per call; 1 if the file takes any number.
        runtime: name and version of the runtime that checked the file.
        num_images: number of images that the file was compared with PyTorch on.
        max_abs_error: the largest absolute error of a logit.
        relative_error: the largest error relative to the largest logit.
        top1_agreement: share of images for which both predict the same class.
        accuracy, accuracy_pytorch: top-1 accuracy of the file, and in PyTorch, from 0 to 1; `None`
            without labelled images.
        accuracy_as_trained: top-1 accuracy in PyTorch at the image size of training, from 0 to 1.
        trained_resolution: that image size, in pixels.
        device: name of the target device.
        predicted_ms: latency by the device's table; if `None`, `not_predicted` gives the reason.
        measured_on: name of the device that the latency was measured on; `None` if it was not
            measured.
        measured_ms: latency on `measured_on`; if `None`, `not_measured` gives the reason.
        spread: interquartile range of the measured calls, relative to their median.
        measured_p50_ms, measured_p95_ms: median and 95th percentile of the calls.
        measured_dropped: share of calls that lost the processor to other processes and were
            dropped; `None` if unknown.
        fp32_ms: latency of the same network in fp32, measured with an int8 file.
        deviation: relative difference of measured from predicted latency.
        budget_ms: the latency budget; `None` without one.
        params: number of parameters of the network.
        size_bytes: size of the model file and the files that it refers to.
        operators: number of operators of each type in the file.
        kept: layers of an int8 file in higher precision.
        not_predicted, not_measured: the reason why the latency is missing; empty if it is not.
        missed: a description of how the budget was missed; empty if it was kept.
        num_skipped: the number of corrupt images that were skipped; `None` without `skip_corrupt`.
        image: a test image to try the bundle with: a file of the data, or `example.png` in the
            bundle for the built-in digits; `None` if the images lie in a zip file.
        notes: how the measured latency or its runtime departs from what the network was derived
            for.
    """

    bundle: Path
    path: Path
    format: str
    precision: str
    opset: int | None
    resolution: int
    batch_size: int
    runtime: str
    max_abs_error: float
    relative_error: float
    top1_agreement: float
    num_images: int
    accuracy: float | None
    accuracy_pytorch: float | None
    accuracy_as_trained: float | None
    trained_resolution: int | None
    device: str
    predicted_ms: float | None
    measured_on: str | None
    measured_ms: float | None
    measured_p50_ms: float | None
    measured_p95_ms: float | None
    measured_dropped: float | None
    spread: float | None
    fp32_ms: float | None
    deviation: float | None
    budget_ms: float | None
    params: int
    size_bytes: int
    operators: dict[str, int]
    kept: tuple[str, ...]
    not_predicted: str
    not_measured: str
    missed: str
    num_skipped: int | None
    image: Path | None
    notes: tuple[str, ...]


def export(
    model: Model,
    *,
    format: str = "onnx",
    precision: str = "fp32",
    device: str | Path | Device | None = None,
    output: str | Path | None = None,
    weights: str | Path | None = None,
    untrained: bool = False,
    force: bool = False,
    reporter: Reporter | None = None,
    **options: Any,
) -> ExportResult:
    """Write a network as a bundle: a verified, timed model file, its manifest, card and script.

    Args:
        model: an architecture file, a run folder, the name of a model, or an opened network.
        format, precision, device: see `ExportOptions`.
        output: folder of the bundle; by default `exports/FORMAT-PRECISION` in the run folder.
        weights: weights to use instead of the run's own, a .safetensors file.
        untrained: export random weights, for a file that is only timed.
        force: replace an existing bundle.
        options: other fields of `ExportOptions`, such as `budget` and `batch`.

    Raises:
        QuadranasError: an unsuitable option, extra, device or output; nothing is written.
        PromiseMissedError: the file does not agree with PyTorch, or int8 reduces the accuracy by
            more than allowed; nothing is kept.
    """
    request = ExportOptions(format=format, precision=precision, device=device, **options)
    stored = _open(model, weights, untrained=untrained)
    request.check()
    target = find_target(request, stored.architecture, stored.folder)
    bundle = _place(stored, request, output, force=force)
    inputs = find_inputs(stored, request, target)
    with (
        whole_folder(bundle, replace=force) as folder,
        open_work(stored, request, target, inputs, folder.path, reporter) as work,
    ):
        converted = convert(work)
        outputs = verify(work, converted.path)
        outputs, quantization = quantize(work, converted.path, outputs)
        latency = time_file(work, converted.path)
        manifest = describe(work, converted, outputs, quantization, latency)
        image = inputs.images.example(folder.path)
        write_papers(folder.path, manifest)
        notes = _warned(work, latency)
    more = {"notes": notes, "num_skipped": inputs.images.num_skipped}
    return _result(bundle, manifest, image=_moved(image, folder.path, bundle), **more)


def _moved(path: Path | None, folder: Path, new: Path) -> Path | None:
    """The path of a file after the folder that may contain it was renamed."""
    return new / path.name if path is not None and path.parent == folder else path


def _warned(work: ExportWork, latency: Latency) -> tuple[str, ...]:
    """The notes about a latency, each printed as a warning."""
    notes = tuple(latency_notes(work, latency))
    for note in notes:
        work.reporter.warning(note)
    return notes


def _open(model: Model, weights: str | Path | None, *, untrained: bool) -> StoredNetwork:
    """The network to export.

    Raises:
        QuadranasError: the network has no weights, or it has weights and `untrained` is given.
    """
    stored = open_network(model, weights)
    if untrained and stored.weights is not None:
        raise QuadranasError(
            f"--untrained is for networks without weights; {stored.architecture.name} has them",
            "Omit it, or name the run's architecture.json.",
        )
    if not untrained:
        stored.require_weights("; or --untrained for a file that is only timed")
    return stored


def _place(
    stored: StoredNetwork, options: ExportOptions, output: str | Path | None, *, force: bool
) -> Path:
    """The bundle's folder.

    Raises:
        QuadranasError: the folder exists and cannot be replaced.
    """
    name = f"{options.format}-{options.precision}"
    if output is not None:
        bundle = Path(output)
    elif stored.folder is not None:
        bundle = stored.folder / layout.EXPORTS / name
    else:
        bundle = Path(file_name(f"{stored.architecture.name}-{name}"))
    restore_replaced(bundle)
    check_place(bundle, replace=force)
    return bundle


def _result(bundle: Path, manifest: Manifest, **more: Any) -> ExportResult:
    """The result of an export; `more` are its fields that the manifest does not have."""
    latency, accuracy = manifest.latency, manifest.accuracy
    predicted, measured, agreement = latency.predicted, latency.measured, manifest.agreement
    return ExportResult(
        bundle=bundle,
        path=bundle / manifest.artefact,
        format=manifest.format,
        precision=manifest.precision,
        opset=manifest.opset,
        resolution=manifest.input.resolution,
        batch_size=manifest.input.batch_size,
        runtime=manifest.runtime,
        max_abs_error=agreement.max_abs_error,
        relative_error=agreement.relative_error,
        top1_agreement=agreement.top1_agreement,
        num_images=agreement.num_images,
        accuracy=accuracy.exported if accuracy else None,
        accuracy_pytorch=accuracy.pytorch if accuracy else None,
        accuracy_as_trained=accuracy.at_trained_resolution if accuracy else None,
        trained_resolution=accuracy.trained_resolution if accuracy else None,
        device=manifest.made_for.name,
        predicted_ms=predicted.ms if predicted else None,
        measured_on=measured.device if measured else None,
        measured_ms=measured.ms if measured else None,
        measured_p50_ms=measured.p50_ms if measured else None,
        measured_p95_ms=measured.p95_ms if measured else None,
        measured_dropped=measured.dropped if measured else None,
        spread=measured.spread if measured else None,
        fp32_ms=latency.fp32.ms if latency.fp32 else None,
        deviation=latency.deviation,
        budget_ms=latency.budget_ms,
        params=manifest.params,
        size_bytes=manifest.size_bytes,
        operators=manifest.operators,
        kept=manifest.quantization.kept if manifest.quantization else (),
        not_predicted=latency.not_predicted,
        not_measured=latency.not_measured,
        missed=latency.missed,
        **more,
    )
