"""export: hand a network over as a file, checked in its runtime against PyTorch."""

from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from quadranas.backends.interface import Conversion
from quadranas.backends.onnxruntime import OnnxRuntimeBackend
from quadranas.errors import PromiseMissedError, QuadranasError, unknown
from quadranas.files import TEMPORARY
from quadranas.latency.device import load_device
from quadranas.network import Network
from quadranas.trained import Subject

FORMATS = ("onnx",)
TOLERANCE = 1e-3
"""Largest allowed error relative to the largest logit, float32."""

NUM_CHECK_IMAGES = 4

THIS_MACHINE = load_device("host")


def export(
    subject: Subject,
    *,
    output: Path,
    file_format: str = "onnx",
    resolution: int | None = None,
    force: bool = False,
) -> dict[str, Any]:
    """Write the file, run it on random images, compare with PyTorch.

    Args:
        resolution: of the input; the architecture's deployment resolution if not given.
        force: replace an existing file.

    Returns: path, format, precision, max_abs_error, top1_agreement, predicted_ms (of the
    deployment resolution, else none), measured_ms, size_bytes.

    Raises:
        QuadranasError: unknown format, missing extra, or a file in the way.
        PromiseMissedError: the file's outputs differ from PyTorch's; it is not kept.
    """
    if file_format not in FORMATS:
        raise unknown("format", file_format, FORMATS)
    if output.is_dir():
        raise QuadranasError(f"{output} is a folder", "Name a file with --output.")
    if output.exists() and not force:
        raise QuadranasError(
            f"{output} exists already", "Add --force to replace it, or choose another --output."
        )
    architecture = subject.architecture.adapted(resolution=resolution)
    network = subject.network()
    unchecked = output.with_name(f".{output.name}{TEMPORARY}")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise QuadranasError(
            f"cannot write {output}: {error.strerror}", "Choose another --output."
        ) from error
    try:
        largest, relative, agreement = _save(network, architecture.resolution, unchecked)
        if not relative <= TOLERANCE:
            raise PromiseMissedError(
                f"the exported file computes something else: largest error {largest:.3g}, "
                f"{relative:.2g} of the largest logit; accepted: {TOLERANCE:g}; nothing is kept"
            )
        unchecked.replace(output)
    finally:
        unchecked.unlink(missing_ok=True)
    priced = architecture == subject.architecture
    return {
        "path": str(output),
        "format": file_format,
        "precision": "fp32",
        "resolution": architecture.resolution,
        "max_abs_error": largest,
        "top1_agreement": agreement,
        "predicted_ms": architecture.provenance.get("predicted_ms") if priced else None,
        "measured_ms": None,
        "size_bytes": output.stat().st_size,
    }


@torch.no_grad()
def _save(network: Network, resolution: int, path: Path) -> tuple[float, float, float]:
    """Write the file, and run what was written on random images beside PyTorch.

    Returns: the largest error, the same relative to the largest logit, and the share of equal
    top-1 answers.
    """
    shape = (NUM_CHECK_IMAGES, 3, resolution, resolution)
    with closing(OnnxRuntimeBackend(THIS_MACHINE, Path())) as backend:
        backend.convert(network, Conversion(input_shape=shape, dynamic_batch=True), path)
        program = backend.load(path, shape)
    images = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    expected = network.eval()(images)
    got = program.run(images)
    error = float((got - expected).abs().max())
    agreement = float((got.argmax(1) == expected.argmax(1)).float().mean())
    return error, error / max(float(expected.abs().max()), 1e-12), agreement
