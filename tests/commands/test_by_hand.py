"""Tables by hand: files that are written, and times that come back."""

import csv
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from quadranas.latency.table_files import load_table
from tests.command_line import Outcome, call, listing
from tests.measuring import trace_exports

DEVICE: dict[str, Any] = {
    "name": "chip",
    "title": "a chip that a colleague has",
    "runtime": "command",
    "precision": "fp32",
    "command": {"tool": "the colleague's stopwatch 1", "format": "onnx"},
}
NAMED = ("build-lut", "--device", "chip.yaml", "--space", "toy")
TABLE = Path("latency_tables/toy/chip.json")

Rows = list[dict[str, str]]
Change = Callable[[Rows], object]


@pytest.fixture(scope="module")
def probes(tmp_path_factory: pytest.TempPathFactory, exports: Path) -> Path:
    """A working folder with the files of the toy space."""
    folder = tmp_path_factory.mktemp("hand")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        trace_exports(patch)
        (folder / "chip.yaml").write_text(yaml.safe_dump(DEVICE), encoding="utf-8")
        written = call(*NAMED, "--probes", "probes")
    assert written.code == 0, written.err
    return folder


@pytest.fixture(autouse=True)
def working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, probes: Path) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(probes / "chip.yaml", tmp_path)
    shutil.copytree(probes / "probes", tmp_path / "probes")


def empty_rows() -> Rows:
    with Path("probes/times.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def filled_rows() -> Rows:
    """A time for every byte of a file; a second pass is 1 % slower."""
    rows = empty_rows()
    for row in rows:
        ms = 0.2 + Path("probes", row["file"]).stat().st_size / 1e6
        row |= {"time_1_ms": f"{ms:.6f}", "time_2_ms": f"{1.01 * ms:.6f}"}
    return rows


def write_rows(rows: Rows, path: str = "times.csv", delimiter: str = ",") -> None:
    with Path(path).open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)


def build(*more: str) -> Outcome:
    return call(*NAMED, "--max-residual", "9", "--times", "times.csv", *more)


def test_every_network_is_a_file_with_an_empty_row() -> None:
    rows = empty_rows()
    assert sorted(row["file"] for row in rows) == [
        name for name in listing(Path("probes")) if name.endswith(".onnx")
    ]
    assert list(rows[0]) == ["file", "network", *(f"time_{n}_ms" for n in range(1, 6))]
    assert [row["network"] for row in rows[:3]] == ["reference", "null", "carrier 0"]
    assert not any(row["time_1_ms"] for row in rows)
    text = Path("probes/README.txt").read_text(encoding="utf-8")
    assert "a chip that a colleague has" in text
    assert f"{len(rows)} files (onnx, fp32, batch 1)" in text
    assert "--device chip.yaml --space toy --times times.csv" in text


def test_the_times_that_come_back_make_the_table() -> None:
    write_rows(filled_rows())
    built = build()
    assert built.code == 0, built.err
    table = load_table(TABLE)
    header = table.header
    assert (header.method, header.backend) == ("measured", "command")
    assert header.runtime == "the colleague's stopwatch 1"
    assert header.measurement is not None
    assert header.measurement.settings["timed"] == "by hand"
    assert (header.measurement.num_rounds, header.measurement.repeats) == (2, 1)
    assert header.measurement.noise == pytest.approx(0.01, rel=0.01)
    assert header.calibration is not None
    assert len(header.calibration.networks) >= 2
    (null,) = (row for row in empty_rows() if row["network"] == "null")
    size = Path("probes", null["file"]).stat().st_size
    assert header.null_ms == pytest.approx(1.0025 * (0.2 + size / 1e6), abs=1e-5)


def test_the_same_times_make_the_same_table_in_any_layout() -> None:
    write_rows(filled_rows())
    build("--output", "a.json")
    expected = load_table(Path("a.json")).entries
    microseconds = [
        {
            "file": row["file"],
            "time_us": f"{1e3 * float(row['time_1_ms']):.4f}",
            "time_2_s": f"{float(row['time_2_ms']) / 1e3:.9f}",
        }
        for row in reversed(filled_rows())
    ]
    write_rows(microseconds)
    assert build("--output", "b.json").code == 0
    german = [
        {key: value.replace(".", ",") if "time" in key else value for key, value in row.items()}
        for row in filled_rows()
    ]
    write_rows(german, delimiter=";")
    text = Path("times.csv").read_text(encoding="utf-8")
    Path("times.csv").write_text("\ufeff" + text, encoding="utf-8")
    assert build("--output", "c.json").code == 0
    for name in ("b.json", "c.json"):
        for entry, other in zip(load_table(Path(name)).entries, expected, strict=True):
            assert entry.latency_ms == pytest.approx(other.latency_ms, rel=1e-3)


