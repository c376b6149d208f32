"""build-lut: making and completing tables."""

import shlex
from pathlib import Path

import pytest
import yaml

from quadranas.commands.build_lut import BuildLutResult, build_lut
from quadranas.errors import MissingEntryError, QuadranasError
from quadranas.latency.device import load_device
from quadranas.latency.table import LatencyTable
from quadranas.latency.table_files import find_table, load_table
from quadranas.measurement.table_request import CLASS_COUNTS
from quadranas.space.space_file import load_space
from tests.command_line import call
from tests.latency.test_device import BOARD
from tests.typed_results import parsed


@pytest.fixture(autouse=True)
def working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_ones_own_device_gets_a_table_that_is_found(tmp_path: Path) -> None:
    (tmp_path / "board.yaml").write_text(yaml.safe_dump(BOARD))
    space = load_space("toy")
    result = build_lut(space, device=load_device("board.yaml"))
    path, table = result.path, result.table()
    assert path == Path("latency_tables/toy/board.json")
    assert find_table(space, "board.yaml") == table
    heads = [entry for entry in table.entries if entry.op.is_head]
    assert [entry.op.out_channels for entry in heads] == [10, 100, 1000]
    assert set(CLASS_COUNTS) == {10, 100, 1000}


def test_only_missing_fills_the_gap_and_keeps_the_rest() -> None:
    space, device = load_space("toy"), load_device("vpu")
    result = build_lut(space, device=device)
    path, table = result.path, result.table()
    marked = table.entries[0].model_copy(update={"latency_ms": 123.0})
    torn = table.model_copy(update={"entries": (marked, *table.entries[2:])})
    torn.save(path)
    with pytest.raises(MissingEntryError):
        find_table(space, "vpu")
    build_lut(space, device=device, only_missing=True)
    filled = find_table(space, "vpu")
    assert filled.latencies_ms[marked.op] == 123.0
    assert set(filled.latencies_ms) == set(table.latencies_ms)
    gap = table.entries[1]
    assert filled.latencies_ms[gap.op] == gap.latency_ms


def entry_lines(path: Path) -> list[str]:
    return [line for line in path.read_text().splitlines() if '"latency_ms"' in line]


def test_only_missing_keeps_the_lines_of_the_file() -> None:
    space, device = load_space("toy"), load_device("cpu")
    path = build_lut(space, device=device).path
    before = entry_lines(path)
    build_lut(space, device=device, only_missing=True, num_classes=[7])
    after = entry_lines(path)
    assert len(after) == len(before) + 1
    assert [line.rstrip(",") for line in after[:-1]] == [line.rstrip(",") for line in before]


def test_only_missing_keeps_the_calibration() -> None:
    space, device = load_space("toy"), load_device("cpu")
    result = build_lut(space, device=device)
    path, table = result.path, result.table()
    calibrated = table.header.model_copy(update={"scale": 1.05, "null_ms": 0.002})
    table.model_copy(update={"header": calibrated}).save(path)
    completed = build_lut(space, device=device, only_missing=True).table()
    assert (completed.header.scale, completed.header.null_ms) == (1.05, 0.002)


def test_only_missing_without_a_table_makes_one() -> None:
    space, device = load_space("toy"), load_device("cpu")
    result = build_lut(space, device=device, only_missing=True, output=Path("new.json"))
    table = load_table(Path("new.json"))
    assert (result.path, result.table()) == (Path("new.json"), table)
    assert (result.device, result.space, result.method) == ("cpu", "toy", "analytic")
    assert (result.entries, result.summary) == (len(table.entries), table.header.summary())
    assert table.entries == build_lut(space, device=device).table().entries


@pytest.mark.parametrize("which", ["operation", "classes", "file"])
def test_the_command_in_the_error_fills_the_gap(which: str, tmp_path: Path) -> None:
    space = load_space("toy").with_num_classes(2000 if which == "classes" else 10)
    own = tmp_path / "my table.json" if which == "file" else None
    result = build_lut(load_space("toy"), device=load_device("vpu"), output=own)
    path, table = result.path, result.table()
    if which != "classes":
        table.model_copy(update={"entries": table.entries[3:]}).save(path)
    with pytest.raises(MissingEntryError) as caught:
        find_table(space, "vpu", own)
    program, *arguments = shlex.split(caught.value.hint.removeprefix("Fill it with: "))
    assert program == "quadranas"
    outcome = call(*arguments)
    assert outcome.code == 0, outcome.err
    filled = find_table(space, "vpu", own)
    assert set(filled.entries) >= set(table.entries)


