"""compare: several exported bundles on one device: accuracy, latency and size, with the proof."""

from collections.abc import Sequence
from pathlib import Path
from typing import Unpack

from quadranas.deployment.bundle import open_bundle
from quadranas.deployment.comparison import (
    OpenedFile,
    check_one_device,
    labelled_images,
    opened_files,
    time_files,
)
from quadranas.deployment.images import ExportImages
from quadranas.deployment.manifest import Manifest
from quadranas.deployment.opening import bundle_device, reach_of, refuse_native_code
from quadranas.errors import QuadranasError
from quadranas.files import refuse_special
from quadranas.latency.device import Device, ReachSettings
from quadranas.measurement import bench
from quadranas.measurement.plan import Plan
from quadranas.measurement.summary import STATISTIC, Timing, Timings, busy_text
from quadranas.reporter import Reporter
from quadranas.reports.bundle_page import ComparedBundle, bundle_page
from quadranas.reports.page import write_page
from quadranas.runs.config import DataConfig
from quadranas.validation import CommandResult, WrittenPath

PAGE = "comparison.html"
NUM_IMAGES = 1000


class CompareResult(CommandResult):
    """The result of `quadranas compare`.

    Args:
        device, title: name of the device, and description of its hardware.
        hardware: name that the hardware reports.
        threads: number of threads on the device.
        batch_size: number of images per call.
        statistic: the statistic of the timings that gives a latency.
        rounds: number of rounds; `None` if nothing was timed.
        bundles: the files, in the order of the arguments.
        notes: the images, and the limits of the comparison.
        page: the HTML page that was written.
    """

    device: str
    title: str
    hardware: str
    threads: int | None
    batch_size: int
    statistic: str
    rounds: int | None
    bundles: tuple[ComparedBundle, ...]
    notes: tuple[str, ...]
    page: WrittenPath


def compare(
    bundles: Sequence[str | Path],
    *,
    data: str | Path | None = None,
    val: str | Path | None = None,
    skip_corrupt: bool = False,
    images: int = NUM_IMAGES,
    rounds: int | None = None,
    allow_native_code: bool = False,
    device: str | Path | Device | None = None,
    output: str | Path = PAGE,
    reporter: Reporter | None = None,
    **reach: Unpack[ReachSettings],
) -> CompareResult:
    """Run several exported bundles on one device; write a page.

    Args:
        bundles: at least two folders; their files are compared with their checksums first.
        data, val, skip_corrupt: labelled images; by default the embedded digits, for networks
            with their classes. Every network gets them as in its training.
        images: number of test images.
        rounds: number of rounds. Default: as for the networks that a search finds.
        allow_native_code: run files that are machine code, as of the format tvm.
        device: the file of the bundles' device, which says how to reach it.
        output: the page to write; an existing file is replaced.
        reach: how to reach the device; takes precedence over its file.

    Raises:
        QuadranasError: a bundle is damaged or for another device, number of threads or images per
            call, or the images are of other classes.
    """
    if len(bundles) < 2:
        raise QuadranasError("only one bundle to compare", "Name two or more bundles.")
    refuse_special(Path(output))
    opened = [open_bundle(Path(bundle)) for bundle in bundles]
    devices = [
        bundle_device(one.manifest, reach_of(one.manifest, device, reach)) for one in opened
    ]
    check_one_device(opened, devices)
    if not allow_native_code:
        for one in opened:
            refuse_native_code(one)
    places = {"data": data and str(data), "val": val and str(val)}
    config = DataConfig(**places, skip_corrupt=skip_corrupt)
    tested = [labelled_images(one.manifest, config, images) for one in opened]
    plan = bench.default_plan(rounds)
    with opened_files(opened, devices) as files:
        result = _tried(files, tested, plan, reporter or Reporter(quiet=True), Path(output))
    _write_page(result)
    return result


def _tried(
    files: Sequence[OpenedFile],
    tested: Sequence[ExportImages | str],
    plan: Plan,
    reporter: Reporter,
    page: Path,
) -> CompareResult:
    """Test every file on its images, and time all of them together."""
    accuracies = [
        file.accuracy(found) if isinstance(found, ExportImages) else None
        for file, found in zip(files, tested, strict=True)
    ]
    timings = time_files(files, reporter, plan)
    compared = [
        _compared(file, accuracy, found, _timing(timings, number))
        for number, (file, accuracy, found) in enumerate(
            zip(files, accuracies, tested, strict=True)
        )
    ]
    return _result(files, compared, timings, page)


