"""build-lut --probes: write the networks of a table as files that someone times by hand."""

import itertools
import tempfile
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Unpack

from quadranas.backends.command import command_of, conversion_for, open_writer
from quadranas.latency.device import Device, DeviceSettings, load_device
from quadranas.latency.table import argument_of
from quadranas.measurement.bench import Job
from quadranas.measurement.by_hand import HandProbes
from quadranas.measurement.hand_times import TIMES
from quadranas.measurement.table_request import table_request
from quadranas.reporter import Reporter
from quadranas.runs.whole_folder import whole_folder
from quadranas.space.search_space import SearchSpace
from quadranas.space.space_file import load_space
from quadranas.validation import CommandResult


class ProbesResult(CommandResult):
    """The result of `quadranas build-lut --probes`.

    Args:
        folder: folder with the files, `times.csv` and a README.
        times: the file to fill in.
        device, space: name of the device and of the space.
        files: number of files to time.
        format: format of the files.
    """

    folder: Path
    times: Path
    device: str
    space: str
    files: int
    format: str


def write_probes(
    space: str | Path | SearchSpace = "quadranet-mobile",
    *,
    device: str | Path | Device,
    folder: str | Path,
    table: str | Path | None = None,
    only_missing: bool = False,
    num_classes: Sequence[int] = (),
    reporter: Reporter | None = None,
    **settings: Unpack[DeviceSettings],
) -> ProbesResult:
    """Write every network of a latency table as a file, and `times.csv` to fill in.

    `build_lut(space, device=device, times=...)` makes the table of the times that come back.

    Args:
        device: a device with the section `command`, which names the format and the tool.
        folder: a new folder.
        table: file of the table to complete; default: `latency_tables/<space>/<device>.json`.
        only_missing: write only what the existing table lacks.
        num_classes: numbers of classes to add head entries for, besides 10, 100 and 1000.
        settings: values to use instead of those in the device's file.

    Raises:
        QuadranasError: the device has no section `command`, or the folder has content.
        MissingExtraError: the package that writes the files is not installed.
    """
    opened, argument = load_device(device, **settings), argument_of(device)
    request = table_request(load_space(space), opened, table, only_missing, num_classes, "")
    request.require_measurable()
    probes = HandProbes.of(opened, request.space, request.missing, request.existing)
    with whole_folder(Path(folder)) as target:
        _write(probes, opened, argument, target.path, reporter or Reporter(quiet=True))
    return ProbesResult(
        folder=Path(folder),
        times=Path(folder) / TIMES,
        device=opened.name,
        space=request.space.name,
        files=len(probes.jobs),
        format=command_of(opened).format,
    )


def _write(
    probes: HandProbes, device: Device, argument: str, folder: Path, reporter: Reporter
) -> None:
    reporter.message(f"writing {len(probes.jobs)} files")
    phase, numbers = reporter.phase("writing", len(probes.jobs), 0), itertools.count(1)
    with (
        tempfile.TemporaryDirectory() as records,
        closing(open_writer(device, Path(records))) as writer,
    ):

        def write_file(job: Job, path: Path) -> None:
            shape = (device.batch_size, job.channels, job.resolution, job.resolution)
            writer.convert(job.make(), conversion_for(device, shape), path)
            reporter.advance(phase, next(numbers))

        probes.write(folder, write_file, argument)
