"""What a trained network expects of its images: stored beside its weights."""

from pathlib import Path
from typing import Self

from quadranas.data.dataset import Dataset
from quadranas.files import read_json, write_json
from quadranas.validation import Frozen, validate


class Preprocessing(Frozen):
    """What a trained network expects: stored beside its weights.

    Args:
        mean, std: subtracted and divided by, per channel, for pixels in [0, 1].
        resolution: the images' height and width in training.
    """

    class_names: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resolution: int

    @classmethod
    def of(cls, dataset: Dataset) -> Self:
        """What a network trained on these data will expect."""
        return cls(
            class_names=dataset.class_names,
            mean=dataset.mean,
            std=dataset.std,
            resolution=dataset.resolution,
        )

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        write_json(path, self.model_dump(mode="json"))


def load_preprocessing(path: Path) -> Preprocessing:
    """Read what `save` wrote.

    Raises:
        QuadranasError: unreadable or incomplete.
    """
    return validate(Preprocessing, read_json(path, "preprocessing"), path)
