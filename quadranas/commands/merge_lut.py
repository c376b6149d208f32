"""merge-lut: merge latency tables of one device and space."""

from collections.abc import Sequence
from pathlib import Path

from quadranas.errors import QuadranasError
from quadranas.files import stamp
from quadranas.latency.table import LatencyTable, TableEntry, TableHeader
from quadranas.latency.table_files import load_table
from quadranas.space.operation import OpSpec
from quadranas.validation import CommandResult


class MergeLutResult(CommandResult):
    """The result of `quadranas merge-lut`.

    Args:
        path: file of the merged table.
        entries: number of operations in it.
    """

    path: Path
    entries: int

    def table(self) -> LatencyTable:
        """Load the table."""
        return load_table(self.path)


def merge_lut(
    tables: Sequence[str | Path], *, output: str | Path, command: str = ""
) -> MergeLutResult:
    """Merge latency tables of one device and space.

    The latency that an entry adds to a network stays that of its own table. An operation that
    several tables have is taken from the first of them. The calibration and the rest of the header
    are those of the first table. A validation is dropped, since it was made with other entries.

    Args:
        tables: files of two or more tables.
        output: file of the merged table.
        command: the command line, recorded in the merged table.

    Raises:
        QuadranasError: fewer than two tables, or tables that were made under other conditions.
    """
    paths = [Path(path) for path in tables]
    if len(paths) < 2:
        raise QuadranasError(f"cannot merge {len(paths)} table", "Name two or more.")
    first, *others = loaded = [load_table(path) for path in paths]
    for path, other in zip(paths[1:], others, strict=True):
        found = first.header.conditions.differences(other.header.conditions)
        if found:
            raise QuadranasError(
                f"{paths[0]} and {path} cannot be merged; they differ in "
                + "; ".join(f"{key}: {one} and {two}" for key, one, two in found),
                "Merge tables that were made on one device in the same way.",
            )
    entries: dict[OpSpec, TableEntry] = {}
    for table in loaded:
        for entry in table.entries:
            entries.setdefault(entry.op, _rescaled(entry, table.header, first.header))
    now = stamp()
    made = {
        "validation": None,
        "quadranas": now.quadranas,
        "command": command,
        "date": now.date,
        "commit": now.commit,
    }
    merged = LatencyTable(
        header=first.header.model_copy(update=made), entries=tuple(entries.values())
    )
    merged.save(Path(output))
    return MergeLutResult(path=Path(output), entries=len(merged.entries))


def _rescaled(entry: TableEntry, own: TableHeader, wanted: TableHeader) -> TableEntry:
    """The entry converted to the scale and null call of another table."""
    if (own.scale, own.null_ms) == (wanted.scale, wanted.null_ms):
        return entry

    def convert(ms: float) -> float:
        return (ms - own.null_ms) * own.scale / wanted.scale + wanted.null_ms

    update: dict[str, float | None] = {"latency_ms": convert(entry.latency_ms)}
    for key in ("minimum_ms", "median_ms", "p95_ms"):
        # Single calls may be faster than the null call's statistic, which leaves no positive time.
        ms = getattr(entry, key)
        update[key] = convert(ms) if ms is not None and convert(ms) > 0 else None
    return entry.model_copy(update=update)