def test_ones_own_space_and_device_work_from_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "board.yaml").write_text(yaml.safe_dump(BOARD))
    (tmp_path / "mine.yaml").write_text("extends: toy\nname: mine\nwidths: [4, 12]\n")
    with pytest.raises(QuadranasError, match="no latency table of device 'board'"):
        find_table(load_space("mine.yaml"), "board.yaml")
    outcome = call("build-lut", "--device", "board.yaml", "--space", "mine.yaml")
    assert outcome.code == 0, outcome.err
    table = find_table(load_space("mine.yaml"), "board.yaml")
    assert table.header.command == "quadranas build-lut --device board.yaml --space mine.yaml"
    assert table.header.title == "a board"


def test_more_classes_are_priced_on_request() -> None:
    space, device = load_space("toy"), load_device("vpu")
    build_lut(space, device=device, only_missing=True, num_classes=[5000])
    table = find_table(space.with_num_classes(5000), "vpu")
    assert any(entry.op.out_channels == 5000 for entry in table.entries)


def test_a_table_of_another_kind_is_not_completed() -> None:
    space = load_space("toy")
    path = build_lut(space, device=load_device("vpu")).path
    with pytest.raises(QuadranasError, match="made with device 'vpu'; expected 'cpu'"):
        build_lut(space, device=load_device("cpu"), output=path, only_missing=True)
    assert load_table(path).header.device == "vpu"


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            *("analytic", BOARD["analytic"] | {"runtime": "another"}),
            "with runtime 'a runtime'; expected 'another'",
        ),
        ("precision", "fp16", "with precision 'fp32'; expected 'fp16'"),
        ("threads", 1, "with threads 4; expected 1"),
    ],
)
def test_a_table_of_another_runtime_is_not_completed(
    tmp_path: Path, key: str, value: object, message: str
) -> None:
    space = load_space("toy")
    (tmp_path / "board.yaml").write_text(yaml.safe_dump(BOARD))
    path = build_lut(space, device=load_device("board.yaml")).path
    before = path.read_bytes()
    (tmp_path / "board.yaml").write_text(yaml.safe_dump(BOARD | {key: value}))
    with pytest.raises(QuadranasError, match=message) as caught:
        build_lut(space, device=load_device("board.yaml"), only_missing=True)
    assert "Omit --only-missing" in caught.value.hint
    assert path.read_bytes() == before


@pytest.mark.parametrize("num_classes", [0, -1, 10**6])
def test_an_impossible_number_of_classes_is_refused(num_classes: int) -> None:
    with pytest.raises(QuadranasError, match=str(num_classes)):
        build_lut(load_space("toy"), device=load_device("vpu"), num_classes=[num_classes])
    assert not Path("latency_tables").exists()


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(QuadranasError, match="cannot write folder"):
        build_lut(load_space("toy"), device=load_device("vpu"), output=Path("folder"))
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_git_is_not_needed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert build_lut(load_space("toy"), device=load_device("vpu")).table().header.commit == ""


def test_an_unknown_backend_suggests_the_nearest() -> None:
    with pytest.raises(QuadranasError, match=r"unknown backend 'analytical'.*'analytic'"):
        build_lut(load_space("toy"), device=load_device("vpu"), backend="analytical")


def test_a_device_without_a_model_says_what_to_add(tmp_path: Path) -> None:
    bare = {key: value for key, value in BOARD.items() if key != "analytic"}
    (tmp_path / "bare.yaml").write_text(yaml.safe_dump(bare))
    with pytest.raises(QuadranasError, match="has no analytic model") as caught:
        build_lut(load_space("toy"), device=load_device("bare.yaml"))
    assert "'analytic'" in caught.value.hint
    assert not Path("latency_tables").exists()


def test_building_twice_gives_the_same_entries() -> None:
    tables: list[LatencyTable] = [
        build_lut(load_space("toy"), device=load_device("gpu"), output=Path(f"{i}.json")).table()
        for i in range(2)
    ]
    assert tables[0].entries == tables[1].entries


def test_the_command_prints_what_the_function_returns() -> None:
    command = ("build-lut", "--device", "vpu", "--space", "toy")
    printed = parsed(call(*command, "--json"), BuildLutResult)
    assert printed == build_lut("toy", device="vpu")
    path, summary = Path("latency_tables/toy/vpu.json"), printed.table().header.summary()
    assert (printed.path, printed.summary) == (path, summary)
    assert call(*command).out == (
        f"{path}: {printed.entries} entries, {summary}\n"
        "next: quadranas search --device vpu --space toy --budget 1.01ms\n"
    )


def test_settings_replace_those_of_the_device_s_file() -> None:
    header = build_lut("toy", device="cpu", threads=2, batch_size=4, precision=None).table().header
    assert (header.threads, header.batch_size) == (2, 4)
    assert header.precision == load_device("cpu").precision
