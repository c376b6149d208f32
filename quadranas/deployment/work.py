"""The data that the steps of an export share: network, images, and the opened device."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from quadranas.backends.interface import Conversion, FileBackend, ReportsProgress
from quadranas.data.task import top1_accuracy
from quadranas.deployment.images import ExportImages, open_export_images
from quadranas.deployment.latency import find_prediction_table, predicted
from quadranas.deployment.manifest import LatencyNote
from quadranas.deployment.proof import program_outputs, pytorch_outputs
from quadranas.deployment.target import ExportOptions, ExportTarget
from quadranas.errors import QuadranasError
from quadranas.latency.table import LatencyTable
from quadranas.measurement.bench import open_device
from quadranas.network.skeleton import Network
from quadranas.reporter import Reporter
from quadranas.runs.stored_network import StoredNetwork
from quadranas.space.architecture import Architecture

NUM_IMAGES = 1000
NUM_REMOTE_IMAGES = 16
"""Default number of images on a board: each is sent to it, and the board may be slow."""


@dataclass(frozen=True, kw_only=True)
class ExportWork:
    """The data that the steps of an export share.

    Args:
        architecture: the architecture at the file's resolution.
        expected: PyTorch's outputs for the validation images.
        prediction: latency by `table`, or the reason why it is missing.
        folder: the bundle.
        scratch: folder for a float file that is only quantised.
    """

    stored: StoredNetwork
    architecture: Architecture
    network: Network
    options: ExportOptions
    target: ExportTarget
    images: ExportImages
    expected: Tensor
    table: LatencyTable | None
    prediction: LatencyNote | str
    backend: FileBackend
    folder: Path
    scratch: Path
    reporter: Reporter

    @property
    def conversion(self) -> Conversion:
        """How the network becomes a file."""
        size = self.architecture.resolution
        return Conversion(
            input_shape=(self.batch, 3, size, size),
            dynamic_batch=self.options.batch_size is None,
            opset=self.target.opset,
            half_weights=self.options.precision == "fp16",
        )

    @property
    def batch(self) -> int:
        """Images per call when the file is checked."""
        return self.options.checked_batch

    @property
    def is_int8(self) -> bool:
        """Whether the file is to be quantised."""
        return self.options.precision == "int8"

    @property
    def path(self) -> Path:
        """The file in the bundle."""
        return self.folder / self.target.files.artefact

    def outputs(self, path: Path) -> Tensor:
        """Outputs of a file for the validation images."""
        program = self.backend.load(path, self.conversion.input_shape)
        return program_outputs(program, self.images.batches(self.batch))[: self.images.num_images]

    def accuracy(self, outputs: Tensor) -> float:
        """Top-1 accuracy on the validation images."""
        return top1_accuracy(outputs, self.images.labels)


@dataclass(frozen=True, kw_only=True)
class ExportInputs:
    """The data known before the device is opened; see `ExportWork`."""

    architecture: Architecture
    images: ExportImages
    table: LatencyTable | None
    prediction: LatencyNote | str


def find_inputs(
    stored: StoredNetwork, options: ExportOptions, target: ExportTarget
) -> ExportInputs:
    """Open the images and the latency table of an export.

    Raises:
        QuadranasError: the images do not suit the network, or the budget cannot be checked.
    """
    architecture = stored.architecture.adapted(resolution=options.resolution)
    images = _open_images(stored, architecture, target, options)
    path = None if options.table is None else Path(options.table)
    table = find_prediction_table(stored.architecture, target.device, stored.folder, path)
    prediction = predicted(
        *(stored.architecture, table),
        resolution=architecture.resolution,
        batch=options.batch_size or 1,
    )
    _check_budget(prediction, target, options)
    return ExportInputs(
        architecture=architecture,
        images=images,
        table=None if isinstance(table, str) else table,
        prediction=prediction,
    )


def _open_images(
    stored: StoredNetwork,
    architecture: Architecture,
    target: ExportTarget,
    options: ExportOptions,
) -> ExportImages:
    usual = NUM_REMOTE_IMAGES if target.checked_on.is_remote else NUM_IMAGES
    number = options.images or usual
    images = open_export_images(stored, options.images_of, architecture.resolution, number)
    if options.precision == "int8" and not images.labelled:
        raise QuadranasError(
            f"int8 needs labelled images to check the accuracy, and the images that "
            f"{architecture.name} was trained on are unknown",
            "Name a run folder, or the weights and the images: --weights FILE --data DATA.",
        )
    return images


def _check_budget(
    prediction: LatencyNote | str, target: ExportTarget, options: ExportOptions
) -> None:
    """Refuse a budget that cannot be checked.

    Raises:
        QuadranasError: the latency on the device will be neither measured nor predicted.
    """
    if options.budget_ms is None or target.is_checked_there or not isinstance(prediction, str):
        return
    raise QuadranasError(
        f"cannot check the budget of {options.budget_ms:.4g} ms on {target.device.name}: it is "
        f"not connected and there is no prediction: {prediction}",
        "Omit --budget, or the option that rules out a prediction (--resolution, --batch), or "
        "measure on this machine with --device host.",
    )


@contextmanager
def open_work(
    stored: StoredNetwork,
    options: ExportOptions,
    target: ExportTarget,
    inputs: ExportInputs,
    folder: Path,
    reporter: Reporter | None,
) -> Iterator[ExportWork]:
    """Open the device that the file is checked on, and compute PyTorch's outputs.

    Raises:
        QuadranasError: the device or its runtime is missing.
    """
    with (
        tempfile.TemporaryDirectory() as scratch,
        open_device(target.checked_on) as backend,
    ):
        assert isinstance(backend, FileBackend)
        reporter = reporter or Reporter(quiet=True)
        if isinstance(backend, ReportsProgress):
            backend.report = reporter.message
        network, images = stored.network().eval(), inputs.images
        outputs = pytorch_outputs(network, images.batches(options.checked_batch))
        yield ExportWork(
            stored=stored,
            architecture=inputs.architecture,
            network=network,
            options=options,
            target=target,
            images=images,
            expected=outputs[: images.num_images],
            table=inputs.table,
            prediction=inputs.prediction,
            backend=backend,
            folder=folder,
            scratch=Path(scratch),
            reporter=reporter,
        )
