"""export: hand a network over as a bundle whose file is proven equal to PyTorch, and timed."""

import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from quadranas import __version__
from quadranas.backends.interface import FileBackend, ReportsProgress
from quadranas.backends.onnx_file import OLD_LOWERING, OPSET, is_old
from quadranas.deployment.bundle import (
    CARD,
    MANIFEST,
    SCRIPT,
    checksums,
    read_manifest,
    write_manifest,
)
from quadranas.deployment.checks import (
    ExportWork,
    check_agreement,
    find_accuracy,
    find_latency,
    quantize_file,
    tolerance_of,
)
from quadranas.deployment.images import ExportImages, open_export_images
from quadranas.deployment.inference_script import inference_script
from quadranas.deployment.latency import find_prediction_table, predicted
from quadranas.deployment.manifest import (
    FORMATS,
    Accuracy,
    Agreement,
    InputDescription,
    Latency,
    LatencyNote,
    Manifest,
    Quantization,
)
from quadranas.deployment.model_card import model_card
from quadranas.deployment.proof import Comparison, compare, pytorch_outputs
from quadranas.deployment.target import ExportOptions, ExportTarget, find_target
from quadranas.errors import QuadranasError
from quadranas.files import source_commit, write_atomically
from quadranas.latency.table import LatencyTable
from quadranas.measurement.bench import open_device
from quadranas.network.counting import count_network
from quadranas.reporter import Reporter
from quadranas.runs.config import DataConfig
from quadranas.runs.stored_network import StoredNetwork
from quadranas.runs.whole_folder import restore_replaced, whole_folder
from quadranas.space.architecture import Architecture

NUM_IMAGES = 1000
NUM_REMOTE_IMAGES = 16
"""Every image travels to a board and back, which may be an emulated one."""


@dataclass(frozen=True, kw_only=True)
class _Findings:
    """What was found out about a file."""

    comparison: Comparison
    accuracy: Accuracy | None
    quantization: Quantization | None
    latency: Latency


def export(
    stored: StoredNetwork,
    output: Path,
    options: ExportOptions,
    reporter: Reporter,
    *,
    data: DataConfig | None = None,
    force: bool = False,
) -> dict[str, Any]:
    """Write a bundle: the file, checked in its runtime on real images and timed, and its papers.

    Args:
        output: the bundle, a new folder.
        data: which images to check with; by default those of the run that the network lies in.
        force: replace a bundle that lies there.

    Returns: bundle, path, format, precision, resolution, max_abs_error, relative_error,
    top1_agreement, accuracy, accuracy_pytorch, predicted_ms, measured_ms, deviation, size_bytes,
    kept and more; `missed` says what of a budget is not kept, empty if all is.

    Raises:
        QuadranasError: an option that does not fit, a missing extra, a device that is not there,
            or a folder in the way; nothing is left behind.
        PromiseMissedError: the file computes something else, or int8 costs too much accuracy; it
            is not kept.
    """
    options.check()
    target = find_target(options, stored.architecture)
    _check_output(output, force)
    architecture = stored.architecture.adapted(resolution=options.resolution)
    images = _open_images(stored, architecture, target, options, data or DataConfig())
    table = find_prediction_table(stored.architecture, target.device, stored.folder, options.table)
    prediction = predicted(
        *(stored.architecture, table),
        resolution=architecture.resolution,
        batch=options.batch or 1,
    )
    _check_budget(prediction, target, options)
    network = stored.network()
    with (
        whole_folder(output, replace=force) as folder,
        tempfile.TemporaryDirectory() as scratch,
        open_device(target.checked_on) as backend,
    ):
        assert isinstance(backend, FileBackend)
        if isinstance(backend, ReportsProgress):
            backend.report = reporter.message
        outputs = pytorch_outputs(network, images.batches(options.checked_batch))
        work = ExportWork(
            stored=stored,
            architecture=architecture,
            network=network,
            options=options,
            target=target,
            images=images,
            expected=outputs[: images.num_images],
            prediction=prediction,
            backend=backend,
            reporter=reporter,
        )
        manifest = _write(work, folder.path, Path(scratch), table)
        write_manifest(folder.path, manifest)
    return _result(output, manifest)


