"""Several exported files on one device: their accuracy on the same images, and their latency.

All files are timed in the same shuffled rounds (`measurement/timing.py`), also those of different
runtimes, so that whatever slows the machine down for a while affects all of them alike.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from quadranas.backends.interface import FileBackend, Program, Provenance
from quadranas.data.task import top1_accuracy
from quadranas.deployment.bundle import Bundle
from quadranas.deployment.images import ExportImages, preprocessing_in
from quadranas.deployment.manifest import Manifest
from quadranas.deployment.opening import opened_for_files
from quadranas.deployment.proof import program_outputs
from quadranas.errors import QuadranasError
from quadranas.latency.device import Device
from quadranas.measurement.bench import Bench
from quadranas.measurement.plan import Plan
from quadranas.measurement.summary import Timings
from quadranas.reporter import Reporter
from quadranas.runs.config import DataConfig, open_data
from quadranas.runs.stored_network import StoredNetwork, open_test_images


@dataclass(frozen=True)
class OpenedFile:
    """A bundle's file in its runtime.

    Args:
        device: the device with the runtime and the settings of this file.
    """

    bundle: Bundle
    device: Device
    backend: FileBackend
    program: Program

    @property
    def provenance(self) -> Provenance:
        """Runtime and hardware."""
        return self.backend.provenance()

    def accuracy(self, images: ExportImages) -> float:
        """Top-1 accuracy of the file."""
        batches = images.batches(self.bundle.manifest.input.batch_size)
        outputs = program_outputs(self.program, batches)[: images.num_images]
        return top1_accuracy(outputs, images.labels)


def check_one_device(bundles: Sequence[Bundle], devices: Sequence[Device]) -> None:
    """Check that the latencies of bundles can be compared.

    Raises:
        QuadranasError: they are for different devices, numbers of threads or images per call.
    """
    facts = [
        {
            "the device": device.name,
            "the number of threads": device.threads,
            "the number of images per call": bundle.manifest.input.batch_size,
        }
        for bundle, device in zip(bundles, devices, strict=True)
    ]
    for bundle, other in zip(bundles[1:], facts[1:], strict=True):
        for name, value in other.items():
            if value != facts[0][name]:
                raise QuadranasError(
                    f"{bundles[0].folder} and {bundle.folder} cannot be compared: {name} is "
                    f"{facts[0][name]!r} in one and {value!r} in the other",
                    "Export both alike: with the same --device, --threads and --batch.",
                )


@contextmanager
def opened_files(
    bundles: Sequence[Bundle], devices: Sequence[Device]
) -> Iterator[list[OpenedFile]]:
    """Open the files of bundles, each in its runtime; files with the same settings share one."""
    with ExitStack() as stack:
        records = Path(stack.enter_context(TemporaryDirectory()))
        backends: dict[str, FileBackend] = {}
        files = []
        for bundle, device in zip(bundles, devices, strict=True):
            key = device.model_dump_json()
            if key not in backends:
                backends[key] = stack.enter_context(opened_for_files(device, records))
            wanted = bundle.manifest.input
            shape = (wanted.batch_size, *wanted.shape[1:])
            program = backends[key].load(bundle.artefact, shape)
            files.append(OpenedFile(bundle, device, backends[key], program))
        yield files


def time_files(
    files: Sequence[OpenedFile], reporter: Reporter, plan: Plan | None = None
) -> Timings | str:
    """Time files together; programs are named by their positions.

    Returns: the timings, or why there are none: the device is emulated.
    """
    emulated = next((file for file in files if file.provenance.emulated), None)
    if emulated is not None:
        return f"device {emulated.device.name} is emulated"
    programs: Mapping[str, Program] = {str(i): file.program for i, file in enumerate(files)}
    return Bench(files[0].device, files[0].backend).time(programs, reporter, plan)


def labelled_images(manifest: Manifest, data: DataConfig, number: int) -> ExportImages | str:
    """Labelled images of the classes of a bundle, prepared as its network expects them.

    Args:
        data: the images; without any the embedded digits, for networks with their classes.
        number: largest number of images.

    Returns: the images, or why there are none.

    Raises:
        QuadranasError: the named images are unsuitable, or of other classes.
    """
    known = preprocessing_in(manifest)
    if known is None:
        return "the manifest records no classes or no normalisation"
    size = manifest.input.resolution
    if data.data is None and open_data(data, size).class_names != known.class_names:
        return "no images of its classes were named (--data)"
    stored = StoredNetwork(manifest.architecture, preprocessing=known)
    held_out = open_test_images(stored, data, size)
    return ExportImages(
        dataset=held_out.dataset,
        transform=held_out.augmenter.plain,
        labelled=True,
        trained_resolution=held_out.trained_resolution,
        num_images=min(number, len(held_out.dataset.test)),
        preprocessing=known,
        num_skipped=held_out.num_skipped,
    )
