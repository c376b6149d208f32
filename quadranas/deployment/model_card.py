"""The model card of a bundle: contents of the file, how it was checked, and its limits."""

import re
from collections.abc import Iterable

from quadranas.deployment.manifest import Accuracy, LatencyNote, Manifest, Quantization
from quadranas.errors import printable, printable_lines
from quadranas.latency.budget import format_ms
from quadranas.latency.runtimes import files_of
from quadranas.latency.table import dropped_text

MAX_CLASSES = 20
MAX_RANGES = 10
MARKUP = re.compile(r"[\\`*_\[\]<>#&~|$]|:(?=[\w+-]+:)|://")
"""What Markdown, as on GitHub, takes for markup: also emoji such as `:smile:`, and addresses."""


def model_card(manifest: Manifest, usage: str = "") -> str:
    """The card in Markdown; all numbers are from the manifest.

    Args:
        usage: how to run it, in Markdown; by default for somebody who has the bundle alone.
    """
    sections = {
        "": _what(manifest),
        "How to run it": usage or _usage(manifest),
        "Input and output": _input(manifest),
        "Latency": _latency(manifest),
        "Accuracy and agreement": _quality(manifest),
        "Quantisation": _quantization(manifest.quantization),
        "How it was made": _making(manifest),
        "Limits": _list(_limits(manifest)),
    }
    text = [f"# Model card: {_plain(manifest.name)}"]
    for title, content in sections.items():
        if content:
            text += [f"## {title}", content] if title else [content]
    return printable_lines("\n\n".join(text)) + "\n"


def _what(manifest: Manifest) -> str:
    architecture = manifest.architecture
    source = f"space {_plain(architecture.space)}" if architecture.space else "a reference model"
    size = manifest.input.resolution
    return (
        f"An image classifier of {architecture.num_classes} classes: architecture "
        f"{_plain(architecture.name)} ({source}), {_count(manifest.params)} parameters, "
        f"{_count(manifest.macs)} multiply-accumulates for an image of {size} x {size} pixels.\n\n"
        + _table(
            ("", ""),
            [
                ("file", f"{_code(manifest.artefact)}, {_size(manifest.size_bytes)}"),
                ("format", _format(manifest)),
                ("made for", _plain(f"{manifest.made_for.name}: {manifest.made_for.title}")),
                ("checked in", _plain(f"{manifest.runtime}, on {manifest.hardware}")),
                ("exported", _plain(f"{manifest.created}, quadranas {manifest.quadranas}")),
            ],
        )
    )


def _format(manifest: Manifest) -> str:
    opset = f", opset {manifest.opset}" if manifest.opset is not None else ""
    return f"{manifest.format}, {manifest.precision}{opset}"


def _usage(manifest: Manifest) -> str:
    files = files_of(manifest.format)
    native = " --allow-native-code" if files.native else ""
    return (
        f"    python infer.py image.png      # needs {files.package}, numpy and Pillow\n"
        f"    quadranas run . image.png{native}      # compares the checksums first"
    )


def _input(manifest: Manifest) -> str:
    wanted = manifest.input
    batch, _, height, width = wanted.shape
    size = "any number" if batch is None else str(batch)
    if wanted.mean is None or wanted.std is None:
        normalisation = "unknown: the images that it was trained on are not recorded"
    else:
        mean, std = (", ".join(f"{x:.4g}" for x in xs) for xs in (wanted.mean, wanted.std))
        normalisation = f"pixels in [0, 1], minus ({mean}), divided by ({std}), per channel"
    return _table(
        ("", ""),
        [
            ("name", _code(wanted.name)),
            ("shape", f"{_plain(wanted.layout)}: batch of {size}, 3 channels, {height} x {width}"),
            ("values", _plain(f"{wanted.element_type}, {wanted.channel_order}")),
            ("resizing", _plain(wanted.resizing)),
            ("normalisation", normalisation),
            ("output", f"logits, (batch, {manifest.architecture.num_classes})"),
            ("classes", _classes(manifest.class_names)),
        ],
    )


def _classes(names: tuple[str, ...] | None) -> str:
    if names is None:
        return "names are unknown; classes are numbered"
    shown = ", ".join(map(_plain, names[:MAX_CLASSES]))
    more = len(names) - MAX_CLASSES
    return shown + (f" and {more} more, in manifest.json" if more > 0 else "")


def _latency(manifest: Manifest) -> str:
    latency = manifest.latency
    batch = manifest.input.batch_size
    rows = [
        _latency_row("predicted", latency.predicted, latency.not_predicted),
        _latency_row("measured", latency.measured, latency.not_measured),
    ]
    if latency.fp32 is not None:
        rows.append(_latency_row("the same network in fp32", latency.fp32, ""))
    if latency.budget_ms is not None:
        kept = f"missed: {_plain(latency.missed)}" if latency.missed else "kept"
        rows.append(("budget", format_ms(latency.budget_ms), _plain(manifest.made_for.name), kept))
    text = f"Of one call, {batch} image{'s' if batch > 1 else ''}.\n\n"
    text += _table(("", "latency", "device", "source"), rows)
    if latency.deviation is not None:
        text += f"\n\nMeasured against predicted: {latency.deviation:+.1%}."
    if latency.fp32 is not None and latency.measured is not None:
        text += f"\n\nThe file takes {latency.measured.ms / latency.fp32.ms:.2f} of fp32's time."
    return text


