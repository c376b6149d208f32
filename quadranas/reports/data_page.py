"""The page about a data set: splits, classes, damaged files, and a contact sheet."""

from base64 import b64encode
from collections.abc import Mapping, Sequence
from html import escape

from quadranas.data.summary import THUMBNAIL, DataClass, DataSplit
from quadranas.reports.page import html_page, note, table

MAX_LISTED = 200
"""Maximum number of classes and of damaged files that are listed."""

Sheet = Mapping[str, Sequence[tuple[str, bytes | None]]]
"""Paths and small JPEG files by class; None for an image that cannot be decoded."""


def data_page(
    title: str,
    facts: Mapping[str, str],
    splits: Sequence[DataSplit],
    classes: Sequence[DataClass],
    warnings: Sequence[str],
    sheet: Sheet,
) -> str:
    """The HTML of the page.

    Args:
        facts: what is known of the data set as a whole, by heading.
        sheet: the images to show, by class.
    """
    listed = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in facts.items())
    sections = {"Data": f"<dl>{listed}</dl>", "Splits": _splits(splits)}
    if warnings:
        items = "".join(f"<li>{escape(warning)}</li>" for warning in warnings)
        sections["Warnings"] = f"<ul>{items}</ul>"
    if any(split.corrupt for split in splits):
        sections["Corrupt images"] = _corrupt(splits)
    sections["Classes"] = _classes(classes)
    sections["Contact sheet"] = _sheet(sheet, len(classes))
    return html_page(title, sections)


def _splits(splits: Sequence[DataSplit]) -> str:
    head = ["split", "images", "corrupt", "size", "shorter side", "formats"]
    rows = [
        [
            escape(split.name),
            f"{split.num_images:,}",
            f"{len(split.corrupt):,}",
            f"{split.num_bytes / 1e6:,.1f} MB",
            side_text(split),
            escape(format_text(split)),
        ]
        for split in splits
    ]
    return table(head, rows, range(1, 4))


def side_text(split: DataSplit) -> str:
    """The range of the image sizes, in words."""
    if split.smallest_side is None:
        return "unknown"
    if split.smallest_side == split.largest_side:
        return f"{split.smallest_side} pixels"
    return f"{split.smallest_side} to {split.largest_side} pixels, median {split.median_side}"


def format_text(split: DataSplit) -> str:
    """The formats with their numbers of images, in words."""
    return ", ".join(f"{number} {kind}" for kind, number in split.formats.items()) or "none"


def _corrupt(splits: Sequence[DataSplit]) -> str:
    found = [(split.name, *fault) for split in splits for fault in split.corrupt.items()]
    rows = [
        [escape(split), f"<code>{escape(name)}</code>", escape(reason)]
        for split, name, reason in found[:MAX_LISTED]
    ]
    more = len(found) - len(rows)
    listed = table(["split", "image", "fault"], rows, range(0))
    return listed + (note(f"And {more} more.") if more else "")


def _classes(classes: Sequence[DataClass]) -> str:
    largest = max(c.num_train for c in classes) or 1
    rows = [
        [
            escape(c.name),
            f"{c.num_train:,}",
            f"{c.num_test:,}",
            f'<div class="stack bar"><i style="width:{c.num_train / largest:.1%}"></i></div>',
        ]
        for c in classes[:MAX_LISTED]
    ]
    more = len(classes) - len(rows)
    listed = table(["class", "training images", "test images", ""], rows, range(1, 3))
    return listed + (note(f"And {more} more classes.") if more else "")


def _sheet(sheet: Sheet, num_classes: int) -> str:
    rows = "".join(
        f'<h3>{escape(name)}</h3><div class="sheet">'
        + "".join(_picture(*picture) for picture in pictures)
        + "</div>"
        for name, pictures in sheet.items()
    )
    shown = "Training images as the training sees them: upright, cropped at the centre."
    if len(sheet) < num_classes:
        shown += f" The first {len(sheet)} of {num_classes} classes."
    return note(shown) + rows


def _picture(name: str, content: bytes | None) -> str:
    if content is None:
        return f'<span class="torn" title="{escape(name)}">corrupt</span>'
    data = b64encode(content).decode()
    return (
        f'<img src="data:image/jpeg;base64,{data}" width="{THUMBNAIL}" height="{THUMBNAIL}" '
        f'alt="{escape(name)}" title="{escape(name)}" loading="lazy">'
    )
