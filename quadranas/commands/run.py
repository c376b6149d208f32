"""run: label images with an exported bundle in its runtime."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Unpack

from torch import Tensor

from quadranas.backends.interface import Program, Provenance
from quadranas.data.decoding import Pixels, read_image
from quadranas.data.preprocessing import image_tensor
from quadranas.deployment.bundle import Bundle, open_bundle
from quadranas.deployment.manifest import InputDescription, Manifest
from quadranas.deployment.opening import (
    bundle_device,
    opened_for_files,
    reach_of,
    refuse_native_code,
)
from quadranas.errors import QuadranasError
from quadranas.latency.device import Device, ReachSettings
from quadranas.measurement.summary import timing_of
from quadranas.measurement.timing import undisturbed_calls
from quadranas.validation import CommandResult, Frozen, WrittenPath

DEFAULT_TOP = 5
NUM_CALLS = 5
"""Number of calls whose median is an image's latency."""


class Label(Frozen):
    """A class and its probability.

    Args:
        label: name of the class; its index as text if the names are unknown.
        index: index of the class.
        probability: probability of the class, from 0 to 1.
    """

    label: str
    index: int
    probability: float


class LabelledImage(Frozen):
    """The labels of an image.

    Args:
        image: the image file.
        labels: the most probable first.
        ms, p95_ms: median and 95th percentile of the undisturbed calls, in milliseconds; `None`
            on an emulated device.
        dropped: share of calls that lost the processor to other processes, which are in neither;
            1 if all did, and both are of disturbed calls; `None` if unknown.
    """

    image: WrittenPath
    labels: tuple[Label, ...]
    ms: float | None
    p95_ms: float | None = None
    dropped: float | None = None


class RunResult(CommandResult):
    """The result of `quadranas run`.

    Args:
        bundle: the bundle's folder.
        name: name of the network.
        runtime: name and version of the runtime.
        hardware: the processor that computed.
        device: name of the device that the file was opened for.
        precision: precision of the file's weights.
        batch_size: number of images per call; an image is repeated to fill it.
        measured_ms, measured_on: latency of a call at export, and where it was measured.
        notes: limitations of the labels and latencies.
        results: the labels, image by image.
    """

    bundle: WrittenPath
    name: str
    runtime: str
    hardware: str
    device: str
    precision: str
    batch_size: int
    measured_ms: float | None
    measured_on: str | None
    notes: tuple[str, ...]
    results: tuple[LabelledImage, ...]


def run(
    bundle: str | Path,
    images: Sequence[str | Path],
    *,
    top: int | None = None,
    allow_native_code: bool = False,
    device: str | Path | Device | None = None,
    **reach: Unpack[ReachSettings],
) -> RunResult:
    """Label images with an exported bundle, and time every call.

    Args:
        bundle: the bundle's folder; its files are compared with their checksums first.
        images: image files that Pillow reads, or arrays of uint8 in .npy files; they are prepared
            as in training.
        top: number of labels per image; by default 5, or all classes if there are fewer.
        allow_native_code: run a file that is machine code, as of the format tvm.
        device: the file of the bundle's device, which says how to reach it.
        reach: how to reach the device; takes precedence over its file. What the manifest says
            about it is never used, since a bundle may come from anywhere.

    Raises:
        QuadranasError: the bundle is damaged, an image cannot be read, or the runtime or the
            device is missing or not named.
    """
    opened = open_bundle(Path(bundle))
    manifest = opened.manifest
    paths = _paths(images)
    opened_on = bundle_device(manifest, reach_of(manifest, device, reach))
    if not allow_native_code:
        refuse_native_code(opened)
    num_labels = _num_labels(top, manifest.architecture.num_classes)
    inputs = [_prepared(_read(path, manifest.input), manifest.input) for path in paths]
    with (
        tempfile.TemporaryDirectory() as records,
        opened_for_files(opened_on, Path(records)) as backend,
    ):
        program = backend.load(opened.artefact, tuple(inputs[0].shape))
        provenance = backend.provenance()
        timed = None if provenance.emulated else program
        labels = [_labels(program.run(x)[0], manifest.class_names, num_labels) for x in inputs]
        results = tuple(_labelled(*pair, timed) for pair in zip(paths, labels, strict=True))
    return _result(opened, opened_on, provenance, results)


