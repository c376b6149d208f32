"""A device that runs int8: its table, what is derived for it, and the file that it gets."""

import shutil
from pathlib import Path

import pytest

from quadranas.latency.table_files import load_table
from quadranas.runs.next_command import export_command
from quadranas.space.architecture import load_architecture
from tests.command_line import call
from tests.measuring import board, trace_exports

TABLE = Path("latency_tables/toy/board.json")
BUILD = ("build-lut", "--device", "board.yaml", "--space", "toy", "--rounds", "2")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exports: Path) -> None:
    monkeypatch.chdir(tmp_path)
    trace_exports(monkeypatch)
    board(precision="int8").save(tmp_path / "board.yaml")


def derived_ms(folder: str) -> float:
    return load_table(TABLE).predict_ms(load_architecture(Path(folder) / "architecture.json"))


def test_the_precision_that_is_deployed_is_searched_for(finished_run: Path) -> None:
    pytest.importorskip("onnxruntime")
    built = call(*BUILD, "--max-residual", "9")
    assert built.code == 0, built.err
    table = load_table(TABLE)
    assert table.header.precision == "int8"
    shutil.copytree(finished_run, "run")
    derived = call(
        *("derive", "run", "--device", "board.yaml", "--budget", "1s", "--output", "net"),
    )
    assert derived.code == 0, derived.err
    assert export_command(Path("net")) == "quadranas export net --format onnx --precision int8"
    refused = call("export", "net", "--device", "board.yaml", "--format", "onnx")
    assert refused.code == 2
    assert "device 'board' runs int8" in refused.err
    assert "Add --precision int8" in refused.err
    exported = call(
        *("export", "net", "--device", "board.yaml", "--format", "onnx", "--precision", "int8"),
        *("--max-drop", "100", "--json"),
    )
    assert exported.code == 0, exported.err
    result = exported.json()
    assert result["precision"] == "int8"
    assert result["predicted_ms"] == pytest.approx(derived_ms("net"))
