"""evaluate: test a trained network."""

from pathlib import Path

from quadranas.acceleration.accelerator import Precision
from quadranas.acceleration.engine import engine_for
from quadranas.acceleration.processes import together
from quadranas.runs.config import DataConfig, combined
from quadranas.runs.stored_network import Model, open_network, open_test_images
from quadranas.validation import CommandResult


class EvaluateResult(CommandResult):
    """The result of `quadranas eval`.

    Args:
        model: name of the architecture.
        data: name of the data set.
        num_images: number of test images.
        resolution: size of the test images, in pixels.
        accuracy: top-1 accuracy on them, from 0 to 1.
        trained_resolution: image size of the training, in pixels; None if unknown.
        num_skipped: the number of corrupt images that were skipped; None without `skip_corrupt`.
    """

    model: str
    data: str
    num_images: int
    resolution: int
    accuracy: float
    trained_resolution: int | None
    num_skipped: int | None = None


def evaluate(
    model: Model,
    *,
    data: str | Path | None = None,
    val: str | Path | None = None,
    weights: str | Path | None = None,
    skip_corrupt: bool | None = None,
    resolution: int | None = None,
    accelerator: str = "auto",
    precision: Precision = "fp32",
) -> EvaluateResult:
    """Measure the top-1 accuracy of a trained network on a test split.

    Args:
        model: a run folder, an architecture file, a name, or an opened network.
        data: folder or zip of images. Default: the data of the run that holds the network.
        val: folder or zip with the test images.
        weights: a safetensors file to use instead of the weights in the run folder.
        skip_corrupt: skip images that cannot be decoded.
        resolution: image size in pixels. Default: the deployment resolution of the network.
        accelerator, precision: the hardware to compute on, as in `TrainingConfig`.

    Raises:
        QuadranasError: no weights, an unsuitable resolution, or data with other classes than those
            of the training.
    """
    stored = open_network(model, weights)
    stored.require_weights()
    network = stored.network()
    options = {"data": data, "val": val, "skip_corrupt": skip_corrupt}
    given = {key: value for key, value in options.items() if value is not None}
    with together() as processes:
        engine = engine_for(accelerator, precision, processes)
        images = open_test_images(stored, combined(DataConfig, None, given), resolution)
        accuracy = images.accuracy(network, engine)
    return EvaluateResult(
        model=stored.architecture.name,
        data=images.dataset.name,
        num_images=len(images.dataset.test),
        resolution=images.dataset.resolution,
        accuracy=accuracy,
        trained_resolution=stored.preprocessing.resolution if stored.preprocessing else None,
        num_skipped=images.num_skipped,
    )