def _check_budget(
    prediction: LatencyNote | str, target: ExportTarget, options: ExportOptions
) -> None:
    """Refuse a budget that nobody could judge.

    Raises:
        QuadranasError: the latency on the device will be neither measured nor predicted.
    """
    if options.budget_ms is None or target.is_checked_there or not isinstance(prediction, str):
        return
    raise QuadranasError(
        f"nobody can say whether the budget of {options.budget_ms:.4g} ms will be kept on "
        f"{target.device.name}, which is not here to measure: {prediction}",
        "Leave out --budget, or what keeps a table from being used (--resolution, --batch), or "
        "measure on this machine with --device host.",
    )


def _check_output(output: Path, force: bool) -> None:
    """Refuse a file, and a folder that holds more than a bundle even with `force`.

    Raises:
        QuadranasError: says what is in the way.
    """
    try:
        restore_replaced(output)
        _check_content(output, force)
    except OSError as error:
        raise QuadranasError(
            f"cannot read the output {output}: {error.strerror}", "Choose another --output."
        ) from error


def _check_content(output: Path, force: bool) -> None:
    if output.is_file() or output.suffix in {Path(f.artefact).suffix for f in FORMATS.values()}:
        raise QuadranasError(
            f"the output {output} is a file; a bundle is a folder", "Name a folder with --output."
        )
    if not output.is_dir() or not any(output.iterdir()):
        return
    if not (output / MANIFEST).is_file():
        raise QuadranasError(
            f"{output} exists and is no bundle: it has no {MANIFEST}",
            "Choose another --output.",
        )
    if not force:
        raise QuadranasError(
            f"{output} exists already", "Add --force to replace it, or choose another --output."
        )
    manifest = read_manifest(output)
    foreign = {path.name for path in output.iterdir()} - {MANIFEST, *manifest.files}
    if foreign:
        raise QuadranasError(
            f"{output} holds more than its bundle, which would be lost: {min(foreign)}",
            "Move that away, or choose another --output.",
        )


def _open_images(
    stored: StoredNetwork,
    architecture: Architecture,
    target: ExportTarget,
    options: ExportOptions,
    data: DataConfig,
) -> ExportImages:
    usual = NUM_REMOTE_IMAGES if target.checked_on.is_remote else NUM_IMAGES
    number = options.num_images or usual
    images = open_export_images(stored, data, architecture.resolution, number)
    if options.precision == "int8" and not images.labelled:
        raise QuadranasError(
            f"int8 is judged by the accuracy it costs, and nobody knows which images "
            f"{architecture.name} was trained for",
            "Name a run folder, or the weights and the images: --weights FILE --data DATA.",
        )
    return images


def _write(work: ExportWork, folder: Path, scratch: Path, table: LatencyTable | None) -> Manifest:
    """Write everything but the manifest; returns it."""
    known = FORMATS[work.options.file_format]
    path = folder / known.artefact
    plain = scratch / known.artefact if work.is_int8 else path
    work.reporter.message(f"writing {path.name} for {work.target.checked_on.name}")
    work.backend.convert(work.network, work.conversion, plain)
    outputs = work.outputs(plain)
    check_agreement(work, outputs)
    quantization = None
    if work.is_int8:
        quantization = quantize_file(work, plain, path)
        outputs = work.outputs(path)
    latency = find_latency(work, path, plain, table)
    missed = _missed(latency, work.target, work.options)
    found = _Findings(
        comparison=compare(outputs, work.expected),
        accuracy=find_accuracy(work, outputs),
        quantization=quantization,
        latency=latency.model_copy(update={"budget_ms": work.options.budget_ms, "missed": missed}),
    )
    manifest = _describe(work, path, table, found)
    write_atomically(folder / CARD, model_card(manifest))
    write_atomically(folder / SCRIPT, inference_script(manifest.format))
    return manifest.model_copy(update={"files": checksums(folder)})


