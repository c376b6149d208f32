"""What can go wrong with measured tables: one clear message, and what was measured is kept."""

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from quadranas.errors import DeviceLostError, QuadranasError
from quadranas.latency.table_files import load_table
from quadranas.measurement.lut_entries import calibration_networks
from quadranas.measurement.table_request import CLASS_COUNTS
from quadranas.space.space_file import load_space
from tests.command_line import Outcome, call, listing
from tests.measuring import Machine, ScriptedBackend, board, measured_by

BUILD = ("build-lut", "--device", "board.yaml", "--space", "toy", "--output", "t.json", "--json")
TIMINGS = "t.json.timings"

ROUNDED = [(0.0258, 0.0622), (0.0024, 0.0553)]
"""Pairs of numbers of which `a + (b - a)` is less than `b`, for b then and a now."""


def assert_one_message(outcome: Outcome, error: str) -> None:
    assert outcome.code == 2, outcome.err
    message = outcome.json()
    assert set(message) == {"error", "hint"}
    assert error in message["error"]
    assert outcome.err.count("error:") == 1
    assert "Traceback" not in outcome.err


# Tables


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host_table: Path) -> Path:
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copy(host_table, tmp_path / "t.json"))


def assert_read_or_refused(folder: Path, content: bytes) -> bool:
    """Whether a table's file is refused, in which case the message names it."""
    path = folder / "t.json"
    path.write_bytes(content)
    message = ""
    try:
        read = load_table(path)
    except QuadranasError as error:
        message = error.message
        assert "t.json" in message
    else:
        for entry in read.entries:
            assert read.op_ms(entry.op) >= 0
    return bool(message)


