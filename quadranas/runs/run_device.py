"""The devices that a run's network was found for, as recorded in the run folder."""

from collections.abc import Sequence
from pathlib import Path

from quadranas.errors import QuadranasError
from quadranas.files import refuse_links, write_atomically
from quadranas.latency.device import Device, is_shipped, load_device, shipped_devices
from quadranas.latency.goal import Goal
from quadranas.latency.table import LatencyTable
from quadranas.latency.table_files import load_table
from quadranas.runs import layout
from quadranas.space.architecture import Architecture, load_architecture


def keep_device(device: Device, folder: Path) -> None:
    """Write a device that is not shipped into a run folder, unless it is there already."""
    path = folder / layout.DEVICE
    if not is_shipped(device) and not path.is_file():
        device.save(path)


def keep_goals(goals: Sequence[Goal], folder: Path) -> None:
    """Write tables, and devices that are not shipped, into a run folder; files there stay.

    Args:
        goals: that of the main device first; those of the others go to a folder of their own.
    """
    for number, goal in enumerate(goals):
        place = further_folder(folder, goal.name) if number else folder
        keep_device(goal.device, place)
        if not (place / layout.TABLE).is_file():
            goal.table.save(place / layout.TABLE)


def further_folder(folder: Path, device: str) -> Path:
    """The place of a further device in a run folder."""
    return folder / layout.DEVICES / device


def table_place(folder: Path, device: str) -> Path:
    """The place of the table of a device in a run folder; of another, that of the main device."""
    further = further_folder(folder, device) / layout.TABLE
    return further if further.is_file() else folder / layout.TABLE


def keep_copies(source: Path | None, folder: Path) -> None:
    """Copy devices and tables of a run into the folder of a network that is made from it."""
    if source is None:
        return
    names = [Path(layout.DEVICE), Path(layout.TABLE)]
    for further in sorted((source / layout.DEVICES).glob("*/")):
        names += [further.relative_to(source) / name for name in names[:2]]
    for name in names:
        if (source / name).is_file() and not (folder / name).exists():
            write_atomically(folder / name, (source / name).read_bytes())


def device_of(folder: Path | None, architecture: Architecture | None) -> Device | None:
    """The device that a network was found for; `None` if no device is recorded.

    Args:
        folder: the run folder; a device of the user's own is described there.
        architecture: names the device, which is recognised if it is a shipped one.
    """
    own = folder / layout.DEVICE if folder is not None else None
    if own is not None and own.is_file():
        return load_device(own)
    name = architecture.provenance.get("device") if architecture is not None else None
    return load_device(str(name)) if name in shipped_devices() else None


def find_device_run(device: str | Path | Device) -> Path | None:
    """The run folder that a device is named by; `None` for a name, a file or a device."""
    if isinstance(device, Device) or device in shipped_devices() or not Path(device).is_dir():
        return None
    return Path(device)


def open_device_argument(device: str | Path | Device) -> Device:
    """Load a device by its name or file, or the device of a run by the run's folder.

    How the device of a run is reached is left out: a run folder never chooses what is contacted.

    Raises:
        QuadranasError: as in `load_device`; or a folder that records no device.
    """
    folder = find_device_run(device)
    if folder is None:
        return load_device(device)
    refuse_links(folder)
    path = folder / layout.ARCHITECTURE
    found = device_of(folder, load_architecture(path) if path.is_file() else None)
    if found is None:
        raise QuadranasError(
            f"{folder} records no device that its network was found for",
            "Name a device, a .yaml file, or the folder of a search or of a derived network.",
        )
    return found.without_reach()


def table_of(folder: Path) -> LatencyTable | None:
    """The copy of a latency table in a run folder; `None` if there is no usable one."""
    path = folder / layout.TABLE
    try:
        return load_table(path) if path.is_file() else None
    except QuadranasError:
        return None
