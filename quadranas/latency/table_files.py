"""The files of latency tables: finding and loading them."""

import shlex
from dataclasses import dataclass
from pathlib import Path

from quadranas.errors import QuadranasError
from quadranas.files import read_json, shipped
from quadranas.latency.table import FORMAT_VERSION, LatencyTable, TableHeader, build_command
from quadranas.space.search_space import SearchSpace
from quadranas.validation import refuse_newer, validate


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
    return Path("latency_tables") / relative, shipped("latency_tables") / relative


def locate_table(
    space: str, device: str, path: Path | None = None, *, own: Path | None = None
) -> Path | None:
    """Locate the file of a device's table for a space; `None` if there is none.

    Args:
        path: the requested file; no other place is searched.
        own: the copy in a run folder, which comes before the default places if it exists and is a
            table of the device.
    """
    if path is not None:
        return path if path.is_file() else None
    if own is not None and own.is_file() and load_table(own).header.device == device:
        return own
    places = table_paths(space, device) if space else ()
    return next((place for place in places if place.is_file()), None)


@dataclass(frozen=True)
class PricedTable:
    """A latency table and its file."""

    path: Path
    table: LatencyTable


def find_priced(
    space: SearchSpace,
    device: str,
    path: Path | None = None,
    *,
    own: Path | None = None,
    command: str = "",
) -> PricedTable:
    """Find a device's table for a space, complete for it, and its file.

    Args:
        device: name of the device.
        path, own: see `locate_table`.
        command: the command that makes the table, for error messages; needed if space or device
            were given as files instead of names.

    Raises:
        QuadranasError: no table, or one made for another device, space or version of the space.
        MissingEntryError: the table lacks operations of the space.
    """
    command = command or build_command(space.name, device)
    place = locate_table(space.name, device, path, own=own)
    output = place if own is not None and place == own else path
    if output is not None:
        command = f"{command} --output {shlex.quote(str(output))}"
    if place is None:
        places = (path,) if path is not None else table_paths(space.name, device)
        raise QuadranasError(
            f"no latency table of device {device!r} for space {space.name!r}; looked at "
            + ", ".join(map(str, places)),
            f"Make it with: {command}",
        )
    table = load_table(place)
    fault = _mismatch(table.header, space, device)
    if fault:
        raise QuadranasError(
            f"{place} was made for {fault}", f"Make the right one with: {command}"
        )
    table.require(space.specs(), command)
    return PricedTable(place, table)


def find_table(
    space: SearchSpace, device: str, path: Path | None = None, *, command: str = ""
) -> LatencyTable:
    """Find a device's table for a space; see `find_priced`."""
    return find_priced(space, device, path, command=command).table


def _mismatch(header: TableHeader, space: SearchSpace, device: str) -> str:
    """What a table was made for, if not for this space and device; otherwise empty."""
    if header.space != space.name:
        return f"space {header.space!r}, not for the current space {space.name!r}"
    if header.space_digest != space.digest:
        return f"another version of space {space.name!r} than the current one"
    if header.device != device:
        return f"device {header.device!r}, not for {device!r}"
    return ""
