"""The page about several exported files on one device."""

from collections.abc import Sequence
from html import escape

from matplotlib.axes import Axes

from quadranas.errors import printable
from quadranas.latency.budget import format_ms
from quadranas.reports.page import COLOURS, figure, html_page, note, plot, table
from quadranas.reports.run_cards import percent
from quadranas.validation import Frozen, WrittenPath


class ComparedBundle(Frozen):
    """An exported file among others on one device.

    Args:
        bundle: the bundle's folder; all of its files have the checksums in its manifest.
        name: name of the network.
        format, precision: format of the file, and precision of its weights.
        runtime: name and version of the runtime.
        resolution: height and width of the input, in pixels.
        params, macs: number of parameters and multiply-accumulates of the network.
        size_bytes: size of the model file and the files that it refers to.
        sha256: SHA-256 of the model file.
        latency_ms: latency of a call, measured together with the other files; if `None`,
            `not_measured` gives the reason.
        p50_ms, p95_ms: median and 95th percentile of the calls.
        spread: interquartile range of the calls, relative to their median.
        dropped: share of calls that lost the processor and were dropped; `None` if unknown.
        not_measured: the reason why the latency is missing; empty if it is not.
        export_ms: latency on this device at export; `None` if it was not measured.
        accuracy: top-1 accuracy of the file, from 0 to 1; if `None`, `not_tested` gives the
            reason.
        images: description of the images; empty without them.
        num_images: number of these images; `None` without them.
        not_tested: the reason why the accuracy is missing; empty if it is not.
        export_accuracy: top-1 accuracy of the file at export, from 0 to 1; `None` if unknown.
        agreement: share of images for which the file and PyTorch predicted the same class at
            export, from 0 to 1.
        relative_error: the largest error of a logit at export, relative to the largest logit.
        num_compared: number of images of that comparison.
        on_front: whether no other file is at least as fast and as accurate, and better in one;
            `None` if a latency or an accuracy is missing.
    """

    bundle: WrittenPath
    name: str
    format: str
    precision: str
    runtime: str
    resolution: int
    params: int
    macs: int
    size_bytes: int
    sha256: str
    latency_ms: float | None
    p50_ms: float | None
    p95_ms: float | None
    spread: float | None
    dropped: float | None
    not_measured: str
    export_ms: float | None
    accuracy: float | None
    images: str
    num_images: int | None
    not_tested: str
    export_accuracy: float | None
    agreement: float
    relative_error: float
    num_compared: int
    on_front: bool | None = None


def bundle_page(title: str, bundles: Sequence[ComparedBundle], notes: Sequence[str]) -> str:
    """The HTML of the page.

    Args:
        notes: how the numbers were measured, and their limits.
    """
    sections = {"Files": _files(bundles)}
    if sum(b.latency_ms is not None and b.accuracy is not None for b in bundles) > 1:
        sections["Accuracy against latency"] = _scatter(bundles)
    sections["Proof"] = _proof(bundles)
    sections["Notes"] = "".join(note(escape(text)) for text in notes)
    return html_page(title, sections)


def _files(bundles: Sequence[ComparedBundle]) -> str:
    head = ["file", "format", "latency", "p95", "accuracy", "size", "parameters", "input"]
    rows = [
        [
            f"{_key(number)}{escape(str(one.bundle))}",
            escape(f"{one.format}, {one.precision}"),
            _bold(one, latency_text(one)),
            "" if one.p95_ms is None else format_ms(one.p95_ms),
            _bold(one, accuracy_text(one)),
            size_text(one),
            f"{one.params:,}",
            f"{one.resolution} px",
        ]
        for number, one in enumerate(bundles)
    ]
    listed = table(head, rows, range(2, 8))
    if not any(one.on_front for one in bundles):
        return listed
    return listed + note("Bold: no other file is at least as fast and as accurate.")


def latency_text(one: ComparedBundle) -> str:
    """The latency, or that there is none."""
    return "not measured" if one.latency_ms is None else format_ms(one.latency_ms)


def accuracy_text(one: ComparedBundle) -> str:
    """The accuracy here, or that there is none."""
    return "not tested" if one.accuracy is None else percent(one.accuracy, 2)


def size_text(one: ComparedBundle) -> str:
    """The size of the model file."""
    if one.size_bytes < 2**20:
        return f"{one.size_bytes / 2**10:.1f} KiB"
    return f"{one.size_bytes / 2**20:.2f} MiB"


def _bold(one: ComparedBundle, text: str) -> str:
    return f"<b>{text}</b>" if one.on_front else text


def _key(number: int) -> str:
    return f'<i class="key" style="background:{COLOURS[number % len(COLOURS)]}"></i>'


def _scatter(bundles: Sequence[ComparedBundle]) -> str:
    shown = {
        number: (one.latency_ms, 100 * one.accuracy)
        for number, one in enumerate(bundles)
        if one.latency_ms is not None and one.accuracy is not None
    }

    def draw(axes: Axes) -> None:
        for number, (ms, accuracy) in shown.items():
            one, colour = bundles[number], COLOURS[number % len(COLOURS)]
            marker = "o" if one.on_front else "x"
            label = printable(str(one.bundle))
            axes.plot([ms], [accuracy], color=colour, marker=marker, ms=8, ls="none", label=label)
        axes.set_xlim(left=0)
        axes.set(xlabel="latency [ms]", ylabel="accuracy [%]")
        axes.grid(color="#e4e7eb", lw=0.6)
        axes.set_ylim(top=min(axes.get_ylim()[1], 101))
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))

    return figure(
        plot("bundles", "Accuracy against latency", draw, (9.6, 3.6)),
        "Discs: no other file is at least as fast and as accurate. Crosses: the others.",
    )


def _proof(bundles: Sequence[ComparedBundle]) -> str:
    head = [
        *("file", "SHA-256 of the file", "runtime", "same class as PyTorch", "largest error"),
        *("accuracy at export", "here", "latency at export", "here"),
    ]
    rows = [
        [
            f"{_key(number)}{escape(str(one.bundle))}",
            f"<code>{one.sha256[:12]}</code>",
            escape(one.runtime),
            f"{percent(one.agreement, 2)} of {one.num_compared}",
            f"{one.relative_error:.2g}",
            "unknown" if one.export_accuracy is None else percent(one.export_accuracy, 2),
            accuracy_text(one),
            "unknown" if one.export_ms is None else format_ms(one.export_ms),
            latency_text(one),
        ]
        for number, one in enumerate(bundles)
    ]
    return table(head, rows, range(3, 9)) + note(
        "All files of a bundle have the checksums in its manifest: they are those that were "
        "compared with PyTorch at export. Largest error of a logit: relative to the largest one."
    )
