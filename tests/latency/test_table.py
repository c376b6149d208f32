"""Latency tables: lookups, provenance, what is missing, what is refused."""

import json
import math
import shlex
from fractions import Fraction
from itertools import permutations
from pathlib import Path

import pytest

from quadranas.errors import MissingEntryError, QuadranasError
from quadranas.latency.analytic import op_latency_ms
from quadranas.latency.device import load_device, shipped_devices
from quadranas.latency.table import LatencyTable
from quadranas.latency.table_files import find_table, load_table, table_paths
from quadranas.space.architecture import LayerChange
from quadranas.space.space_file import load_space, space_files

DEVICES = [name for name in shipped_devices() if load_device(name).analytic is not None]


@pytest.fixture
def toy_table() -> LatencyTable:
    return find_table(load_space("toy"), "vpu")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", sorted(space_files()))
def test_shipped_tables_are_what_the_models_say_today(name: str, device: str) -> None:
    space = load_space(name)
    table = find_table(space, device)
    opened = load_device(device)
    assert opened.analytic is not None
    header = table.header
    assert (header.method, header.backend, header.statistic) == ("analytic", "analytic", "model")
    assert header.fitted_to == opened.analytic.fitted_to
    assert header.expected_error == opened.analytic.expected_error
    assert (header.runtime, header.precision) == (opened.analytic.runtime, opened.precision)
    assert header.command.startswith("quadranas build-lut")
    for num_classes in (10, 100, 1000):
        table.require(space.with_num_classes(num_classes).specs())
    for op, latency_ms in table.latencies_ms.items():
        expected_ms = op_latency_ms(op, opened.analytic, opened.precision)
        assert latency_ms == pytest.approx(expected_ms, rel=1e-12)


def test_a_network_is_the_sum_of_its_operations(toy_table: LatencyTable) -> None:
    network = load_space("toy").extreme(toy_table.op_ms, largest=True)
    total = sum(toy_table.latencies_ms[op] for op in network.ops())
    assert toy_table.predict_ms(network) == pytest.approx(total)
    header = toy_table.header.model_copy(update={"scale": 1.5, "null_ms": 0.01})
    scaled = toy_table.model_copy(update={"header": header})
    count = len(list(network.ops()))
    expected_ms = 1.5 * (total - 0.01 * count) + 0.01
    assert scaled.predict_ms(network) == pytest.approx(expected_ms)


def test_the_order_of_operations_does_not_matter(toy_table: LatencyTable) -> None:
    """0.1 + 0.2 + 0.3 and 0.3 + 0.2 + 0.1 differ; a budget must not tell such networks apart."""
    space = load_space("toy")
    values = [0.1, 0.2, 0.3, 0.7, 1.1]
    entries = tuple(
        entry.model_copy(update={"latency_ms": values[index % len(values)]})
        for index, entry in enumerate(toy_table.entries)
    )
    table = toy_table.model_copy(update={"entries": entries})
    network = space.extreme(lambda op: table.latencies_ms[op], largest=True)
    latencies_ms = [table.latencies_ms[op] for op in network.ops()]
    assert len({sum(order) for order in permutations(latencies_ms[:6])}) > 1
    assert table.predict_ms(network) == float(sum(map(Fraction, latencies_ms)))


def test_a_missing_entry_names_the_command(toy_table: LatencyTable) -> None:
    entry = toy_table.entries[1]
    kept = toy_table.entries[:1] + toy_table.entries[2:]
    torn = LatencyTable(header=toy_table.header, entries=kept)
    with pytest.raises(MissingEntryError, match="has no entry for 1 operation, first: ") as caught:
        torn.require(load_space("toy").specs())
    assert str(entry.op) in caught.value.message
    assert "quadranas build-lut --device vpu --space toy" in caught.value.hint
    assert "--only-missing" in caught.value.hint


def test_a_head_is_bounded_by_the_next_larger_one(toy_table: LatencyTable) -> None:
    def head(num_classes: int) -> float:
        *_, op = load_space("toy").with_num_classes(num_classes).specs()
        return toy_table.op_ms(op)

    assert head(37) == head(100)
    assert head(10) < head(37) < head(1000)
    with pytest.raises(MissingEntryError, match=r"no entry for 1 operation.*->1001") as caught:
        head(1001)
    assert caught.value.hint.endswith("--num-classes 1001")


def test_a_head_is_bounded_by_one_of_its_own_kind_only(toy_table: LatencyTable) -> None:
    *_, head = load_space("toy").specs()
    for other in ({"kind": "linear_head"}, {"in_channels": 8}, {"resolution": 8}):
        with pytest.raises(MissingEntryError):
            toy_table.op_ms(head.model_copy(update=other))


def test_a_table_survives_its_file(tmp_path: Path, toy_table: LatencyTable) -> None:
    toy_table.save(tmp_path / "table.json")
    assert load_table(tmp_path / "table.json") == toy_table