@given(data=st.data())
def test_a_table_torn_at_any_byte_is_refused(
    host_table: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    content = host_table.read_bytes()
    size = data.draw(st.integers(0, len(content) - 2))  # the last byte is a line's end
    assert assert_read_or_refused(tmp_path_factory.mktemp("torn"), content[:size])


@given(data=st.data())
def test_a_table_with_flipped_bits_is_read_or_refused(
    host_table: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    content = bytearray(host_table.read_bytes())
    bits = st.tuples(st.integers(0, len(content) - 1), st.integers(0, 7))
    for position, bit in data.draw(st.lists(bits, min_size=1, max_size=4)):
        content[position] ^= 1 << bit
    assert_read_or_refused(tmp_path_factory.mktemp("flipped"), bytes(content))


def of_another_space(content: dict[str, Any]) -> None:
    for entry in content["entries"]:
        if entry["op"]["kind"] == "feed_forward":
            entry["op"]["in_channels"] = entry["op"]["out_channels"] = 24


def set_entry(key: str, value: Any) -> Any:
    return lambda content: content["entries"][2].update({key: value})


def set_header(**changes: Any) -> Any:
    return lambda content: content["header"].update(changes)


FAULTS: dict[str, tuple[Any, str]] = {
    "another unit": (set_header(unit="s"), "t.json: header.unit: Input should be 'ms' (got 's')"),
    "no measurement": (
        set_header(measurement=None),
        "t.json: header: measured tables, and only these, need the section 'measurement'",
    ),
    "measured, it says not": (
        set_header(method="analytic"),
        "t.json: header: measured tables, and only these, need the section 'measurement'",
    ),
    "a negative latency": (set_entry("latency_ms", -1.0), "t.json: entries.2.latency_ms: "),
    "a negative minimum": (set_entry("minimum_ms", -0.5), "t.json: entries.2.minimum_ms: "),
    "a negative spread": (set_entry("spread", -0.5), "t.json: entries.2.spread: "),
    "a latency in words": (set_entry("latency_ms", "1 +- 0.1"), "t.json: entries.2.latency_ms: "),
    "an unknown key": (set_entry("energy_mj", 1.0), "t.json: entries.2.energy_mj: unknown key"),
    "less than nothing": (set_header(null_ms=9.0), "an entry is below null_ms"),
    "no entries": (lambda content: content.update(entries=[]), "t.json: entries: "),
    "another space's entries": (of_another_space, "has no entry for "),
    "another space": (set_header(space="quadranet-tiny"), "made for space 'quadranet-tiny'"),
    "an older space": (set_header(space_digest="0" * 16), "made for another version of space"),
    "another device": (set_header(device="vpu"), "made for device 'vpu', not for 'host'"),
    "a negative noise": (
        lambda content: content["header"]["measurement"].update(noise=-1),
        "t.json: header.measurement.noise: ",
    ),
    "no calibration to speak of": (
        lambda content: content["header"]["calibration"].update(networks=[]),
        "t.json: header.calibration.networks: ",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_table_is_one_message(table: Path, finished_run: Path, fault: str) -> None:
    change, message = FAULTS[fault]
    content = json.loads(table.read_text(encoding="utf-8"))
    change(content)
    table.write_text(json.dumps(content), encoding="utf-8")
    before = table.read_bytes()
    device = ("--device", "host", "--table", "t.json")
    derive = ("derive", finished_run, *device, "--budget", "1ms", "--output", "new", "--json")
    assert_one_message(call(*derive), message)
    assert_one_message(call("validate-lut", *device, "--space", "toy", "--json"), message)
    assert table.read_bytes() == before
    assert listing(table.parent) == ["t.json"]


def test_a_torn_table_is_neither_completed_nor_replaced(table: Path) -> None:
    table.write_bytes(table.read_bytes()[:2000])
    for option in ((), ("--only-missing",)):
        command = ("build-lut", "--device", "host", "--space", "toy", "--output", "t.json")
        outcome = call(*command, "--backend", "onnxruntime", *option, "--json")
        assert_one_message(outcome, "t.json: not valid JSON")
        assert listing(table.parent) == ["t.json"]
    assert_one_message(
        call("merge-lut", "t.json", "t.json", "--output", "new.json", "--json"),
        "t.json: not valid JSON",
    )


# Measurements


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A board that is described in the working folder."""
    monkeypatch.chdir(tmp_path)
    description = board().model_dump(exclude_defaults=True)
    Path("board.yaml").write_text(yaml.safe_dump(description), encoding="utf-8")
    space = load_space("toy")
    specs = [s for n in CLASS_COUNTS for s in space.with_num_classes(n).specs()]
    return Machine(dict.fromkeys(specs), calibration_networks(space), scale=1.1)


def timings() -> list[tuple[str, int]]:
    lines = Path(TIMINGS).read_bytes().splitlines()
    return [(line["program"], line["round"]) for line in map(json.loads, lines[1:])]


@pytest.mark.parametrize("answers", [1, 40, 200])
def test_a_device_that_is_lost_costs_no_timing(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, answers: int
) -> None:
    def lost(count: int) -> None:
        if count == answers:
            raise DeviceLostError("the board does not answer any more", "See to its cable.")

    whole = ScriptedBackend(machine.network_ms)
    measured_by(whole, monkeypatch)
    assert call(*BUILD).code == 0
    expected = load_table(Path("t.json"))
    Path("t.json").unlink()

    first = ScriptedBackend(machine.network_ms, lost)
    measured_by(first, monkeypatch)
    outcome = call(*BUILD)
    assert_one_message(outcome, "the board does not answer any more")
    assert outcome.json()["hint"] == "See to its cable."
    assert not Path("t.json").exists()
    before = Path(TIMINGS).read_bytes()
    assert len(timings()) == answers

    again = call(*BUILD)
    assert_one_message(again, "the board does not answer any more")  # not a call more
    assert Path(TIMINGS).read_bytes() == before

    second = ScriptedBackend(machine.network_ms)
    measured_by(second, monkeypatch)
    done = call(*BUILD)
    assert done.code == 0, done.err
    assert f"continuing with {answers} timings from {TIMINGS}" in done.err
    assert first.timed + second.timed == whole.timed
    found = load_table(Path("t.json"))
    assert found.entries == expected.entries
    assert found.header == expected.header
    assert listing(Path()) == ["board.yaml", "t.json"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 2}, "holds an unfinished measurement with batch_size 1; expected 2"),
        ({"threads": None}, "holds an unfinished measurement with threads 1; expected None"),
        (
            {"name": "other"},
            "holds an unfinished measurement with device 'board'; expected 'other'",
        ),
    ],
)
def test_a_measurement_is_not_continued_as_another_one(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], message: str
) -> None:
    def lost(count: int) -> None:
        if count == 9:
            raise DeviceLostError("gone")

    measured_by(ScriptedBackend(machine.network_ms, lost), monkeypatch)
    assert call(*BUILD).code == 2
    before = Path(TIMINGS).read_bytes()
    description = board(**change).model_dump()
    Path("board.yaml").write_text(yaml.safe_dump(description), encoding="utf-8")
    measured_by(ScriptedBackend(machine.network_ms), monkeypatch)
    outcome = call(*BUILD)
    assert_one_message(outcome, message)
    assert "delete the file to start again" in outcome.json()["hint"]
    assert Path(TIMINGS).read_bytes() == before


def test_damaged_timings_are_not_made_a_table_of(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured_by(ScriptedBackend(machine.network_ms), monkeypatch)
    Path(TIMINGS).write_text('{"identity": "mine"}\n', encoding="utf-8")
    outcome = call(*BUILD)
    assert_one_message(outcome, f"{TIMINGS} is not a journal of a measurement, or it is damaged")
    assert outcome.json()["hint"] == "Delete it to start again."
    assert listing(Path()) == ["board.yaml", TIMINGS]


@pytest.mark.parametrize(("then_ms", "now_ms"), [(0.01, 0.01), *ROUNDED])
def test_a_table_is_completed_with_an_operation_as_fast_as_a_null_call(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, then_ms: float, now_ms: float
) -> None:
    heads = [spec for spec in machine.ops_ms if spec.is_head]
    machine.boundaries_ms = dict.fromkeys(machine.boundaries_ms, 0.0)
    machine.ops_ms |= dict.fromkeys(heads, 0.0)
    machine.null_ms = then_ms
    measured_by(ScriptedBackend(machine.network_ms), monkeypatch)
    assert call(*BUILD).code == 0
    path = Path("t.json")
    whole = load_table(path)
    rest = tuple(entry for entry in whole.entries if not entry.op.is_head)
    whole.model_copy(update={"entries": rest}).save(path)
    machine.null_ms = now_ms
    outcome = call(*BUILD, "--only-missing")
    assert outcome.code == 0, outcome.err
    assert load_table(path).header == whole.header
    assert all(0 < load_table(path).op_ms(head) < 0.01 for head in heads)


def test_every_program_is_timed_in_every_round(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = ScriptedBackend(machine.network_ms)
    measured_by(backend, monkeypatch)
    assert call(*BUILD).code == 0
    counts = Counter(backend.timed.values())
    assert set(counts) == {40, 160, 200}
    assert counts[160] == 1  # the baseline network, of which there are four
    assert counts[200] == 1  # the reference, five times a round
