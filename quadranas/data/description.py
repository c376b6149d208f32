"""What is said about the images before they are used."""

from quadranas.data.dataset import Dataset
from quadranas.reporter import Reporter


def describe_skipped(num_skipped: int | None) -> str:
    """A suffix with the number of skipped images; empty if none were to be skipped."""
    if num_skipped is None:
        return ""
    return f", {num_skipped} corrupt image{'' if num_skipped == 1 else 's'} skipped"


def report_data(dataset: Dataset, reporter: Reporter, *, skips_corrupt: bool = False) -> None:
    """Print the numbers of images, and what may be wrong with them.

    Args:
        skips_corrupt: whether corrupt images are skipped, so that their number is of interest.
    """
    skipped = describe_skipped(dataset.num_skipped if skips_corrupt else None)
    reporter.message(
        f"data {dataset.name}: {len(dataset.train)} training and {len(dataset.test)} test images, "
        f"{dataset.num_classes} classes, at {dataset.resolution} pixels{skipped}"
    )
    for warning in dataset.warnings:
        reporter.warning(warning)
