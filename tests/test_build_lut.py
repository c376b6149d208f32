"""build-lut: making and completing tables."""

from pathlib import Path

import pytest
import yaml

from quadranas.build_lut import CLASS_COUNTS, build_lut
from quadranas.errors import MissingEntryError, QuadranasError
from quadranas.latency.device import load_device
from quadranas.latency.table import LatencyTable, find_table, load_table
from quadranas.space import load_space
from tests.latency.test_device import BOARD


@pytest.fixture(autouse=True)
def working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_ones_own_device_gets_a_table_that_is_found(tmp_path: Path) -> None:
    (tmp_path / "board.yaml").write_text(yaml.safe_dump(BOARD))
    space = load_space("toy")
    path, table = build_lut(space, load_device("board.yaml"))
    assert path == Path("latency_tables/toy/board.json")
    assert find_table(space, "board") == table
    heads = [entry for entry in table.entries if entry.op.is_head]
    assert [entry.op.out_channels for entry in heads] == [10, 100, 1000]
    assert set(CLASS_COUNTS) == {10, 100, 1000}


def test_only_missing_fills_the_gap_and_keeps_the_rest() -> None:
    space, device = load_space("toy"), load_device("vpu")
    path, table = build_lut(space, device)
    marked = table.entries[0].model_copy(update={"latency_ms": 123.0})
    torn = table.model_copy(update={"entries": (marked, *table.entries[2:])})
    torn.save(path)
    with pytest.raises(MissingEntryError):
        find_table(space, "vpu")
    build_lut(space, device, only_missing=True)
    filled = find_table(space, "vpu")
    assert filled.latencies_ms[marked.op] == 123.0
    assert set(filled.latencies_ms) == set(table.latencies_ms)
    gap = table.entries[1]
    assert filled.latencies_ms[gap.op] == gap.latency_ms


def test_more_classes_are_priced_on_request() -> None:
    space, device = load_space("toy"), load_device("vpu")
    build_lut(space, device, only_missing=True, num_classes=[5000])
    table = find_table(space.with_num_classes(5000), "vpu")
    assert any(entry.op.out_channels == 5000 for entry in table.entries)


def test_a_table_of_another_kind_is_not_completed() -> None:
    space = load_space("toy")
    path, _ = build_lut(space, load_device("vpu"))
    with pytest.raises(QuadranasError, match="was made for toy/vpu/analytic"):
        build_lut(space, load_device("cpu"), output=path, only_missing=True)
    assert load_table(path).header.device == "vpu"


def test_an_unknown_backend_suggests_the_nearest() -> None:
    with pytest.raises(QuadranasError, match=r"unknown backend 'analytical'.*'analytic'"):
        build_lut(load_space("toy"), load_device("vpu"), backend="analytical")


def test_a_device_without_a_model_says_what_to_add(tmp_path: Path) -> None:
    bare = {key: value for key, value in BOARD.items() if key != "analytic"}
    (tmp_path / "bare.yaml").write_text(yaml.safe_dump(bare))
    with pytest.raises(QuadranasError, match="has no analytic model") as caught:
        build_lut(load_space("toy"), load_device("bare.yaml"))
    assert "'analytic'" in caught.value.hint
    assert not Path("latency_tables").exists()


def test_building_twice_gives_the_same_entries() -> None:
    tables: list[LatencyTable] = [
        build_lut(load_space("toy"), load_device("gpu"), output=Path(f"{i}.json"))[1]
        for i in range(2)
    ]
    assert tables[0].entries == tables[1].entries
