"""A device's table made of another's by measuring a few whole networks."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch import nn

from quadranas.latency.table_files import find_table, load_table
from quadranas.latency.transfer import kind_of, telling_networks
from quadranas.measurement.probes import network_probe
from quadranas.space.space_file import load_space
from tests.command_line import call, listing
from tests.measuring import ScriptedBackend, board, measured_by, trace_exports

SPACE = load_space("toy")
SOURCE = find_table(SPACE, "cpu")
NETWORKS = telling_networks(SPACE, SOURCE, 8)
NULL_MS = 0.02
CALIBRATE = ("calibrate", "--device", "board.yaml", "--space", "toy", "--from", "cpu")
MEASURE = (*CALIBRATE, "--measure", "8", "--rounds", "2")
TABLE = Path("latency_tables/toy/board.json")
PROGRAMS = {str(network_probe(network)): network for network in NETWORKS}


def factor(kind: str) -> float:
    """The device is fast in all but the quadratic convolutions."""
    return 3.0 if kind.startswith("quadratic") else 0.5


def network_ms(network: nn.Module, shape: Sequence[int]) -> float:
    if isinstance(network, nn.ReLU):
        return NULL_MS
    known = PROGRAMS.get(str(network))
    if known is None:
        return 1.0  # the reference
    return NULL_MS + sum(factor(kind_of(op)) * SOURCE.op_ms(op) for op in known.ops())


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    board().save(tmp_path / "board.yaml")


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> ScriptedBackend:
    script = ScriptedBackend(network_ms)
    measured_by(script, monkeypatch)
    return script


@pytest.mark.usefixtures("backend")
def test_a_table_of_another_device_fits_after_eight_networks() -> None:
    outcome = call(*MEASURE, "--json")
    assert outcome.code == 0, outcome.err
    result = outcome.json()
    assert result["path"] == str(TABLE)
    assert (result["networks"], result["times"]) == (8, None)
    assert result["mape"] < 0.01
    table = load_table(TABLE)
    header = table.header
    assert (header.method, header.device, header.backend) == ("calibrated", "board", "onnxruntime")
    assert header.transfer is not None
    assert header.transfer.source.startswith("cpu: analytic (")
    assert header.transfer.factors == result["factors"]
    assert header.calibration is not None
    assert "MAPE on 8 networks, each predicted from the others" in header.expected_error
    for network in NETWORKS:
        expected = network_ms(network_probe(network), ())
        assert table.predict_ms(network) == pytest.approx(expected, rel=0.01)
    assert listing(TABLE.parent) == ["board.json"]


@pytest.mark.usefixtures("backend")
def test_the_table_serves_a_derivation_and_a_validation(finished_run: Path) -> None:
    assert call(*MEASURE).code == 0
    budget = ("--device", "board.yaml", "--budget", "2ms", "--confidence", "0.9")
    derived = call("derive", finished_run, *budget, "--output", "net", "--json")
    assert derived.code == 0, derived.err
    assert derived.json()["table"]["method"] == "calibrated"
    validated = call(
        *("validate-lut", "--device", "board.yaml", "--space", "toy", "--networks", "2"),
        *("--rounds", "2", "--json"),
    )
    assert validated.code == 0, validated.err
    assert load_table(TABLE).header.validation is not None


def test_an_interrupted_measurement_continues(
    backend: ScriptedBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(count: int) -> None:
        if count == 9:
            raise KeyboardInterrupt

    measured_by(ScriptedBackend(network_ms, before=stop), monkeypatch)
    assert call(*MEASURE).code == 130
    assert listing(TABLE.parent) == ["board.json.timings"]
    measured_by(backend, monkeypatch)
    outcome = call(*MEASURE)
    assert outcome.code == 0, outcome.err
    assert backend.timed.total() < 2 * (8 + 2 + 5)
    assert listing(TABLE.parent) == ["board.json"]


@pytest.mark.usefixtures("backend")
def test_a_table_is_not_saved_above_the_residual() -> None:
    outcome = call(*MEASURE, "--max-residual", "0")
    assert outcome.code == 3
    assert "above --max-residual 0%; it is not saved" in outcome.err
    assert not TABLE.exists()
    assert call(*MEASURE).code == 0


@pytest.mark.usefixtures("backend")
def test_a_measured_table_is_not_replaced() -> None:
    assert call(*MEASURE).code == 0
    content = json.loads(TABLE.read_text("utf-8"))
    content["header"] |= {"method": "measured"}
    del content["header"]["transfer"]
    TABLE.write_text(json.dumps(content), encoding="utf-8")
    before = TABLE.read_bytes()
    outcome = call(*MEASURE)
    assert outcome.code == 2
    assert "was made with method 'measured'; expected 'calibrated'" in outcome.err
    assert TABLE.read_bytes() == before


@pytest.mark.usefixtures("backend")
def test_a_class_count_without_an_entry_names_the_command() -> None:
    assert call(*MEASURE).code == 0
    with pytest.raises(Exception, match="no entry for 1 operation") as caught:
        load_table(TABLE).require(SPACE.with_num_classes(1001).specs())
    assert caught.value.hint == (  # type: ignore[attr-defined]
        f"Make it again with: quadranas {' '.join(MEASURE)} --num-classes 1001"
    )


WRONG: dict[str, tuple[tuple[str, str], str]] = {
    "no such device": (("--from", "cpy"), "did you mean 'cpu'?"),
    "no such file": (("--from", "no.json"), "no.json"),
    "another space": (("--from", "mobile.json"), "not for the current space 'toy'"),
    "no table": (("--from", "other.yaml"), "no latency table of device 'other' for space 'toy'"),
    "too few": (("--measure", "3"), "--measure"),
}


@pytest.mark.parametrize(("change", "message"), WRONG.values(), ids=WRONG)
@pytest.mark.usefixtures("backend")
def test_bad_input_is_one_message(change: tuple[str, str], message: str) -> None:
    find_table(load_space("quadranet-mobile"), "cpu").save(Path("mobile.json"))
    board(name="other").save(Path("other.yaml"))
    key, value = change
    given = list(MEASURE)
    given[given.index(key) + 1] = value
    outcome = call(*given)
    assert outcome.code == 2
    assert message in outcome.err
    assert not TABLE.exists()


# By hand

CHIP: dict[str, Any] = {
    "name": "board",
    "title": "a chip that a colleague has",
    "runtime": "command",
    "precision": "fp32",
    "command": {"tool": "the colleague's stopwatch 1", "format": "onnx"},
}


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def write_rows(rows: list[dict[str, str]]) -> None:
    with Path("times.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@pytest.mark.usefixtures("exports")
def test_networks_can_be_timed_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    trace_exports(monkeypatch)
    Path("board.yaml").write_text(yaml.safe_dump(CHIP), encoding="utf-8")
    written = call(*CALIBRATE, "--measure", "5", "--probes", "probes", "--json")
    assert written.code == 0, written.err
    assert written.json()["networks"] == 5
    readme = Path("probes/README.txt").read_text("utf-8")
    assert f"quadranas {' '.join(CALIBRATE)} --times times.csv" in readme
    networks = {network.name: network for network in telling_networks(SPACE, SOURCE, 5)}
    rows = rows_of(Path("probes/times.csv"))
    assert [row["network"] for row in rows] == ["reference", "null", *networks]
    for row in rows:
        ms = {"reference": 1.0, "null": NULL_MS}.get(row["network"])
        if ms is None:
            ops = networks[row["network"]].ops()
            ms = NULL_MS + sum(factor(kind_of(op)) * SOURCE.op_ms(op) for op in ops)
        row |= {"time_1_ms": f"{ms:.6f}", "time_2_ms": f"{ms:.6f}"}
    write_rows([row for row in rows if row["network"] != "null"])
    missing = call(*CALIBRATE, "--times", "times.csv")
    assert missing.code == 2
    assert "times are missing for 1 of 7 files" in missing.err
    write_rows(rows[:5])
    few = call(*CALIBRATE, "--times", "times.csv")
    assert few.code == 2
    assert "3 networks have times; a table needs at least 4" in few.err
    write_rows(rows)
    made = call(*CALIBRATE, "--times", "times.csv", "--json")
    assert made.code == 0, made.err
    assert made.json()["mape"] < 0.05
    header = load_table(TABLE).header
    assert header.method == "calibrated"
    assert header.measurement is not None
    assert header.measurement.settings["timed"] == "by hand"
