"""Where latency tables lie, and how one is found and read."""

import shlex
from dataclasses import dataclass
from pathlib import Path

from quadranas.errors import QuadranasError
from quadranas.files import read_json, shipped
from quadranas.latency.table import FORMAT_VERSION, LatencyTable, build_command
from quadranas.space.search_space import SearchSpace
from quadranas.validation import refuse_newer, validate


def load_table(path: Path) -> LatencyTable:
    """Read a table file.

    Raises:
        QuadranasError: unreadable, from a newer version, or not a table.
    """
    content = read_json(path, "latency table")
    header = content.get("header")
    if isinstance(header, dict):
        refuse_newer(header, FORMAT_VERSION, path)
    for key in LatencyTable.model_fields:
        if key not in content:
            raise QuadranasError(f"{path}: not a latency table: it has no key {key!r}")
    return validate(LatencyTable, content, path)


def table_paths(space: str, device: str) -> tuple[Path, ...]:
    """Where a table may lie: the working folder's `latency_tables/` first, then the shipped."""
    relative = Path(space) / f"{device}.json"
    return Path("latency_tables") / relative, shipped("latency_tables") / relative


def _into(command: str, path: Path | None) -> str:
    """A command that makes a table, writing it to a file of the user's choice."""
    return command if path is None else f"{command} --output {shlex.quote(str(path))}"


def locate_table(space: str, device: str, path: Path | None = None, *, command: str = "") -> Path:
    """The file of a device's table for a space.

    Args:
        command: makes the table; to be named in the error.

    Raises:
        QuadranasError: there is none; names the places and the command that makes it.
    """
    candidates = (path,) if path is not None else table_paths(space, device)
    found = next((candidate for candidate in candidates if candidate.is_file()), None)
    if found is None:
        raise QuadranasError(
            f"no latency table of device {device!r} for space {space!r}; looked at "
            + ", ".join(str(candidate) for candidate in candidates),
            f"Make it with: {_into(command or build_command(space, device), path)}",
        )
    return found


def find_table(
    space: SearchSpace, device: str, path: Path | None = None, *, command: str = ""
) -> LatencyTable:
    """The table of a device for a space, complete for it.

    Args:
        device: a device's name.
        path: this very file instead of the usual places.
        command: makes the table; to be named in errors. Needed where the user gave files instead
            of names.

    Raises:
        QuadranasError: no table, one made for another device, space or version of the space.
        MissingEntryError: the table lacks operations of the space.
    """
    command = command or build_command(space.name, device)
    found = locate_table(space.name, device, path, command=command)
    table = load_table(found)
    header = table.header
    if (header.space, header.space_digest) != (space.name, space.digest):
        other = (
            f"space {header.space!r}" if header.space != space.name else "another version of it"
        )
        raise QuadranasError(
            f"{found} was made for {other}, not for space {space.name!r} as it is now",
            f"Make the right one with: {_into(command, path)}",
        )
    if header.device != device:
        raise QuadranasError(
            f"{found} was made for device {header.device!r}, not for {device!r}",
            f"Make the right one with: {_into(command, path)}",
        )
    table.require(space.specs(), _into(command, path))
    return table


@dataclass(frozen=True)
class PricedTable:
    """A latency table and the file it came from."""

    path: Path
    table: LatencyTable


def find_priced(
    space: SearchSpace, device: str, path: Path | None, *, command: str
) -> PricedTable:
    """A device's table for a space, and where it lies; the arguments are those of `find_table`."""
    found = locate_table(space.name, device, path, command=command)
    return PricedTable(found, find_table(space, device, path, command=command))