def saved(path: Path, table: LatencyTable, **header: object) -> Path:
    table.save(path)
    content = json.loads(path.read_text())
    content["header"] |= header
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (
            {"space": "quadranet-mobile"},
            "made for space 'quadranet-mobile', not for the current space 'toy'",
        ),
        ({"space_digest": "0" * 16}, "made for another version of space"),
        ({"device": "cpu"}, "made for device 'cpu', not for 'vpu'"),
        ({"format_version": 99}, "format_version 99 is newer"),
        ({"method": "guessed"}, r"header\.method"),
        ({"scale": 0}, r"header\.scale: .*0"),
        ({"scale": math.inf}, r"header\.scale: .*inf"),
        ({"null_ms": math.nan}, r"header\.null_ms: .*nan"),
        ({"null_ms": math.inf}, r"header\.null_ms: .*inf"),
        ({"scale": 1e308}, r"header\.scale: .*1e\+308"),
        ({"scale": True}, r"header\.scale: .*True"),
        ({"null_ms": 1e308}, r"header\.null_ms: .*1e\+308"),
        ({"threads": "1"}, r"header\.threads: .*'1'"),
        ({"precison": "fp16"}, r"header\.precison: unknown key.*did you mean 'precision'"),
    ],
)
def test_the_wrong_table_is_refused(
    tmp_path: Path, toy_table: LatencyTable, header: dict[str, object], message: str
) -> None:
    path = saved(tmp_path / "table.json", toy_table, **header)
    with pytest.raises(QuadranasError, match=message):
        find_table(load_space("toy"), "vpu", path)


@pytest.mark.parametrize(
    "latency", ["NaN", "-1.0", "0.0", "Infinity", '"fast"', "1e308", "5e-324", "true", '"1.0"']
)
def test_impossible_latencies_are_refused(
    tmp_path: Path, toy_table: LatencyTable, latency: str
) -> None:
    path = tmp_path / "table.json"
    toy_table.save(path)
    value = repr(toy_table.entries[0].latency_ms)
    path.write_text(path.read_text().replace(value, latency, 1))
    with pytest.raises(QuadranasError, match=r"entries\.0\.latency_ms"):
        load_table(path)


def test_a_torn_or_missing_table_is_named(tmp_path: Path, toy_table: LatencyTable) -> None:
    path = tmp_path / "table.json"
    toy_table.save(path)
    path.write_text(path.read_text()[:-100])
    with pytest.raises(QuadranasError, match=r"table\.json: not valid JSON"):
        load_table(path)
    with pytest.raises(QuadranasError, match=r"no latency table of device 'board'") as caught:
        find_table(load_space("toy"), load_device("vpu").configured(name="board"))
    assert caught.value.hint.endswith("quadranas build-lut --device board --space toy")


def test_the_command_for_ones_own_file_writes_that_file(
    tmp_path: Path, toy_table: LatencyTable
) -> None:
    space, path = load_space("toy"), tmp_path / "my table.json"
    option = f"--output {shlex.quote(str(path))}"
    with pytest.raises(QuadranasError, match="no latency table") as caught:
        find_table(space, "vpu", path)
    assert caught.value.hint.endswith(option)
    for header in ({"device": "cpu"}, {"space_digest": "0" * 16}):
        with pytest.raises(QuadranasError, match="was made for") as caught:
            find_table(space, "vpu", saved(path, toy_table, **header))
        assert caught.value.hint.endswith(option)
    toy_table.model_copy(update={"entries": toy_table.entries[1:]}).save(path)
    with pytest.raises(MissingEntryError) as caught:
        find_table(space, "vpu", path)
    assert option in caught.value.hint
    assert "--only-missing" in caught.value.hint


def test_two_entries_of_one_operation_are_refused(toy_table: LatencyTable) -> None:
    entries = [entry.model_dump() for entry in (*toy_table.entries, toy_table.entries[0])]
    with pytest.raises(ValueError, match="two entries"):
        LatencyTable.model_validate({"header": toy_table.header.model_dump(), "entries": entries})


def test_the_working_folder_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, toy_table: LatencyTable
) -> None:
    monkeypatch.chdir(tmp_path)
    header = toy_table.header.model_copy(update={"title": "mine"})
    toy_table.model_copy(update={"header": header}).save(table_paths("toy", "vpu")[0])
    assert find_table(load_space("toy"), "vpu").header.title == "mine"


def test_an_entry_below_a_null_call_is_refused(tmp_path: Path, toy_table: LatencyTable) -> None:
    path = saved(tmp_path / "table.json", toy_table, null_ms=1000.0)
    with pytest.raises(QuadranasError, match="below null_ms"):
        load_table(path)


def test_replaced_layers_have_no_latency(toy_table: LatencyTable) -> None:
    network = load_space("toy").extreme(toy_table.op_ms, largest=True)
    change = LayerChange(name="blocks.stem.patch_stem.conv", kind="quadratic")
    changed = network.model_copy(update={"changes": (change,)})
    with pytest.raises(QuadranasError, match="has 1 replaced layers, which latency tables do not"):
        toy_table.predict_ms(changed)


@pytest.mark.parametrize(
    ("runtime", "backend"),
    [("OpenVINO 2021.4.2 (MYRIAD)", "openvino2021"), ("OpenVINO 2026.4.1 (CPU)", "openvino")],
)
def test_the_tables_of_0_1_0_still_open(
    tmp_path: Path, toy_table: LatencyTable, runtime: str, backend: str
) -> None:
    """It called the runtime of a Myriad `openvino`."""
    measurement = {"hardware": "a stick", "versions": {}, "settings": {}, "num_rounds": 40}
    measurement |= {"repeats": 20, "num_disturbed": 0, "noise": 0.0, "reference_ms": 1.0}
    header = {"method": "measured", "backend": "openvino", "runtime": runtime}
    path = saved(tmp_path / "table.json", toy_table, **header, measurement=measurement)
    assert load_table(path).header.backend == backend


def test_a_key_twice_is_refused_by_its_line(tmp_path: Path, toy_table: LatencyTable) -> None:
    path = tmp_path / "table.json"
    toy_table.save(path)
    path.write_text(path.read_text().replace('"scale": 1.0,', '"scale": 1.0, "scale": 0.001,'))
    line = path.read_text().split('"scale"')[0].count("\n") + 1
    with pytest.raises(QuadranasError, match=rf"duplicate key 'scale', line {line}$"):
        load_table(path)