def _result(
    files: Sequence[OpenedFile],
    compared: Sequence[ComparedBundle],
    timings: Timings | str,
    page: Path,
) -> CompareResult:
    device = files[0].device
    manifests = [file.bundle.manifest for file in files]
    return CompareResult(
        device=device.name,
        title=device.title,
        hardware=files[0].provenance.hardware,
        threads=device.threads,
        batch_size=manifests[0].input.batch_size,
        statistic=STATISTIC,
        rounds=timings.num_rounds if isinstance(timings, Timings) else None,
        bundles=_with_front(compared),
        notes=(*_notes(compared, manifests), *_noise(timings)),
        page=page,
    )


def _timing(timings: Timings | str, number: int) -> Timing | str:
    """The timing of a file, or why there is none."""
    if isinstance(timings, str):
        return timings
    timing = timings.programs[str(number)]
    return busy_text(timing) if timing.is_busy else timing


def _compared(
    file: OpenedFile, accuracy: float | None, images: ExportImages | str, timing: Timing | str
) -> ComparedBundle:
    manifest = file.bundle.manifest
    measured = manifest.latency.measured
    is_same = measured is not None and measured.device == file.device.name
    known = None if isinstance(timing, str) else timing
    on = None if isinstance(images, str) else images
    return ComparedBundle(
        bundle=file.bundle.folder,
        name=manifest.name,
        format=manifest.format,
        precision=manifest.precision,
        runtime=file.provenance.runtime,
        resolution=manifest.input.resolution,
        params=manifest.params,
        macs=manifest.macs,
        size_bytes=manifest.size_bytes,
        sha256=manifest.files[manifest.artefact],
        latency_ms=known.latency_ms if known else None,
        p50_ms=known.median_ms if known else None,
        p95_ms=known.p95_ms if known else None,
        spread=known.spread if known else None,
        dropped=known.dropped if known else None,
        not_measured=timing if isinstance(timing, str) else "",
        export_ms=measured.ms if measured is not None and is_same else None,
        accuracy=accuracy,
        images=on.name if on else "",
        num_images=on.num_images if on else None,
        not_tested=images if isinstance(images, str) else "",
        export_accuracy=manifest.accuracy.exported if manifest.accuracy else None,
        agreement=manifest.agreement.top1_agreement,
        relative_error=manifest.agreement.relative_error,
        num_compared=manifest.agreement.num_images,
    )


def _with_front(bundles: Sequence[ComparedBundle]) -> tuple[ComparedBundle, ...]:
    """The bundles, and which of them no other one beats."""
    places = [(one.latency_ms, one.accuracy) for one in bundles]
    known = [(ms, acc) for ms, acc in places if ms is not None and acc is not None]
    if len(known) < len(places):
        return tuple(bundles)
    beaten = [
        any(ms <= own[0] and acc >= own[1] and (ms, acc) != own for ms, acc in known)
        for own in known
    ]
    return tuple(
        one.model_copy(update={"on_front": not is_beaten})
        for one, is_beaten in zip(bundles, beaten, strict=True)
    )


def _notes(bundles: Sequence[ComparedBundle], manifests: Sequence[Manifest]) -> tuple[str, ...]:
    """The images, the reasons for missing numbers, and what a reader could overlook."""
    notes = dict.fromkeys(
        f"accuracy: {one.num_images} images ({one.images})" for one in bundles if one.images
    )
    for one, manifest in zip(bundles, manifests, strict=True):
        if one.not_measured:
            notes[f"{one.bundle} is not measured: {one.not_measured}"] = None
        if one.not_tested:
            notes[f"{one.bundle} is not tested: {one.not_tested}"] = None
        if not manifest.trained:
            notes[f"{one.bundle} was exported untrained, so its labels are random"] = None
    return tuple(notes)


def _noise(timings: Timings | str) -> tuple[str, ...]:
    """How far latencies can be told apart; empty without any."""
    if isinstance(timings, str) or len(timings.busy) == len(timings.programs):
        return ()
    return (
        f"latencies by odd and by even rounds differ by up to {timings.noise_p95:.1%}; smaller "
        "differences between files mean nothing",
    )


def _write_page(result: CompareResult) -> None:
    """Write the page of a result."""
    how = f"Device {result.device}: {result.title} ({result.hardware}), "
    if result.threads:
        how += f"{result.threads} thread{'s' if result.threads > 1 else ''}, "
    how += f"{result.batch_size} image{'s' if result.batch_size > 1 else ''} per call."
    if result.rounds is not None:
        how += f" Latency: {result.statistic}, {result.rounds} shuffled rounds of all files."
    notes = [f"{text[0].upper()}{text[1:]}." for text in result.notes]
    title = f"{len(result.bundles)} exported networks on {result.device}"
    content = bundle_page(title, result.bundles, [how, *notes])
    write_page(result.page, content)