def _describe(
    work: ExportWork, path: Path, table: LatencyTable | None, found: _Findings
) -> Manifest:
    """The manifest, with the checksums of the files that lie there already."""
    provenance, images = work.backend.provenance(), work.images
    size, known = work.architecture.resolution, images.preprocessing
    params, macs = count_network(work.network, size)
    return Manifest(
        name=work.architecture.name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        quadranas=__version__,
        commit=source_commit(),
        format=work.options.file_format,
        precision=work.options.precision,
        opset=work.target.opset or (OPSET if path.suffix == ".onnx" else None),
        artefact=path.name,
        files=checksums(path.parent),
        size_bytes=sum(file.stat().st_size for file in path.parent.iterdir()),
        params=params,
        macs=macs,
        operators=work.backend.count_operators(path),
        lowering=tuple(OLD_LOWERING if is_old(work.conversion) else work.backend.lowering),
        runtime=provenance.runtime,
        hardware=provenance.hardware,
        versions=dict(provenance.versions),
        made_for=work.target.device,
        device=work.target.checked_on,
        input=InputDescription(
            shape=(work.options.batch, 3, size, size),
            mean=known.mean if known else None,
            std=known.std if known else None,
        ),
        class_names=known.class_names if known else None,
        trained=work.stored.weights is not None,
        agreement=Agreement(
            images=images.name,
            num_images=images.num_images,
            max_abs_error=found.comparison.largest,
            relative_error=found.comparison.relative,
            tolerance=None if work.is_int8 else tolerance_of(work),
            top1_agreement=found.comparison.top1_agreement,
        ),
        accuracy=found.accuracy,
        quantization=found.quantization,
        latency=found.latency,
        table=table.header.model_dump(mode="json") if table else None,
        architecture=work.architecture,
    )


def _result(output: Path, manifest: Manifest) -> dict[str, Any]:
    latency, accuracy = manifest.latency, manifest.accuracy
    predicted_ms = latency.predicted.ms if latency.predicted else None
    return {
        "bundle": str(output),
        "path": str(output / manifest.artefact),
        "format": manifest.format,
        "precision": manifest.precision,
        "opset": manifest.opset,
        "resolution": manifest.input.resolution,
        "batch_size": manifest.input.batch_size,
        "runtime": manifest.runtime,
        "max_abs_error": manifest.agreement.max_abs_error,
        "relative_error": manifest.agreement.relative_error,
        "top1_agreement": manifest.agreement.top1_agreement,
        "num_images": manifest.agreement.num_images,
        "accuracy": accuracy.exported if accuracy else None,
        "accuracy_pytorch": accuracy.pytorch if accuracy else None,
        "accuracy_as_trained": accuracy.at_trained_resolution if accuracy else None,
        "trained_resolution": accuracy.trained_resolution if accuracy else None,
        "device": manifest.made_for.name,
        "predicted_ms": predicted_ms,
        "measured_on": latency.measured.device if latency.measured else None,
        "measured_ms": latency.measured.ms if latency.measured else None,
        "spread": latency.measured.spread if latency.measured else None,
        "fp32_ms": latency.fp32.ms if latency.fp32 else None,
        "deviation": latency.deviation,
        "budget_ms": latency.budget_ms,
        "params": manifest.params,
        "size_bytes": manifest.size_bytes,
        "operators": manifest.operators,
        "kept": list(manifest.quantization.kept) if manifest.quantization else [],
        "not_predicted": latency.not_predicted,
        "not_measured": latency.not_measured,
        "missed": latency.missed,
    }


def _missed(latency: Latency, target: ExportTarget, options: ExportOptions) -> str:
    """What a file misses of its budget, in words; empty where it is kept or none was given.

    Only what was measured on the device itself may exceed the budget by the tolerance.
    """
    if options.budget_ms is None:
        return ""
    judged, limit_ms = latency.predicted, options.budget_ms
    if target.is_checked_there and latency.measured is not None:
        judged, limit_ms = latency.measured, options.budget_ms * (1 + options.tolerance)
    if judged is None:
        return (
            f"the latency on {target.device.name} is neither measured nor predicted, so nobody "
            f"knows whether the budget of {options.budget_ms:.4g} ms is kept"
        )
    if judged.ms <= limit_ms:
        return ""
    return (
        f"{judged.ms:.4g} ms on {judged.device} are over the budget of {options.budget_ms:.4g} ms"
        f"; {judged.source}"
    )