def _latency_row(title: str, note: LatencyNote | None, why_not: str) -> tuple[str, ...]:
    if note is None:
        return title, f"not {title}", "", _plain(why_not or "no reason recorded")
    spread = f"; calls spread by {note.spread:.0%}" if note.spread is not None else ""
    if note.p50_ms is not None and note.p95_ms is not None:
        spread += f"; p50 {format_ms(note.p50_ms)}, p95 {format_ms(note.p95_ms)}"
        spread += f"; {dropped_text(note.dropped)}"
    return title, format_ms(note.ms), _plain(note.device), _plain(note.source) + spread


def _quality(manifest: Manifest) -> str:
    found = manifest.agreement
    allowed = "judged by its accuracy"
    if found.tolerance is not None:
        allowed = f"accepted up to {found.tolerance:.1g}"
    text = (
        f"Against PyTorch on {found.num_images} images ({_plain(found.images)}): top-1 agreement "
        f"{found.top1_agreement:.2%}; largest error of a logit "
        f"{found.max_abs_error:.2g}, {found.relative_error:.2g} of the largest logit ({allowed})."
    )
    return f"{text}\n\n{_accuracy(manifest.accuracy)}"


def _accuracy(accuracy: Accuracy | None) -> str:
    if accuracy is None:
        return "Accuracy: not measured; no images with labels of its classes were given."
    change = 100 * (accuracy.exported - accuracy.pytorch)
    return (
        f"Top-1 accuracy on {accuracy.num_images} images ({_plain(accuracy.images)}): "
        f"{accuracy.pytorch:.2%} in PyTorch, {accuracy.exported:.2%} of this file "
        f"({change:+.2f} points)."
    )


def _quantization(found: Quantization | None) -> str:
    if found is None:
        return ""
    num_kept = len(found.kept)
    text = (
        f"{found.num_layers - num_kept} of {found.num_layers} layers compute in 8 bits, with "
        f"ranges from {found.num_calibration_images} calibration images. Accuracy "
        f"{'fell' if found.drop >= 0 else 'rose'} by {abs(found.drop):.2f} points; a fall of "
        f"{found.max_drop:.2f} was allowed."
    )
    if found.kept:
        text += "\n\nKept in higher precision:\n\n" + _list(map(_code, found.kept))
    if not found.ranges:
        return text
    widest = sorted(
        found.ranges,
        key=lambda r: max(abs(r.minimum), abs(r.maximum)) / max(r.typical, 1e-12),
        reverse=True,
    )
    rows = [
        (
            _code(r.layer),
            _plain(r.part),
            f"{r.minimum:.3g} to {r.maximum:.3g}",
            f"{r.typical:.3g}",
            f"{r.signal_to_noise_db:.1f}",
        )
        for r in widest[:MAX_RANGES]
    ]
    head = ("layer", "part", "range", "99 % of magnitudes below", "signal to noise, dB")
    title = "Widest ranges of quadratic layers, relative to their typical values"
    more = len(found.ranges) - len(rows)
    title += f" ({more} more in manifest.json):" if more else ":"
    return f"{text}\n\n{title}\n\n{_table(head, rows)}"


def _making(manifest: Manifest) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in manifest.versions.items())
    origin = ", ".join(
        f"{key.replace('_', ' ')} {f'{value:.4g}' if isinstance(value, float) else value}"
        for key, value in manifest.architecture.provenance.items()
        if value
    )
    operators = ", ".join(f"{count} {name}" for name, count in manifest.operators.items())
    facts = {
        "Origin and latency predicted when it was derived": origin,
        "Lowering passes": ", ".join(manifest.lowering) or "none",
        "Operators": operators,
        "Versions": versions,
        "Commit": manifest.commit,
    }
    return _list(f"{name}: {_plain(text)}" for name, text in facts.items() if text)


def _limits(manifest: Manifest) -> list[str]:
    limits = []
    if not manifest.trained:
        limits.append(
            "**The weights are not trained.** Latency and size are those of a trained network; "
            "its labels are random."
        )
    if manifest.accuracy is None:
        limits.append("Its accuracy was not measured.")
    else:
        limits.append(
            f"Its accuracy was measured on {_plain(manifest.accuracy.images)} only; on other "
            "kinds of images it is unknown."
        )
        size = manifest.accuracy.trained_resolution
        if size != manifest.input.resolution:
            limits.append(
                f"It was trained on images of {size} pixels and takes "
                f"{manifest.input.resolution}: every image is resized, and objects appear at "
                "another scale than in training."
            )
        if manifest.accuracy.lost_to_resolution:
            lost = _plain(manifest.accuracy.lost_to_resolution)
            limits.append(f"**That costs accuracy**: {lost}.")
    if manifest.latency.measured is not None:
        limits.append("Latencies hold for the device, runtime and number of threads named above.")
    limits.append("It assigns one of its classes to every image, even if none applies.")
    return limits


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = tuple(head)
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(_cell(cell) for cell in line)} |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split())


def _list(items: Iterable[str]) -> str:
    return "\n".join(f"- {' '.join(item.split())}" for item in items)


def _plain(text: str) -> str:
    """A name in one line of printable characters, with Markdown's markup escaped."""
    return MARKUP.sub(r"\\\g<0>", " ".join(printable(" ".join(text.split())).split()))


def _code(name: str) -> str:
    """A name in the type of code, in which only backquotes and bars are markup."""
    return f"`{printable(name).replace('`', chr(39)).replace('|', '¦')}`"


def _count(number: int) -> str:
    for limit, factor, unit in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e3, 1e3, "k")):
        if number >= limit:
            return f"{number / factor:.3g} {unit}"
    return str(number)


def _size(num_bytes: int) -> str:
    if num_bytes < 2**20:
        return f"{num_bytes / 2**10:.1f} KiB"
    return f"{num_bytes / 2**20:.2f} MiB"
