"""build-lut --probes: write the networks of a table as files that someone times by hand."""

from collections.abc import Sequence
from pathlib import Path
from typing import Unpack

from quadranas.backends.command import command_of
from quadranas.latency.device import Device, DeviceSettings, load_device
from quadranas.latency.table import argument_of, build_command
from quadranas.measurement.by_hand import HandProbes, write_files
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
    opened = load_device(device, **settings)
    request = table_request(load_space(space), opened, table, only_missing, num_classes, "")
    files = HandProbes.of(opened, request.space, request.missing, request.existing).files
    command = build_command(argument_of(space), argument_of(device))
    with whole_folder(Path(folder)) as target:
        write_files(files, target.path, command, reporter or Reporter(quiet=True))
    return ProbesResult(
        folder=Path(folder),
        times=Path(folder) / TIMES,
        device=opened.name,
        space=request.space.name,
        files=len(files.jobs),
        format=command_of(opened).format,
    )
