"""merge-lut: the entries of several tables of one device and space in one."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from quadranas import __version__
from quadranas.errors import QuadranasError
from quadranas.files import source_commit
from quadranas.latency.table import LatencyTable, TableEntry, TableHeader
from quadranas.latency.table_files import load_table
from quadranas.space.operation import OpSpec


def merge_lut(paths: Sequence[Path], output: Path, *, command: str = "") -> LatencyTable:
    """Merge tables; what an entry adds to a network's latency stays as its own table says.

    An operation that several tables have is taken from the first of them, and so are the
    calibration and the rest of the header. A validation is dropped: it was not made with these
    entries.

    Raises:
        QuadranasError: fewer than two tables, or two that were not made on the same device in the
            same way.
    """
    if len(paths) < 2:
        raise QuadranasError(f"{len(paths)} table to merge", "Name two or more.")
    first, *others = tables = [load_table(path) for path in paths]
    for path, other in zip(paths[1:], others, strict=True):
        difference = first.header.conditions.difference(other.header.conditions)
        if difference is not None:
            raise QuadranasError(
                f"{paths[0]} and {path} cannot be merged: {difference.key} is "
                f"{difference.first!r} and {difference.second!r}",
                "Merge tables that were made on one device in the same way.",
            )
    entries: dict[OpSpec, TableEntry] = {}
    for table in tables:
        for entry in table.entries:
            entries.setdefault(entry.op, _rescaled(entry, table.header, first.header))
    made = {
        "validation": None,
        "quadranas": __version__,
        "command": command,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "commit": source_commit(),
    }
    merged = LatencyTable(
        header=first.header.model_copy(update=made), entries=tuple(entries.values())
    )
    merged.save(output)
    return merged


def _rescaled(entry: TableEntry, own: TableHeader, wanted: TableHeader) -> TableEntry:
    """The entry in another table's scale and null call."""
    if (own.scale, own.null_ms) == (wanted.scale, wanted.null_ms):
        return entry

    def convert(ms: float) -> float:
        return (ms - own.null_ms) * own.scale / wanted.scale + wanted.null_ms

    update: dict[str, float | None] = {"latency_ms": convert(entry.latency_ms)}
    for key in ("minimum_ms", "median_ms"):
        # Single calls may be faster than the null call's statistic; then there is nothing to say.
        ms = getattr(entry, key)
        update[key] = convert(ms) if ms is not None and convert(ms) > 0 else None
    return entry.model_copy(update=update)
