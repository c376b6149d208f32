"""devices and spaces: the known devices and search spaces, and the latencies they reach."""

from collections.abc import Sequence
from pathlib import Path

from quadranas.latency.device import Device, load_device, shipped_devices
from quadranas.latency.runtimes import RUNTIMES
from quadranas.latency.table import build_command
from quadranas.latency.table_files import TABLES, find_priced, load_table, locate_table
from quadranas.runs import layout
from quadranas.runs.run_device import open_device_argument, table_of
from quadranas.space.cost import count_macs
from quadranas.space.search_space import SearchSpace
from quadranas.space.space_file import load_space, space_files
from quadranas.strategies.limits import reachable_ms
from quadranas.validation import CommandResult, Frozen


class KnownDevice(Frozen):
    """A device and its latency tables.

    Args:
        name, title: name of the device, and description of its hardware.
        runtime: the runtime that measures it; `None` if it cannot be measured.
        precision: precision of weights and activations.
        threads: number of threads on the device; `None` for devices without a thread count.
        analytic: whether it has an analytic model.
        modelled_runtime: the runtime whose speed that model predicts; `None` without a model.
        expected_error: description of the expected error of that model on new networks; without
            a model `measured`, if there is a table, which has its own error, else `unknown`.
        tables: path of the table by space.
    """

    name: str
    title: str
    runtime: str | None
    precision: str
    threads: int | None
    analytic: bool
    modelled_runtime: str | None
    expected_error: str
    tables: dict[str, Path]


class DevicesResult(CommandResult):
    """The known devices, and the runtimes that this machine can measure with.

    Args:
        devices: the known devices.
        runtimes: names of the runtimes that are installed.
    """

    devices: tuple[KnownDevice, ...]
    runtimes: tuple[str, ...]


class ReachableLatency(Frozen):
    """The range of predicted latencies of a space on a device.

    Args:
        min_ms, max_ms: predicted latency of the fastest and of the slowest network.
        method: `analytic` or `measured`.
        table: the table's file.
        summary: the source of the table's numbers, in one line.
    """

    min_ms: float
    max_ms: float
    method: str
    table: Path
    summary: str


class KnownSpace(Frozen):
    """A search space.

    Args:
        name: name of the space.
        resolution: height and width of the input, in pixels.
        architectures: number of architectures.
        min_macs, max_macs: minimum and maximum number of multiply-accumulates.
        devices: latencies by device.
    """

    name: str
    resolution: int
    architectures: int
    min_macs: int
    max_macs: int
    devices: dict[str, ReachableLatency]


class SpacesResult(CommandResult):
    """The known search spaces.

    Args:
        spaces: the known spaces.
    """

    spaces: tuple[KnownSpace, ...]


def survey_devices(names: Sequence[str] = ()) -> DevicesResult:
    """List devices, their tables, and the runtimes installed on this machine.

    Args:
        names: shipped devices, YAML files, or folders of runs; all shipped ones if empty.
    """
    return DevicesResult(
        devices=tuple(_known_device(name) for name in names or shipped_devices()),
        runtimes=tuple(name for name, runtime in RUNTIMES.items() if runtime.is_installed),
    )


def _known_device(name: str) -> KnownDevice:
    device = open_device_argument(name)
    paths = {space: _own_table(space, device) for space in _spaces_with_tables(device)}
    own = table_of(Path(name)) if Path(name).is_dir() else None
    if own is not None and not own.header.differences(device):
        paths[own.header.space] = Path(name) / layout.TABLE
    tables = {space: path for space, path in paths.items() if path is not None}
    without_model = "measured" if tables else "unknown"
    return KnownDevice(
        name=device.name,
        title=device.title,
        runtime=device.runtime,
        precision=device.precision,
        threads=device.threads,
        analytic=device.analytic is not None,
        modelled_runtime=device.analytic.runtime if device.analytic else None,
        expected_error=device.analytic.expected_error if device.analytic else without_model,
        tables=tables,
    )


def _spaces_with_tables(device: Device) -> list[str]:
    """The shipped spaces, and those of which `latency_tables/` has a table of the device."""
    tables = sorted(TABLES.glob(f"*/{device.name}.json"))
    return list(dict.fromkeys([*space_files(), *(path.parent.name for path in tables)]))


def _own_table(space: str, device: Device) -> Path | None:
    """The table of a device for a space, if it was made under the device's conditions."""
    path = locate_table(space, device)
    return path if path is not None and not load_table(path).header.differences(device) else None


def survey_spaces(names: Sequence[str] = (), devices: Sequence[str] = ()) -> SpacesResult:
    """List search spaces: size, range of MACs, and range of predicted latency per device.

    Args:
        names: shipped spaces or YAML files; all shipped ones if empty.
        devices: devices or YAML files, each with a table; by default the shipped devices that
            have one.

    Raises:
        QuadranasError: unknown names, or a named device without a table.
    """
    return SpacesResult(
        spaces=tuple(_known_space(name, devices) for name in names or space_files())
    )


def _known_space(name: str, devices: Sequence[str]) -> KnownSpace:
    space = load_space(name)
    smallest, largest = (space.extreme(count_macs, largest=big) for big in (False, True))
    return KnownSpace(
        name=space.name,
        resolution=space.resolution,
        architectures=space.num_architectures,
        min_macs=count_macs(smallest),
        max_macs=count_macs(largest),
        devices=_latencies(name, space, devices),
    )


def _latencies(
    name: str, space: SearchSpace, devices: Sequence[str]
) -> dict[str, ReachableLatency]:
    latencies = {}
    for device_name in devices or shipped_devices():
        device = load_device(device_name)
        if not devices and locate_table(space.name, device) is None:
            continue
        priced = find_priced(space, device, command=build_command(name, device_name))
        low, high = reachable_ms(space, priced.table)
        latencies[device.name] = ReachableLatency(
            min_ms=low,
            max_ms=high,
            method=priced.table.header.method,
            table=priced.path,
            summary=priced.table.header.summary(),
        )
    return latencies
