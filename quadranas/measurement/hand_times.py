"""times.csv: a row for each file, and columns for the times that a person takes."""

import csv
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from quadranas.errors import QuadranasError, printable, some
from quadranas.files import read_text, write_atomically
from quadranas.latency.budget import MAX_MS, MIN_MS
from quadranas.latency.measuring_command import SIZES

TIMES = "times.csv"
NUM_COLUMNS = 5
FILE, NETWORK = "file", "network"
COLUMN = re.compile(r"time_?[0-9]*(?:_([a-z]+))?")
NUMBER = re.compile(r"\+?(?:[0-9]++(?:\.[0-9]*+)?|\.[0-9]++)(?:[eE][+-]?[0-9]++)?")


def as_paths(times: str | Path | Sequence[str | Path]) -> list[Path]:
    """One file or several as a list."""
    return [Path(times)] if isinstance(times, str | Path) else list(map(Path, times))


def write_empty_times(folder: Path, networks: Mapping[str, str]) -> None:
    """Write `times.csv` with empty cells.

    Args:
        networks: what every file is, by its name.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([FILE, NETWORK, *(f"time_{n}_ms" for n in range(1, NUM_COLUMNS + 1))])
    for file, network in networks.items():
        writer.writerow([file, network, *[""] * NUM_COLUMNS])
    write_atomically(folder / TIMES, text.getvalue())


def read_times(
    paths: Sequence[Path], programs: Mapping[str, str], what: str
) -> dict[str, list[float]]:
    """The times of all files, in milliseconds.

    Args:
        programs: the name of the program of each file.
        what: what the files were written for, for messages.

    Raises:
        QuadranasError: a file cannot be read, has other rows or columns, or repeated rows.
    """
    times: dict[str, list[float]] = {}
    places: dict[str, str] = {}
    for path in paths:
        strangers = []
        for line, file, values in _rows(path):
            if file not in programs:
                strangers.append(printable(file[:80]))
            elif values and file in places:
                raise QuadranasError(
                    f"{path}, line {line}: {file} has times already, in {places[file]}",
                    "Keep one of the rows; repetitions are further columns of one row.",
                )
            elif values:
                places[file] = f"{path}, line {line}"
                times[programs[file]] = values
        if strangers:
            raise QuadranasError(
                f"{path} is of other probes: {len(strangers)} of its rows are not among the files "
                f"for {what}: {some(strangers)}",
                "Name the space and device that the probes were written for, with the same "
                "options.",
            )
    return times


def _rows(path: Path) -> Iterator[tuple[int, str, list[float]]]:
    """Line, file and times in milliseconds of each row that is not empty."""
    text = read_text(path, "table of times").removeprefix("\ufeff")
    # Spreadsheets of some languages separate by semicolons, and write 1.5 as 1,5.
    is_semicolon = ";" in text.partition("\n")[0]
    try:
        rows = list(csv.reader(io.StringIO(text), delimiter=";" if is_semicolon else ","))
    except csv.Error as error:
        raise QuadranasError(f"{path} is not a CSV file: {error}") from error
    head = [name.strip() for name in rows[0]] if rows else []
    if head.count(FILE) != 1:
        fault = "several columns" if FILE in head else "no column"
        raise QuadranasError(
            f"{path} has {fault} {FILE!r} in its first line",
            f"Use the {TIMES} that --probes wrote.",
        )
    sizes = _sizes(path, head)
    for line, row in enumerate(rows[1:], start=2):
        if not any(cell.strip() for cell in row):
            continue
        if len(row) > len(head) or len(row) <= head.index(FILE):
            raise QuadranasError(
                f"{path}, line {line}: {len(row)} cells for {len(head)} columns",
                "Write decimals with a point, and one time in a cell.",
            )
        cells = dict(zip(head, (cell.strip() for cell in row), strict=False))
        values = []
        for column, size in sizes.items():
            if cells.get(column):
                cell = cells[column].replace(",", ".") if is_semicolon else cells[column]
                values.append(_time_ms(path, line, column, cell, size))
        yield line, cells[FILE], values


def _sizes(path: Path, head: Sequence[str]) -> dict[str, float]:
    """The columns with times, and the size of their unit in milliseconds."""
    sizes: dict[str, float] = {}
    for column in head:
        if column in (FILE, NETWORK, ""):
            continue
        match = COLUMN.fullmatch(column)
        if match is None or column in sizes:
            fault = "is twice" if column in sizes else "is unknown"
            raise QuadranasError(
                f"{path}: column {column[:40]!r} {fault}; accepted: {FILE}, {NETWORK}, time_1_ms, "
                "time_2_ms ..."
            )
        if match[1] not in SIZES:
            raise QuadranasError(
                f"{path}: column {column!r} has no unit that is known; accepted: "
                f"{', '.join(SIZES)}",
                f"Name it {column.removesuffix('_' + (match[1] or ''))}_ms if its times are "
                "milliseconds.",
            )
        sizes[column] = SIZES[match[1]]
    if not sizes:
        raise QuadranasError(
            f"{path} has no column with times", "Add columns called time_1_ms, time_2_ms ..."
        )
    return sizes


def _time_ms(path: Path, line: int, column: str, cell: str, size: float) -> float:
    """The time in a cell, in milliseconds.

    Args:
        size: unit of the column, in milliseconds.
    """
    value = float(cell) * size if NUMBER.fullmatch(cell) else 0.0
    if not MIN_MS <= value <= MAX_MS:
        raise QuadranasError(
            f"{path}, line {line}, {column}: {cell[:40]!r} is not a time; expected a positive "
            "number",
            "Leave the cell empty if the time is missing.",
        )
    return value
