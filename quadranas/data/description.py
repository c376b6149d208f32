"""What is said about the images before they are used."""

from quadranas.data.dataset import Dataset
from quadranas.reporter import Reporter


def report_data(dataset: Dataset, reporter: Reporter) -> None:
    """Print the numbers of images, and what may be wrong with them."""
    skipped = f", {dataset.num_skipped} corrupt images skipped" if dataset.num_skipped else ""
    reporter.message(
        f"data {dataset.name}: {len(dataset.train)} training and {len(dataset.test)} test images, "
        f"{dataset.num_classes} classes, at {dataset.resolution} pixels{skipped}"
    )
    for warning in dataset.warnings:
        reporter.warning(warning)
