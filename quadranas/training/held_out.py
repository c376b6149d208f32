"""The training images that are held out of a run."""

from quadranas.data.dataset import Dataset
from quadranas.reporter import Reporter
from quadranas.runs.config import TrainingConfig
from quadranas.seeds import derived_seed


def hold_out(dataset: Dataset, config: TrainingConfig, reporter: Reporter) -> Dataset:
    """The images of a run, with the configured share held out; prints how many these are.

    Raises:
        QuadranasError: a class has too few images.
    """
    divided = dataset.with_holdout(config.holdout, derived_seed(config.seed, "holdout"))
    if divided.validation is not None:
        reporter.message(
            f"{len(divided.validation)} of {len(dataset.train)} training images are held out"
        )
    return divided
