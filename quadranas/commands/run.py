"""run: label images with an exported bundle, in the runtime that it was made for."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from torch import Tensor

from quadranas.backends.interface import FileBackend
from quadranas.backends.registry import BACKENDS
from quadranas.data.decoding import Pixels, read_image
from quadranas.data.preprocessing import image_tensor
from quadranas.deployment.bundle import Bundle, open_bundle
from quadranas.deployment.manifest import InputDescription, Manifest
from quadranas.errors import QuadranasError
from quadranas.latency.device import Device
from quadranas.latency.host import usable_cores
from quadranas.measurement.bench import open_device

DEFAULT_TOP = 5
NUM_CALLS = 5
"""A time is the median of so many calls."""


def run_bundle(
    path: Path, images: Sequence[Path], *, top: int | None = None, **reach: str
) -> dict[str, Any]:
    """Label images, and time every call.

    Args:
        path: the bundle's folder; its files are compared with their checksums first.
        images: files that Pillow reads, prepared as in training.
        top: how many labels an image gets, the likeliest first; 5, or all, if not given.
        reach: another way to the device than the exported one: keys of `Reach`.

    Returns: bundle, name, runtime, hardware, device, precision, batch_size (images per call; an
    image is repeated to fill it), measured_ms of a call at export with measured_on, or none,
    notes, and results: for each image its labels (label, index, probability) and the ms of a call,
    none on an emulated device.

    Raises:
        QuadranasError: the bundle is not what was exported, an image cannot be read, the runtime
            or the device is missing.
    """
    bundle = open_bundle(path)
    manifest = bundle.manifest
    if not images:
        raise QuadranasError("no images to label", "Name image files, such as PNG or JPEG.")
    num_labels = _num_labels(top, manifest.architecture.num_classes)
    inputs = [_prepared(_read(image, manifest.input), manifest.input) for image in images]
    device = _device(bundle, reach)
    with (
        tempfile.TemporaryDirectory() as records,
        _opened(device, Path(records)) as backend,
    ):
        program = backend.load(bundle.artefact, tuple(inputs[0].shape))
        provenance = backend.provenance()
        answers = [
            {
                "image": str(image),
                "labels": _labels(program.run(x)[0], manifest.class_names, num_labels),
                "ms": None if provenance.emulated else median(program.time_ms(NUM_CALLS)),
            }
            for image, x in zip(images, inputs, strict=True)
        ]
    measured = manifest.latency.measured
    return {
        "bundle": str(path),
        "name": manifest.name,
        "runtime": provenance.runtime,
        "hardware": provenance.hardware,
        "device": device.name,
        "precision": manifest.precision,
        "batch_size": manifest.input.batch_size,
        "measured_ms": None if measured is None else measured.ms,
        "measured_on": None if measured is None else f"{measured.device}, {measured.source}",
        "notes": _notes(bundle, device, emulated=provenance.emulated),
        "results": answers,
    }


def _num_labels(top: int | None, num_classes: int) -> int:
    if top is not None and not 1 <= top <= num_classes:
        raise QuadranasError(
            f"--top {top} does not fit a network of {num_classes} classes",
            f"Give 1 to {num_classes}.",
        )
    return min(DEFAULT_TOP, num_classes) if top is None else top


def _read(path: Path, wanted: InputDescription) -> Pixels:
    if path.is_dir():
        raise QuadranasError(
            f"{path} is a folder; expected image files",
            f"Name the files, as in: {path}/*.png",
        )
    return read_image(path, wanted.resolution, "Name image files, such as PNG or JPEG.")


def _prepared(pixels: Pixels, wanted: InputDescription) -> Tensor:
    """(B, 3, R, R), normalised; the batch is the image over and over."""
    image = image_tensor(pixels, wanted.mean or (0.0,) * 3, wanted.std or (1.0,) * 3)
    return image.repeat(wanted.batch_size, 1, 1, 1)


def _device(bundle: Bundle, reach: dict[str, str]) -> Device:
    """The device that the bundle was made for, reached in another way if one is given.

    On a machine of fewer cores it gets as many threads as there are.
    """
    _check_reach(bundle.manifest, reach)
    changes: dict[str, str | None] = dict(reach)
    if "rpc" in reach:
        changes.setdefault("rpc_tracker", None)
        changes.setdefault("rpc_key", None)
    elif "rpc_tracker" in reach:
        changes["rpc"] = None
    device = bundle.manifest.device.configured(**changes)
    cores = len(usable_cores())
    if device.is_remote or device.threads is None or device.threads <= cores:
        return device
    return device.configured(threads=cores)


def _check_reach(manifest: Manifest, reach: Mapping[str, str]) -> None:
    """Refuse a way to a device that the bundle was not made for."""
    allowed = {"rpc", "rpc_tracker", "rpc_key"} if manifest.device.runtime == "tvm" else set()
    if manifest.device.reach.worker_python is not None:
        allowed = {"worker_python"}
    for key in reach:
        if key not in allowed:
            raise QuadranasError(
                f"--{key.replace('_', '-')} does not suit this bundle, whose file runs in "
                f"{manifest.runtime}",
                "Leave it out, or export for the device that it leads to.",
            )


@contextmanager
def _opened(device: Device, records: Path) -> Iterator[FileBackend]:
    if device.runtime not in BACKENDS:
        raise QuadranasError(
            f"device {device.name!r}: its runtime is {device.runtime!r}; accepted: "
            f"{', '.join(BACKENDS)}",
            "Export again for a device with one of these.",
        )
    with open_device(device, records) as backend:
        if not isinstance(backend, FileBackend):
            raise QuadranasError(
                f"device {device.name!r}: {device.runtime} reads no files",
                "Export again for another device.",
            )
        yield backend


def _labels(
    logits: Tensor, class_names: Sequence[str] | None, num_labels: int
) -> list[dict[str, Any]]:
    if not logits.isfinite().all():
        raise QuadranasError(
            "the network computed numbers that are not finite",
            "Export it in a higher precision, and compare.",
        )
    likeliest, indices = logits.double().softmax(0).topk(num_labels)
    return [
        {
            "label": str(index) if class_names is None else class_names[index],
            "index": index,
            "probability": probability,
        }
        for index, probability in zip(indices.tolist(), likeliest.tolist(), strict=True)
    ]


def _notes(bundle: Bundle, device: Device, *, emulated: bool) -> list[str]:
    """What the reader of the labels and times must know."""
    manifest = bundle.manifest
    notes = []
    if not manifest.trained:
        notes.append("the network was exported untrained, so its labels mean nothing")
    if manifest.accuracy is not None and manifest.accuracy.lost_to_resolution:
        notes.append(manifest.accuracy.lost_to_resolution)
    if manifest.input.mean is None:
        notes.append("the manifest has no normalisation; pixels were used as 0 to 1")
    if device.threads != manifest.device.threads:
        notes.append(f"{device.threads} threads, not {manifest.device.threads} as at export")
    if emulated:
        notes.append(f"device {manifest.device.name} is emulated, so nothing was timed")
    return notes
