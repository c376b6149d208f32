"""evaluate: test a trained network."""

from pathlib import Path

from quadranas.runs.config import DataConfig, combined
from quadranas.runs.stored_network import Model, open_network, open_test_images
from quadranas.validation import CommandResult


class EvaluateResult(CommandResult):
    """The result of `quadranas eval`.

    Args:
        model: name of the architecture.
        data: name of the data set.
        num_images: number of test images.
        accuracy: top-1 accuracy on its test images, from 0 to 1.
    """

    model: str
    data: str
    num_images: int
    accuracy: float


def evaluate(
    model: Model,
    *,
    data: str | Path | None = None,
    val: str | Path | None = None,
    weights: str | Path | None = None,
    skip_corrupt: bool | None = None,
) -> EvaluateResult:
    """Measure the top-1 accuracy of a trained network on a test split.

    Args:
        model: a run folder, an architecture file, a name, or an opened network.
        data: folder or zip of images. Default: the data of the run that holds the network.
        val: folder or zip with the test images.
        weights: a safetensors file to use instead of the weights in the run folder.
        skip_corrupt: skip images that cannot be decoded.

    Raises:
        QuadranasError: no weights, or data with other classes than those of the training.
    """
    stored = open_network(model, weights)
    stored.require_weights()
    network = stored.network()
    options = {"data": data, "val": val, "skip_corrupt": skip_corrupt}
    given = {key: value for key, value in options.items() if value is not None}
    images = open_test_images(stored, combined(DataConfig, None, given))
    return EvaluateResult(
        model=stored.architecture.name,
        data=images.dataset.name,
        num_images=len(images.dataset.test),
        accuracy=images.accuracy(network),
    )
