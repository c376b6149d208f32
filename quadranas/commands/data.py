"""data: what a data set was understood to be, before anything is trained on it."""

from pathlib import Path

from quadranas.data.dataset import listing_warnings, split_files
from quadranas.data.examination import Verify
from quadranas.data.image_files import ImageFiles
from quadranas.data.listing import list_images
from quadranas.data.summary import (
    DataClass,
    DataSplit,
    Examined,
    count_classes,
    examine_split,
    look_warnings,
    thumbnails,
)
from quadranas.errors import unknown
from quadranas.files import file_name
from quadranas.reporter import Reporter
from quadranas.reports.data_page import data_page
from quadranas.reports.page import write_page
from quadranas.validation import CommandResult, WrittenPath, check_seed

SHEET_CLASSES, SHEET_IMAGES = 40, 8
"""Number of classes, and of images of each, on a contact sheet."""


class DataResult(CommandResult):
    """What a data set was understood to be.

    Args:
        data: the folder or file.
        val: a second one with the test images; null if there is none.
        kind: what the images are stored in, such as a folder, a zip file or tar shards.
        is_held_out: whether the test split is held out of the only split of the data.
        splits: the training and the test split.
        classes: the classes in the order of their labels.
        warnings: what may be wrong with the data, in words.
        page: the HTML page that was written, with a contact sheet.
    """

    data: WrittenPath
    val: WrittenPath | None
    kind: str
    is_held_out: bool
    splits: tuple[DataSplit, ...]
    classes: tuple[DataClass, ...]
    warnings: tuple[str, ...]
    page: WrittenPath

    @property
    def num_corrupt(self) -> int:
        """Number of images that cannot be decoded."""
        return sum(len(split.corrupt) for split in self.splits)


def describe_data(
    data: str | Path,
    *,
    val: str | Path | None = None,
    seed: int = 0,
    verify: Verify = "ends",
    output: str | Path | None = None,
    reporter: Reporter | None = None,
) -> DataResult:
    """Show what a data set was understood to be; write a page with a contact sheet.

    Every image is opened once. Corrupt images are part of the result, not an error.

    Args:
        data: a folder, a zip file, tar shards or Parquet files, as for `search`.
        val: a second one with the test images.
        seed: seed of the 80/20 split of data without a test split.
        verify: decode the images whose header and end leave doubt (`ends`), or all (`full`).
        output: the page to write; an existing file is replaced. Default: `data-NAME.html`.
        reporter: receives the progress. Default: nothing is shown.

    Raises:
        QuadranasError: splits or classes cannot be told, or a file cannot be read.
    """
    check_seed(seed)
    if verify not in ("ends", "full"):
        raise unknown("verification", verify, ("ends", "full"))
    reporter = reporter or Reporter(quiet=True)
    listing = list_images(data, val)
    files = dict(zip(("train", "test"), split_files(listing, seed), strict=True))
    examined = {name: _examined(name, part, verify, reporter) for name, part in files.items()}
    name = listing.data.resolve().stem
    page = Path(output) if output is not None else Path(f"data-{file_name(name)}.html")
    result = DataResult(
        data=listing.data,
        val=listing.val,
        kind=files["train"].source.kind,
        is_held_out=listing.test is None,
        splits=tuple(found.split(n, files[n]) for n, found in examined.items()),
        classes=count_classes(files["train"], files["test"]),
        warnings=(*listing_warnings(listing), *look_warnings(list(examined.values()))),
        page=page,
    )
    _write_page(name, result, files["train"])
    return result


def _write_page(name: str, result: DataResult, train: ImageFiles) -> None:
    sheet = {
        train.class_names[label]: thumbnails(train, label, SHEET_IMAGES)
        for label in range(min(len(result.classes), SHEET_CLASSES))
    }
    facts = {
        "data": str(result.data),
        "test images": _test_text(result),
        "kind": result.kind,
        "classes": str(len(result.classes)),
    }
    content = data_page(name, facts, result.splits, result.classes, result.warnings, sheet)
    write_page(result.page, content)


def _examined(name: str, files: ImageFiles, verify: Verify, reporter: Reporter) -> Examined:
    phase = reporter.phase(f"examining {name}", len(files), 0)
    return examine_split(files, verify=verify, advance=lambda done: reporter.advance(phase, done))


def _test_text(result: DataResult) -> str:
    if result.val is not None:
        return str(result.val)
    return "held out of the training images" if result.is_held_out else "a split of the data"
