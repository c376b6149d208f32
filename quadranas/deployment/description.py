"""The manifest of an exported file, from the results of the steps of the export."""

from torch import Tensor

from quadranas.backends.interface import ConvertedFile
from quadranas.deployment.bundle import checksums
from quadranas.deployment.checks import find_accuracy, tolerance_of
from quadranas.deployment.manifest import (
    Agreement,
    InputDescription,
    Latency,
    Manifest,
    Quantization,
)
from quadranas.deployment.proof import compare
from quadranas.deployment.work import ExportWork
from quadranas.files import stamp
from quadranas.network.counting import count_network
from quadranas.network.weights import digest_of


def describe(
    work: ExportWork,
    converted: ConvertedFile,
    outputs: Tensor,
    quantization: Quantization | None,
    latency: Latency,
) -> Manifest:
    """The manifest of a bundle that contains only its model file so far.

    Args:
        outputs: outputs of the file for the validation images.
    """
    provenance = work.backend.provenance()
    params, macs = count_network(work.network, work.architecture.resolution)
    table, now = work.table, stamp()
    return Manifest(
        name=work.architecture.name,
        created=now.time.isoformat(timespec="seconds"),
        quadranas=now.quadranas,
        commit=now.commit,
        format=work.options.format,
        precision=work.options.precision,
        opset=converted.opset,
        artefact=work.path.name,
        files=checksums(work.folder),
        size_bytes=sum(file.stat().st_size for file in work.folder.iterdir()),
        weights_sha256=digest_of(work.network.state_dict()),
        params=params,
        macs=macs,
        operators=work.backend.count_operators(work.path),
        lowering=converted.passes,
        runtime=provenance.runtime,
        hardware=provenance.hardware,
        versions=dict(provenance.versions),
        made_for=work.target.device,
        device=work.target.checked_on,
        input=_input(work),
        class_names=known.class_names if (known := work.images.preprocessing) else None,
        trained=work.stored.weights is not None,
        agreement=_agreement(work, outputs),
        accuracy=find_accuracy(work, outputs),
        quantization=quantization,
        latency=latency,
        table=table.header.model_dump(mode="json") if table else None,
        architecture=work.architecture,
    )


def _input(work: ExportWork) -> InputDescription:
    size, known = work.architecture.resolution, work.images.preprocessing
    return InputDescription(
        shape=(work.options.batch_size, 3, size, size),
        mean=known.mean if known else None,
        std=known.std if known else None,
    )


def _agreement(work: ExportWork, outputs: Tensor) -> Agreement:
    comparison = compare(outputs, work.expected)
    return Agreement(
        images=work.images.name,
        num_images=work.images.num_images,
        max_abs_error=comparison.largest,
        relative_error=comparison.relative,
        tolerance=None if work.is_int8 else tolerance_of(work),
        top1_agreement=comparison.top1_agreement,
    )