def _paths(images: Sequence[str | Path]) -> list[Path]:
    if not images:
        raise QuadranasError("no images to label", "Name image files, such as PNG or JPEG.")
    return [Path(image) for image in images]


def _labelled(path: Path, labels: tuple[Label, ...], program: Program | None) -> LabelledImage:
    """The labels of an image, and the latency of a program if it is not emulated."""
    if program is None:
        return LabelledImage(image=path, labels=labels, ms=None)
    times, calls = undisturbed_calls(program, NUM_CALLS)
    timing = timing_of([times])
    return LabelledImage(
        image=path,
        labels=labels,
        ms=timing.median_ms,
        p95_ms=timing.p95_ms,
        dropped=None if calls is None else calls.disturbed / calls.made,
    )


def _result(
    bundle: Bundle, device: Device, provenance: Provenance, results: tuple[LabelledImage, ...]
) -> RunResult:
    manifest = bundle.manifest
    measured = manifest.latency.measured
    return RunResult(
        bundle=bundle.folder,
        name=manifest.name,
        runtime=provenance.runtime,
        hardware=provenance.hardware,
        device=device.name,
        precision=manifest.precision,
        batch_size=manifest.input.batch_size,
        measured_ms=None if measured is None else measured.ms,
        measured_on=None if measured is None else f"{measured.device}, {measured.source}",
        notes=(
            *_notes(manifest, device, emulated=provenance.emulated),
            *_busy_note(results),
        ),
        results=results,
    )


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
    """An image as the network's input, (B, 3, R, R), normalised and repeated to fill a batch."""
    image = image_tensor(pixels, wanted.mean or (0.0,) * 3, wanted.std or (1.0,) * 3)
    return image.repeat(wanted.batch_size, 1, 1, 1)


def _labels(
    logits: Tensor, class_names: Sequence[str] | None, num_labels: int
) -> tuple[Label, ...]:
    if not logits.isfinite().all():
        raise QuadranasError(
            "the network computed numbers that are not finite",
            "Export it in a higher precision and compare the results.",
        )
    probabilities = logits.double().softmax(0)
    # By logits and stable, as in a bundle's script, so that ties have one order.
    indices = logits.argsort(descending=True, stable=True)[:num_labels]
    return tuple(
        Label(
            label=str(index) if class_names is None else class_names[index],
            index=index,
            probability=probability,
        )
        for index, probability in zip(
            indices.tolist(), probabilities[indices].tolist(), strict=True
        )
    )


def _busy_note(results: Sequence[LabelledImage]) -> list[str]:
    busy = sum(result.dropped == 1 for result in results)
    if not busy:
        return []
    return [
        f"the machine was busy: all calls for {busy} of {len(results)} images lost the processor "
        "to other processes, so their latencies are too long"
    ]


def _notes(manifest: Manifest, device: Device, *, emulated: bool) -> list[str]:
    """Limitations of the labels and latencies."""
    notes = []
    if not manifest.trained:
        notes.append("the network was exported untrained, so its labels are random")
    if manifest.accuracy is not None and manifest.accuracy.lost_to_resolution:
        notes.append(manifest.accuracy.lost_to_resolution)
    if manifest.input.mean is None:
        notes.append("the manifest has no normalisation; pixels were used as 0 to 1")
    if device.threads != manifest.device.threads:
        notes.append(f"{device.threads} threads, not {manifest.device.threads} as at export")
    if emulated:
        notes.append(f"device {manifest.device.name} is emulated, so nothing was timed")
    return notes