def test_what_is_missing_is_named_and_can_follow() -> None:
    rows = filled_rows()
    late = [dict(row) for row in rows[-3:]]
    for row in rows[-3:]:
        row |= {"time_1_ms": "", "time_2_ms": ""}
    rows[-4]["time_2_ms"] = ""
    write_rows(rows)
    outcome = build()
    assert outcome.code == 2
    assert f"times are missing for 4 of {len(rows)} files (1 have one time" in outcome.err
    assert ", ".join(row["file"] for row in rows[-4:]) in outcome.err
    assert not TABLE.exists()
    rows[-4]["time_2_ms"] = rows[-4]["time_1_ms"]
    write_rows(rows)
    write_rows(late, "late.csv")
    outcome = build("--times", "late.csv")
    assert outcome.code == 0, outcome.err


def test_a_table_can_be_completed_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    trace_exports(monkeypatch)
    write_rows(filled_rows())
    build()
    before = load_table(TABLE)
    more = (*NAMED, "--only-missing", "--num-classes", "7")
    num_files = len(empty_rows())
    shutil.rmtree("probes")
    outcome = call(*more, "--probes", "probes")
    assert outcome.code == 0, outcome.err
    assert "--num-classes 7" in outcome.err + outcome.out
    rows = filled_rows()
    assert len(rows) < num_files
    write_rows(rows)
    outcome = call(*more, "--times", "times.csv")
    assert outcome.code == 0, outcome.err
    assert load_table(TABLE).entries[:-1] == before.entries


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[3].update(file="0003-other.onnx"), "is of other probes: 1 of its rows"),
        (lambda rows: rows.append(rows[4]), "has times already, in times.csv, line 6"),
        (lambda rows: rows[5].update(time_1_ms="-1"), "line 7, time_1_ms: '-1' is not a time"),
        (lambda rows: rows[5].update(time_1_ms="0"), "'0' is not a time"),
        (lambda rows: rows[5].update(time_2_ms="nan"), "'nan' is not a time"),
        (lambda rows: rows[5].update(time_2_ms="fast"), "'fast' is not a time"),
        (
            lambda rows: [row.update(time_1=row.pop("time_1_ms")) for row in rows],
            "column 'time_1' has no unit that is known; accepted: s, ms, us, ns",
        ),
        (
            lambda rows: [row.update(time_1_min=row.pop("time_1_ms")) for row in rows],
            "column 'time_1_min' has no unit that is known",
        ),
        (lambda rows: [row.update(mean_ms="1") for row in rows], "column 'mean_ms' is unknown"),
        (lambda rows: [row.pop("file") for row in rows], "has no column 'file'"),
        (
            lambda rows: [row.update({" file": row["file"]}) for row in rows],
            "has several columns 'file'",
        ),
        (lambda rows: rows[5].update(time_1_ms="1_000"), "'1_000' is not a time"),
        (lambda rows: rows[5].update(time_1_ms="1e40"), "'1e40' is not a time"),
        (
            lambda rows: [row.update(time_1_s=row.pop("time_1_ms") + "e306") for row in rows],
            "e306' is not a time",
        ),
        (
            lambda rows: [
                row.pop(key) for row in rows for key in list(row) if key.startswith("time")
            ],
            "has no column with times",
        ),
        (
            lambda rows: [
                row.update({key: f"{float(row[key]) / 1e3:.9f}"})
                for row in rows
                for key in ("time_1_ms", "time_2_ms")
            ],
            "more than 100 times shorter",
        ),
    ],
)
def test_a_faulty_file_is_one_error(change: Change, message: str) -> None:
    rows = filled_rows()
    change(rows)
    write_rows(rows)
    outcome = build()
    assert outcome.code == 2
    assert message in " ".join(outcome.err.split())
    assert "Traceback" not in outcome.err
    assert not TABLE.exists()


def test_a_row_without_its_file_is_one_error() -> None:
    Path("times.csv").write_text("time_1_ms,file\n1.5\n", encoding="utf-8")
    outcome = build()
    assert outcome.code == 2
    assert "times.csv, line 2: 1 cells for 2 columns" in outcome.err


def test_times_that_do_not_add_up_are_refused_with_their_files() -> None:
    rows = filled_rows()
    for row in rows[-3:]:
        row |= {"time_1_ms": "90", "time_2_ms": "90"}
    write_rows(rows)
    outcome = call(*NAMED, "--max-residual", "0.0001", "--times", "times.csv")
    assert outcome.code == 3
    assert "the table's residual is" in outcome.err
    assert ".onnx" in outcome.err
    assert not TABLE.exists()


def test_what_does_not_fit_is_refused() -> None:
    write_rows(filled_rows())
    for options, message in (
        ((*NAMED, "--probes", "probes"), "exists"),
        ((*NAMED, "--probes", "new", "--times", "times.csv"), "Give one of them"),
        ((*NAMED, "--times", "times.csv", "--only-suspect"), "Omit --only-suspect"),
        ((*NAMED, "--times", "times.csv", "--backend", "onnxruntime"), "Omit --only-suspect"),
        ((*NAMED, "--times", "absent.csv"), "absent.csv"),
        ((*NAMED, "--times", "chip.yaml"), "has no column 'file'"),
        (("build-lut", "--device", "cpu", "--space", "toy", "--probes", "new"), "no section"),
        ((*NAMED, "--allow-commands"), "is measured by hand"),
    ):
        outcome = call(*options)
        assert outcome.code == 2, options
        assert message in outcome.err, options
    assert not Path("new").exists()
