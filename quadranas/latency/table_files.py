"""The files of latency tables: finding and loading them."""

import shlex
from dataclasses import dataclass
from pathlib import Path

from quadranas.errors import QuadranasError
from quadranas.files import read_json, shipped
from quadranas.latency.conditions import in_words
from quadranas.latency.device import ANALYTIC, Device, is_shipped, load_device, shipped_devices
from quadranas.latency.table import (
    FORMAT_VERSION,
    LatencyTable,
    TableHeader,
    argument_of,
    build_command,
)
from quadranas.space.search_space import SearchSpace
from quadranas.validation import refuse_newer, validate

TABLES = Path("latency_tables")
"""The folder of the user's own tables, in the working folder."""


def load_table(path: str | Path) -> LatencyTable:
    """Load a latency table from its file.

    Raises:
        QuadranasError: unreadable, from a newer version, or not a table.
    """
    path = Path(path)
    content = read_json(path, "latency table")
    header = content.get("header")
    if isinstance(header, dict):
        refuse_newer(header, FORMAT_VERSION, path)
    for key in LatencyTable.model_fields:
        if key not in content:
            raise QuadranasError(f"{path}: not a latency table: it has no key {key!r}")
    return validate(LatencyTable, content, path)


def table_paths(space: str, device: str) -> tuple[Path, ...]:
    """The default paths of a table: `latency_tables/` in the working folder, then shipped ones."""
    relative = Path(space) / f"{device}.json"
    return TABLES / relative, shipped("latency_tables") / relative


def locate_table(
    space: str, device: Device, path: Path | None = None, *, own: Path | None = None
) -> Path | None:
    """Locate the file of a device's table for a space; `None` if there is none.

    Args:
        path: the requested file; no other place is searched.
        own: the copy in a run folder, which comes before the default places if it exists and was
            made under the conditions of the device.
    """
    if path is not None:
        return path if path.is_file() else None
    if own is not None and own.is_file() and not load_table(own).header.differences(device):
        return own
    places = table_paths(space, device.name) if space else ()
    return next((place for place in places if place.is_file()), None)


@dataclass(frozen=True)
class PricedTable:
    """A latency table and its file."""

    path: Path
    table: LatencyTable


def find_priced(
    space: SearchSpace,
    device: str | Path | Device,
    path: Path | None = None,
    *,
    own: Path | None = None,
    command: str = "",
) -> PricedTable:
    """Find a device's table for a space, complete for it, and its file.

    Args:
        device: a device, its name, or its file.
        path, own: see `locate_table`.
        command: the command that makes the table, for error messages; needed if space or device
            were given as files instead of names.

    Raises:
        QuadranasError: no table, or one made for another device, under other conditions, or for
            another space or version of the space.
        MissingEntryError: the table lacks operations of the space.
    """
    command = command or build_command(space.name, argument_of(device))
    device = load_device(device)
    place = locate_table(space.name, device, path, own=own)
    output = place if own is not None and place == own else path
    if output is not None:
        command = f"{command} --output {shlex.quote(str(output))}"
    if place is None:
        places = (path,) if path is not None else table_paths(space.name, device.name)
        raise QuadranasError(
            f"no latency table of device {device.name!r} for space {space.name!r}; looked at "
            + ", ".join(map(str, places)),
            f"Make it with: {command}",
        )
    table = load_table(place)
    _check_space(table.header, space, place, command)
    check_conditions(table.header, device, place, command)
    table.require(space.specs(), command)
    return PricedTable(place, table)


def load_complete(path: Path, space: SearchSpace) -> PricedTable:
    """Load a table of any device that is complete for a space.

    Raises:
        QuadranasError: not a table, or one for another space or version of the space.
        MissingEntryError: the table lacks operations of the space.
    """
    table = load_table(path)
    command = build_command(space.name, table.header.device)
    _check_space(table.header, space, path, command)
    table.require(space.specs(), command)
    return PricedTable(path, table)


def find_table(
    space: SearchSpace,
    device: str | Path | Device,
    path: Path | None = None,
    *,
    command: str = "",
) -> LatencyTable:
    """Find a device's table for a space; see `find_priced`."""
    return find_priced(space, device, path, command=command).table


def check_conditions(
    header: TableHeader, device: Device, place: Path, command: str = "", *, hint: str = ""
) -> None:
    """Check that a table was made under the conditions of a device, not only for its name.

    Args:
        command: the command that makes the table.
        hint: replaces the hint.

    Raises:
        QuadranasError: names all conditions that differ, and the command.
    """
    found = header.differences(device)
    if not found:
        return
    command = command or build_command(header.space, device.name)
    if header.device != device.name:
        raise QuadranasError(
            f"{place} was made for device {header.device!r}, not for {device.name!r}",
            hint or f"Make the right one with: {command}",
        )
    raise QuadranasError(
        f"{place} was made under other conditions than those of device {device.name!r}: "
        f"{in_words(found)}",
        hint or _rebuild(header, device, place, command),
    )


def _rebuild(header: TableHeader, device: Device, place: Path, command: str) -> str:
    """The command that makes a table for the device as it is; `build-lut` keeps measured ones."""
    command = f"{command} --backend {_backend(header, device)}"
    if device.name in shipped_devices() and not is_shipped(device):
        return f"Give the device a name of its own; then make its table with: {command}"
    if header.method == ANALYTIC or place.is_relative_to(shipped("latency_tables")):
        return f"Make the right one with: {command}"
    return (
        f"Keep it under another name and make the right one: mv {shlex.quote(str(place))} "
        f"{shlex.quote(f'{place}.old')} && {command}"
    )


def _backend(header: TableHeader, device: Device) -> str:
    """The backend that makes a device's table: as before, if the device still has it."""
    if header.method == ANALYTIC and device.analytic is not None:
        return ANALYTIC
    return device.runtime or header.backend


def _check_space(header: TableHeader, space: SearchSpace, place: Path, command: str) -> None:
    fault = ""
    if header.space != space.name:
        fault = f"space {header.space!r}, not for the current space {space.name!r}"
    elif header.space_digest != space.digest:
        fault = f"another version of space {space.name!r} than the current one"
    if fault:
        raise QuadranasError(
            f"{place} was made for {fault}", f"Make the right one with: {command}"
        )
