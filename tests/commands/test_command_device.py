"""Devices of the runtime `command`, from the table to the export."""

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from quadranas.deployment.bundle import open_bundle
from quadranas.latency.table_files import load_table
from tests.command_line import call
from tests.measuring import trace_exports

SIZE_AS_TIME = """
import os, sys, time
ms = 0.2 + os.path.getsize(sys.argv[1]) / 1e6
time.sleep(ms / 1e3)
print("call took", ms, "ms\\n" * int(sys.argv[2]))
"""
"""A tool that takes a time for every byte of a file."""

COMMAND: dict[str, Any] = {
    "tool": "size 1.0",
    "format": "onnx",
    "run": [sys.executable, "-SIc", SIZE_AS_TIME, "{file}", "{repeats}"],
    "times": {"pattern": "call took ([0-9.]+) ms", "unit": "ms"},
}
DEVICE = {"name": "board", "title": "a board", "runtime": "command", "precision": "fp32"}

BUILD = (
    *("build-lut", "--device", "board.yaml", "--space", "toy", "--rounds", "2"),
    *("--max-residual", "99"),
)


@pytest.fixture(autouse=True)
def described(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exports: Path) -> None:
    """A working folder with the device's file."""
    monkeypatch.chdir(tmp_path)
    trace_exports(monkeypatch)
    describe()


def describe(**command: Any) -> None:
    """Write the device's file, with changes to its command."""
    content = DEVICE | {"command": COMMAND | command}
    Path("board.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")


def test_a_command_measures_validates_derives_and_exports(finished_run: Path) -> None:
    refused = call(*BUILD)
    assert refused.code == 2
    assert "--allow-commands" in refused.err
    assert not Path("latency_tables").exists()
    built = call(*BUILD, "--allow-commands")
    assert built.code == 0, built.err
    header = load_table(Path("latency_tables/toy/board.json")).header
    assert (header.backend, header.runtime) == ("command", "size 1.0")
    assert header.measurement is not None
    assert header.measurement.hardware == "a board"
    assert header.measurement.settings["format"] == "onnx"
    assert header.measurement.dropped == "unknown"

    derive = ("derive", finished_run, "--device", "board.yaml", "--budget", "1s", "--json")
    plain = call(*derive, "--output", "plain").json()
    assert plain["measured_ms"] is None
    assert "a command of its file" in plain["not_measured"]
    measured = call(*derive, "--output", "derived", "--allow-commands").json()
    assert 0.2 < measured["measured_ms"] < 100

    # A run folder describes the device, but never chooses what is started.
    again = call(
        *("derive", finished_run, "--device", "derived", "--budget", "1s", "--output", "again"),
        *("--allow-commands", "--json"),
    ).json()
    assert again["measured_ms"] is None
    assert "has no section 'command'" in again["not_measured"]

    describe(tool="size 2.0")
    other = call("validate-lut", "--device", "board.yaml", "--space", "toy", "--allow-commands")
    assert other.code == 2
    assert "runtime size 1.0, not size 2.0" in other.err


def test_an_export_is_checked_here_and_timed_by_the_command(finished_run: Path) -> None:
    export = ("export", finished_run, "--device", "board.yaml", "--images", "4", "--json")
    here = call(*export, "--output", "here")
    assert here.code == 0, here.err
    assert here.json()["measured_on"] == "host"
    there = call(*export, "--output", "there", "--allow-commands")
    assert there.code == 0, there.err
    assert there.json()["measured_on"] == "board"
    size = Path("there/model.onnx").stat().st_size
    assert there.json()["measured_ms"] == pytest.approx(0.2 + size / 1e6)
    latency = open_bundle(Path("there")).manifest.latency
    assert latency.measured is not None
    assert "a board, size 1.0" in latency.measured.source
    other = call(*export, "--output", "other", "--allow-commands", "--format", "torch")
    assert other.code == 2
    assert "its command times onnx files, not torch" in other.err
    assert not Path("other").exists()


BREAKS_DOWN = """
import os, sys
open("calls", "a").write(".")
os.path.getsize("calls") > 40 and not os.path.exists("repaired") and sys.exit("board lost")
"""


def test_a_tool_that_breaks_down_keeps_what_was_measured() -> None:
    text = BREAKS_DOWN + SIZE_AS_TIME
    describe(run=[sys.executable, "-SIc", text, "{file}", "{repeats}"])
    lost = call(*BUILD, "--allow-commands")
    assert lost.code == 2
    assert "ended with code 1; its last lines:\n  board lost" in lost.err
    assert not Path("latency_tables/toy/board.json").exists()
    timings = Path("latency_tables/toy/board.json.timings").read_text(encoding="utf-8")
    assert timings.count("\n") == 1 + 40
    Path("repaired").touch()
    done = call(*BUILD, "--allow-commands")
    assert done.code == 0, done.err
    assert "continuing with 40 timings" in done.err
