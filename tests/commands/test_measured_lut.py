"""Measured tables from end to end: built here, killed, completed, validated, merged, relied on."""

import json
import shutil
import signal
from collections import Counter
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import quadranas
from quadranas.backends.onnxruntime import OnnxRuntimeBackend, OnnxRuntimeProgram
from quadranas.commands.merge_lut import MergeLutResult, merge_lut
from quadranas.commands.validate_lut import ValidateLutResult, fresh_networks
from quadranas.errors import QuadranasError
from quadranas.files import source_commit
from quadranas.latency.host import usable_cores
from quadranas.latency.journal import Journal
from quadranas.latency.table import LatencyTable
from quadranas.latency.table_files import find_table, load_table
from quadranas.measurement.lut_entries import calibration_networks
from quadranas.measurement.plan import Plan
from quadranas.measurement.summary import REFERENCES_PER_ROUND, STATISTIC
from quadranas.space.architecture import load_architecture
from quadranas.space.space_file import load_space, space_files
from tests.command_line import Outcome, Server, call, listing, until
from tests.killing import Moment, killed
from tests.measuring import REMEMBER, TRACE, trace_exports
from tests.typed_results import parsed

MAX_RESIDUAL = ("--max-residual", "9")  # the other tests keep the machine busy
MEASURE = ("build-lut", "--device", "host", "--space", "toy", "--backend", "onnxruntime")
BUILD = (*MEASURE, "--rounds", "12", *MAX_RESIDUAL)
"""What made the shared table."""

TABLE = "table.json"
TIMINGS = "table.json.timings"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, exports: Path) -> None:
    """Verify networks in two rounds: whether a budget is kept or missed is clear here."""
    trace_exports(monkeypatch)
    monkeypatch.setattr("quadranas.measurement.bench.DEFAULT_PLAN", Plan(num_rounds=2, repeats=2))


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host_table: Path) -> Path:
    """A copy of the measured table, in a working folder."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copy(host_table, tmp_path / TABLE))


def content_of(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def changed(path: Path, **header: Any) -> LatencyTable:
    """Change keys of a table's header; `measurement` is merged."""
    content = content_of(path)
    measurement = content["header"]["measurement"] | header.pop("measurement", {})
    content["header"] |= header | {"measurement": measurement}
    path.write_text(json.dumps(content), encoding="utf-8")
    return load_table(path)


def test_the_header_says_how_the_entries_were_taken(host_table: Path) -> None:
    import onnxruntime
    import torch

    header = load_table(host_table).header
    assert (header.device, header.title, header.space) == ("host", "this machine", "toy")
    assert header.space_digest == load_space("toy").digest
    assert (header.method, header.backend) == ("measured", "onnxruntime")
    assert header.runtime == f"ONNX Runtime {onnxruntime.__version__}"
    assert (header.precision, header.threads, header.batch_size) == ("fp32", 1, 1)
    assert (header.unit, header.statistic) == ("ms", STATISTIC)
    assert header.command == f"quadranas {' '.join(BUILD)} --output {host_table}"
    assert header.commit == source_commit()
    assert header.quadranas == quadranas.__version__
    age = datetime.now(UTC).date() - date.fromisoformat(header.date)
    assert age.days in (0, 1)
    measurement = header.measurement
    assert measurement is not None
    assert measurement.hardware
    assert measurement.versions["onnxruntime"] == onnxruntime.__version__
    assert measurement.versions["torch"] == torch.__version__
    assert measurement.num_rounds >= 12
    assert measurement.repeats == Plan().repeats
    assert 0 <= measurement.num_disturbed <= measurement.num_rounds
    assert 0 <= measurement.noise < 1
    assert measurement.reference_ms > 0
    assert header.calibration is not None
    assert len(header.calibration.networks) == 8
    assert header.calibration.residual > 0
    assert header.validation is None
    assert f"{header.calibration.residual:.1%} standard deviation" in header.expected_error
    assert header.expected_error in header.summary()


def test_the_entries_are_latencies(host_table: Path) -> None:
    table = load_table(host_table)
    wanted = {
        spec
        for num_classes in (10, 100, 1000)
        for spec in load_space("toy").with_num_classes(num_classes).specs()
    }
    assert set(table.latencies_ms) == wanted
    for entry in table.entries:
        assert entry.latency_ms >= table.header.null_ms > 0
        assert entry.minimum_ms is not None
        assert entry.median_ms is not None
        assert 0 < entry.minimum_ms <= entry.median_ms
        assert entry.minimum_ms <= entry.latency_ms
        assert entry.spread is not None


def test_the_table_predicts_what_its_calibration_says(host_table: Path) -> None:
    table = load_table(host_table)
    assert table.header.calibration is not None
    found = {network.name: network for network in table.header.calibration.networks}
    errors = []
    for network in calibration_networks(load_space("toy")):
        latency = found[network.name]
        assert table.predict_ms(network) == pytest.approx(latency.predicted_ms, rel=1e-9)
        errors.append(latency.measured_ms / latency.predicted_ms - 1)
    residual = (sum(error**2 for error in errors) / 7) ** 0.5
    assert table.header.calibration.residual == pytest.approx(residual)


def test_only_the_table_is_left(host_table: Path) -> None:
    assert listing(host_table.parent) == [host_table.name]


# Killed and continued

MOMENTS = (
    Moment(OnnxRuntimeBackend, "compile", nth=5),
    Moment(Journal, "add", nth=1),
    Moment(Journal, "add", nth=1, when="torn"),
    Moment(Journal, "add", nth=3, when="after"),
    Moment(OnnxRuntimeProgram, "time_ms", nth=60),
    Moment(Journal, "add", nth=100, when="torn"),
    Moment(LatencyTable, "save"),
    Moment(Path, "replace", f"*{TABLE}"),
    Moment(Journal, "remove"),
)
NUM_ROUNDS = 4
KILLED = (*MEASURE, *MAX_RESIDUAL, "--output", TABLE, "--rounds", str(NUM_ROUNDS))


@pytest.fixture
def journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exports: Path) -> Path:
    """A copy of the timings, which is made when they have become a table."""
    remove = Journal.remove

    def keep(journal: Journal) -> None:
        assert journal.path is not None
        shutil.copy(journal.path, tmp_path / "kept")
        remove(journal)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Journal, "remove", keep)
    return tmp_path / "kept"


def timings_in(content: bytes) -> list[tuple[str, int]]:
    lines = [json.loads(line) for line in content.splitlines(keepends=True) if line[-1:] == b"\n"]
    return [(line["program"], line["round"]) for line in lines[1:]]


def whole_lines(content: bytes) -> bytes:
    return content[: content.rfind(b"\n") + 1]


def test_a_measurement_killed_at_any_moment_takes_no_timing_twice(journal: Path) -> None:
    before = b""
    counts = []
    for moment in MOMENTS:
        outcome = killed(moment, *KILLED)
        after = Path(TIMINGS).read_bytes() if Path(TIMINGS).exists() else b""
        assert after.startswith(whole_lines(before)), moment
        told = f"continuing with {len(timings_in(before))} timings from {TIMINGS}"
        assert (told in outcome.err) == bool(timings_in(before)), moment
        before = after
        counts.append(len(timings_in(before)))
    assert counts[:4] == [0, 0, 0, 3]
    assert 3 < counts[4] <= 3 + 59  # calls that lost the processor are repeated
    assert counts[5] == counts[4] + 99
    assert Path(TABLE).is_file()  # the last moment comes after the table
    done = call(*KILLED, "--json")
    assert done.code == 0, done.err
    kept = journal.read_bytes()
    assert kept.startswith(whole_lines(before))
    timings = Counter(timings_in(kept))
    assert set(timings.values()) == {1}
    programs = {program for program, _ in timings}
    assert len([p for p in programs if p.startswith("reference ")]) == REFERENCES_PER_ROUND
    for program in programs:
        rounds = {number for name, number in timings if name == program}
        assert rounds >= set(range(NUM_ROUNDS)), program
    assert not Path(TIMINGS).exists()
    table = find_table(load_space("toy"), "host", Path(TABLE))
    assert len(table.entries) == done.json()["entries"]
    assert table.header.calibration is not None


def test_a_measurement_killed_from_outside_is_continued(
    tmp_path: Path, server: Server, exports: Path, journal: Path
) -> None:
    timings = tmp_path / TIMINGS
    prelude = REMEMBER.format(folder=str(exports)) + TRACE
    process = server.start(tmp_path, *KILLED, prelude=prelude)
    try:
        until(lambda: timings.is_file() and timings.read_bytes().count(b"\n") > 20)
    finally:
        process.kill(signal.SIGKILL)
    assert process.wait().code == -signal.SIGKILL
    before = whole_lines(timings.read_bytes())
    done = call(*KILLED)
    assert done.code == 0, done.err
    kept = journal.read_bytes()
    assert kept.startswith(before)
    assert len(kept) > len(before)
    assert set(Counter(timings_in(kept)).values()) == {1}
    assert not timings.exists()


def test_two_processes_do_not_build_one_table(
    tmp_path: Path, server: Server, exports: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting = """
import os, time
from quadranas.latency.journal import Journal
add = Journal.add
def wait(journal, *args):
    add(journal, *args)
    while journal.num_timings == 7 and not os.path.exists("go"):
        time.sleep(0.01)
Journal.add = wait
"""
    timings = tmp_path / TIMINGS
    prelude = REMEMBER.format(folder=str(exports)) + TRACE + waiting
    process = server.start(tmp_path, *KILLED, prelude=prelude)
    try:
        until(lambda: timings.is_file() and timings.read_bytes().count(b"\n") == 8)
        monkeypatch.chdir(tmp_path)
        before = timings.read_bytes()
        second = call(*KILLED, "--json")
        assert second.code == 2
        assert second.json() == {
            "error": f"another process is measuring into {TIMINGS}",
            "hint": "Wait for it, or choose another --output.",
        }
        assert timings.read_bytes() == before
    finally:
        (tmp_path / "go").touch()
        outcome = process.wait()
    assert outcome.code == 0, outcome.err
    assert load_table(tmp_path / TABLE).header.method == "measured"


# Completed, and what is in the way


def without(path: Path, *indices: int) -> dict[str, Any]:
    """Take entries out of a table; returns its whole content."""
    whole = content_of(path)
    entries = [entry for at, entry in enumerate(whole["entries"]) if at not in indices]
    path.write_text(json.dumps(whole | {"entries": entries}), encoding="utf-8")
    return whole


def test_only_missing_measures_what_is_missing_and_leaves_the_rest(table: Path) -> None:
    whole = load_table(table)
    without(table, 1, 4)
    given = ("--device", "host", "--space", "toy", "--output", table)
    outcome = call("build-lut", *given, "--only-missing", *MAX_RESIDUAL)
    assert outcome.code == 0, outcome.err
    assert "completing the table with its own runtime: measured (this machine" in outcome.err
    filled = load_table(table)
    assert filled.header == whole.header
    kept = [entry for at, entry in enumerate(whole.entries) if at not in (1, 4)]
    assert list(filled.entries[:-2]) == kept
    assert [entry.op for entry in filled.entries[-2:]] == [
        whole.entries[1].op,
        whole.entries[4].op,
    ]
    for entry in filled.entries[-2:]:
        assert entry.latency_ms >= filled.header.null_ms
        assert filled.op_ms(entry.op) >= 0
    assert not table.with_name(TIMINGS).exists()


DEVICE = "name: host\ntitle: this machine\nruntime: {runtime}\nprecision: {precision}\n"


@pytest.mark.parametrize(
    ("header", "device", "message"),
    [
        ({"runtime": "ONNX Runtime 0.9"}, {}, "with runtime 'ONNX Runtime 0.9'; expected 'ONNX"),
        ({"precision": "fp16"}, {}, "with precision 'fp16'; expected 'fp32'"),
        ({"threads": 3}, {}, "with threads 3; expected 1"),
        ({"batch_size": 8}, {}, "with batch_size 8; expected 1"),
        ({"measurement": {"hardware": "Cray-1"}}, {}, "with hardware 'Cray-1'; expected '"),
        ({"measurement": {"settings": {"clock": "9 GHz"}}}, {}, "with settings {'clock': '9 GHz'"),
        ({}, {"runtime": "openvino"}, "with backend 'onnxruntime'; expected 'openvino'"),
    ],
)
def test_only_missing_refuses_what_was_measured_otherwise(
    table: Path, header: dict[str, Any], device: dict[str, str], message: str
) -> None:
    named = {"runtime": "onnxruntime", "precision": "fp32"} | device
    Path("host.yaml").write_text(DEVICE.format(**named) + "threads: 1\n", encoding="utf-8")
    changed(table, **header)
    without(table, 1)
    before = table.read_bytes()
    command = ("build-lut", "--device", "host.yaml", "--space", "toy", "--output", table)
    backend = str(named["runtime"])
    outcome = call(*command, "--only-missing", "--backend", backend, "--json")
    assert outcome.code == 2
    assert message in outcome.json()["error"]
    assert outcome.json()["hint"] == "Omit --only-missing, or choose another --output."
    assert table.read_bytes() == before
    assert not table.with_name(TIMINGS).exists()


def test_only_missing_with_another_backend_named_is_refused(table: Path) -> None:
    without(table, 1)
    command = ("build-lut", "--device", "host", "--space", "toy", "--output", table)
    outcome = call(*command, "--only-missing", "--backend", "openvino", "--json")
    assert outcome.code == 2
    assert "with backend 'onnxruntime'; expected 'openvino'" in outcome.json()["error"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--device host --backend openvino", "with backend 'onnxruntime'; expected 'openvino'"),
        ("--device cpu", "was made with device 'host'; expected 'cpu'"),
        ("--device host --backend onnxruntime --batch-size 2", "with batch_size 1; expected 2"),
    ],
)
def test_a_measured_table_of_another_kind_is_not_replaced(
    table: Path, arguments: str, message: str
) -> None:
    before = table.read_bytes()
    command = ("build-lut", *arguments.split(), "--space", "toy", "--json")
    outcome = call(*command, "--output", table)
    assert outcome.code == 2
    assert message in outcome.json()["error"]
    assert outcome.json()["hint"] == "Delete it, or choose another --output."
    assert table.read_bytes() == before
    assert listing(table.parent) == [TABLE]


def test_more_threads_than_cores_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    cores = usable_cores()
    outcome = call(*BUILD, "--threads", str(len(cores) + 1), "--json")
    assert outcome.code == 2
    assert outcome.json() == {
        "error": f"got {len(cores) + 1} threads, but this process may use only {len(cores)} cores",
        "hint": "Set fewer threads.",
    }
    assert listing(tmp_path) == []
    assert usable_cores() == cores


def test_an_unknown_backend_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = call("build-lut", "--device", "host", "--space", "toy", "--backend", "openvio")
    assert outcome.code == 2
    assert (
        "unknown backend 'openvio'; accepted: analytic, command, cuda, executorch" in outcome.err
    )
    assert "did you mean 'openvino'?" in outcome.err
    assert listing(tmp_path) == []


# Merged

positive = st.floats(0.1, 10)


@given(scale=positive, null_share=st.floats(0, 1), cut=st.integers(1, 12))
def test_merging_keeps_what_every_table_predicts(
    host_table: Path,
    tmp_path_factory: pytest.TempPathFactory,
    scale: float,
    null_share: float,
    cut: int,
) -> None:
    folder = tmp_path_factory.mktemp("merge")
    whole = load_table(host_table)
    least_ms = min(entry.latency_ms for entry in whole.entries)
    other = {"scale": scale, "null_ms": null_share * least_ms}
    header = whole.header.model_copy(update=other)
    one = whole.model_copy(update={"entries": whole.entries[: cut + 1]})
    two = LatencyTable(header=header, entries=whole.entries[cut:])
    one.save(folder / "1.json")
    two.save(folder / "2.json")
    merge_lut([folder / "1.json", folder / "2.json"], output=folder / "merged.json")
    merged = load_table(folder / "merged.json")
    assert set(merged.latencies_ms) == set(whole.latencies_ms)
    assert merged.entries[: cut + 1] == one.entries
    for entry in one.entries:
        assert merged.op_ms(entry.op) == one.op_ms(entry.op)
    for entry in two.entries[1:]:
        expected_ms = two.op_ms(entry.op)
        assert merged.op_ms(entry.op) == pytest.approx(expected_ms, rel=1e-9, abs=1e-12)


def test_a_merged_table_can_be_read_though_a_call_was_faster_than_a_null_call(
    table: Path,
) -> None:
    """In the first table's scale its minimum would be negative: it is left out."""
    content = content_of(table)
    content["entries"][3] |= {"latency_ms": 1.0, "minimum_ms": 0.5, "median_ms": 1.1}
    whole = content["entries"]
    content["header"] |= {"scale": 10.0, "null_ms": min(e["latency_ms"] for e in whole[3:])}
    fast = content["header"]["null_ms"]
    content["entries"] = [*whole[3:4], whole[4] | {"latency_ms": fast, "minimum_ms": fast / 9}]
    Path("2.json").write_text(json.dumps(content), encoding="utf-8")
    without(table, 3, 4)
    merge_lut([table, Path("2.json")], output="merged.json")
    merged = load_table(Path("merged.json"))
    found = {entry.op: entry for entry in merged.entries}
    kept, fastest = load_table(Path("2.json")).entries
    assert merged.op_ms(kept.op) == pytest.approx(load_table(Path("2.json")).op_ms(kept.op))
    assert found[kept.op].minimum_ms is not None
    assert merged.op_ms(fastest.op) == 0
    assert found[fastest.op].minimum_ms is None


def test_a_merged_table_is_the_first_one_with_more_entries(table: Path) -> None:
    whole = load_table(table)
    shutil.copy(table, "rest.json")
    without(table, 2, 3)
    outcome = call("merge-lut", table, "rest.json", "--output", "merged.json", "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.json() == {"path": "merged.json", "entries": len(whole.entries)}
    assert parsed(outcome, MergeLutResult).table() == load_table(Path("merged.json"))
    merged = load_table(Path("merged.json"))
    assert merged.latencies_ms == whole.latencies_ms
    assert merged.header.calibration == whole.header.calibration
    command = f"quadranas merge-lut {table} rest.json --output merged.json --json"
    assert merged.header.command == command
    text = call("merge-lut", table, "rest.json", "--output", "merged.json")
    assert text.out == f"merged.json: {len(whole.entries)} entries\n"


@pytest.mark.parametrize(
    ("header", "key"),
    [
        ({"device": "other"}, "device"),
        ({"space": "other"}, "space"),
        ({"space_digest": "0" * 16}, "space_digest"),
        ({"backend": "openvino"}, "backend"),
        ({"runtime": "ONNX Runtime 0.9"}, "runtime"),
        ({"precision": "fp16"}, "precision"),
        ({"threads": 2}, "threads"),
        ({"batch_size": 2}, "batch_size"),
        ({"statistic": "mean"}, "statistic"),
        ({"measurement": {"hardware": "Cray-1"}}, "hardware"),
        ({"measurement": {"target": "NPU"}}, "target"),
        ({"measurement": {"settings": {"clock": "9 GHz"}}}, "settings"),
    ],
)
def test_unlike_tables_are_not_merged(table: Path, header: dict[str, Any], key: str) -> None:
    shutil.copy(table, "other.json")
    changed(Path("other.json"), **header)
    outcome = call("merge-lut", table, "other.json", "--output", "merged.json", "--json")
    assert outcome.code == 2
    error = outcome.json()["error"]
    assert error.startswith(f"{table} and other.json cannot be merged; they differ in {key}")
    assert not Path("merged.json").exists()


def test_all_that_differs_is_named(table: Path) -> None:
    shutil.copy(table, "other.json")
    changed(Path("other.json"), device="tpu", precision="fp16", threads=2)
    outcome = call("merge-lut", table, "other.json", "--output", "merged.json", "--json")
    assert outcome.json()["error"].endswith(
        "they differ in device: host and tpu; precision: fp32 and fp16; threads: 1 and 2"
    )


def test_one_table_is_nothing_to_merge(table: Path) -> None:
    outcome = call("merge-lut", table, "--output", "merged.json")
    assert outcome.code == 2
    assert "cannot merge 1 table" in outcome.err
    assert not Path("merged.json").exists()


# Validated


@pytest.mark.parametrize("name", space_files())
def test_fresh_networks_are_none_of_the_calibration_s(name: str) -> None:
    space = load_space(name)
    known = {tuple(network.ops()) for network in calibration_networks(space)}
    drawn = set()
    for seed in range(3):
        fresh = [tuple(network.ops()) for network in fresh_networks(space, 20, seed)]
        assert len(set(fresh)) == 20
        assert not known & set(fresh)
        drawn.add(tuple(fresh))
    assert len(drawn) == 3
    again = [tuple(network.ops()) for network in fresh_networks(space, 20, 2)]
    assert tuple(again) in drawn


TEN_NETWORKS = """
name: ten
resolution: 32
num_classes: 10
widths: [8]
stages:
  - entry: {kind: patch_stem, kernel_size: 4, stride: 4}
    depth: [1, 1]
    slots:
      - {kind: quadratic_depthwise, kernel_size: [3, 5]}
      - {kind: feed_forward, expand_ratio: [1, 2, 3, 4, 5]}
head: norm_head
"""


def test_a_space_with_too_few_networks_says_how_many_there_are(tmp_path: Path) -> None:
    path = tmp_path / "ten.yaml"
    path.write_text(TEN_NETWORKS, encoding="utf-8")
    space = load_space(str(path))
    with pytest.raises(QuadranasError, match="only 2 of space ten were found besides") as caught:
        fresh_networks(space, 3, 0)
    assert caught.value.hint == "Validate with --networks 2."
    assert len(fresh_networks(space, 2, 0)) == 2


def test_a_validation_is_printed_and_kept_in_the_table(table: Path) -> None:
    before = load_table(table)
    command = ("validate-lut", "--device", "host", "--space", "toy", "--table", table)
    outcome = call(*command, "--networks", "4", "--json")
    assert outcome.code == 0, outcome.err
    result = outcome.json()
    parsed(outcome, ValidateLutResult)
    numbers = {"bias", "mape", "within_5", "within_10", "kendall_tau"}
    assert set(result) == {"networks", "table", "plot", "summary"} | numbers
    assert result["networks"] == 4
    assert result["table"] == str(table)
    after = load_table(table)
    assert after.entries == before.entries
    found = after.header.validation
    assert found is not None
    assert found.model_dump(include=numbers) == {key: result[key] for key in numbers}
    assert found.command.startswith("quadranas validate-lut --device host --space toy --table")
    assert found.commit == source_commit()
    assert after.header.expected_error == result["summary"] == found.summary()
    for network, latency in zip(
        fresh_networks(load_space("toy"), 4, 0), found.networks, strict=True
    ):
        assert latency.predicted_ms == pytest.approx(before.predict_ms(network))
    plot = Path(result["plot"])
    assert plot.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert listing(table.parent) == sorted([TABLE, plot.name])
    again = call(*command, "--networks", "4")
    assert again.code == 0, again.err
    summary, plot_line = again.out.splitlines()
    assert summary.endswith("on 4 fresh networks")
    assert plot_line == f"plot {plot}"


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (
            {"runtime": "ONNX Runtime 0.9"},
            "than this device has now: runtime ONNX Runtime 0.9, not ONNX Runtime 1",
        ),
        (
            {"measurement": {"hardware": "Cray-1"}},
            "than this device has now: hardware Cray-1, not ",
        ),
        ({"measurement": {"target": "GPU"}}, "than this device has now: target GPU, not "),
    ],
)
def test_a_table_from_elsewhere_is_not_validated_here(
    table: Path, header: dict[str, Any], message: str
) -> None:
    changed(table, **header)
    before = table.read_bytes()
    command = ("validate-lut", "--device", "host", "--space", "toy", "--table", table)
    outcome = call(*command, "--json")
    assert outcome.code == 2
    assert message in outcome.json()["error"]
    assert outcome.json()["hint"].startswith(
        "Measure here with: quadranas build-lut --device host"
    )
    assert table.read_bytes() == before
    assert listing(table.parent) == [TABLE]


def test_an_analytic_table_has_nothing_to_validate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = call("validate-lut", "--device", "vpu", "--space", "toy", "--json")
    assert outcome.code == 2
    assert "is analytic; only a measured table can be validated" in outcome.json()["error"]
    assert outcome.json()["hint"] == (
        "Measure one with: quadranas build-lut --device vpu --space toy --backend RUNTIME"
    )


# The promise, kept or missed


def derive(run: Path, table: Path, factor: float, *options: str) -> tuple[float, Outcome]:
    """Derive the largest network, from a table whose predictions are `factor` times as large."""
    scale = load_table(table).header.scale
    edited = changed(table, scale=factor * scale)
    space = load_space("toy")
    budget_ms = 1.001 * edited.predict_ms(space.extreme(edited.op_ms, largest=True))
    given = ("--device", "host", "--budget", f"{budget_ms!r}ms", "--table", table)
    return budget_ms, call("derive", run, *given, "--output", "derived", *options)


@pytest.fixture
def run(tmp_path: Path, finished_run: Path) -> Path:
    return Path(shutil.copytree(finished_run, tmp_path / "run"))


def test_a_promise_that_is_missed_has_an_exit_code_of_its_own(table: Path, run: Path) -> None:
    """The table promises a tenth of what the network takes."""
    budget_ms, outcome = derive(run, table, 0.1, "--json")
    assert outcome.code == 3, outcome.err
    result = outcome.json()
    assert "error" not in result
    assert result["measured_ms"] > budget_ms * 1.05
    assert result["predicted_ms"] <= budget_ms == result["budget_ms"]
    assert outcome.err.splitlines()[-1] == (
        f"budget missed: measured {result['measured_ms']:.4g} ms, over the budget of "
        f"{budget_ms:.4g} ms by more than the tolerance of 5%"
    )
    assert json.loads(Path("derived/result.json").read_text()) == result
    assert load_architecture(Path("derived/architecture.json")).space == "toy"
    assert Path("derived/subnet.safetensors").is_file()


def test_a_promise_that_is_kept_is_told_with_what_was_measured(table: Path, run: Path) -> None:
    """The table promises ten times what the network takes."""
    _, outcome = derive(run, table, 10)
    assert outcome.code == 0, outcome.err
    result = json.loads(Path("derived/result.json").read_text())
    assert 0 < result["measured_ms"] < result["budget_ms"]
    assert outcome.out.startswith(
        f"measured {result['measured_ms']:.4g} ms (p50 {result['measured_p50_ms']:.4g}, p95 "
        f"{result['measured_p95_ms']:.4g}), predicted {result['predicted_ms']:.4g} ms of "
    )
    assert result["table"]["method"] == "measured"
    assert "budget missed" not in outcome.err


def test_the_tolerance_is_the_user_s(table: Path, run: Path) -> None:
    """Ten times the budget is more than twice of it, too."""
    budget_ms, outcome = derive(run, table, 0.1, "--tolerance", "1", "--json")
    assert outcome.code == 3
    assert outcome.json()["tolerance"] == 1
    assert outcome.json()["measured_ms"] > 2 * budget_ms
    assert "tolerance of 100%" in outcome.err


@pytest.mark.parametrize(
    "header", [{"measurement": {"hardware": "Cray-1"}}, {"runtime": "ONNX Runtime 0.9"}]
)
def test_a_network_is_not_measured_on_what_its_table_was_not(
    table: Path, run: Path, header: dict[str, Any]
) -> None:
    changed(table, **header)
    _, outcome = derive(run, table, 0.1, "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.json()["measured_ms"] is None
    assert "warning: the network is not measured: " in outcome.err
    assert "table.json was measured under other conditions" in outcome.err


def test_a_confidence_tightens_the_budget_by_the_table_s_residual(table: Path, run: Path) -> None:
    calibration = load_table(table).header.calibration
    assert calibration is not None
    budget_ms, outcome = derive(run, table, 10, "--confidence", "0.95", "--json")
    assert outcome.code == 0, outcome.err
    result = outcome.json()
    assert result["confidence"] == 0.95
    assert result["predicted_ms"] <= budget_ms / calibration.safety_factor(0.95)
    assert "predicted, for a confidence of 95%" in outcome.err


def test_a_search_on_this_machine_ends_with_a_measured_network(
    table: Path, small_config: Path
) -> None:
    whole = load_table(table)
    space = load_space("toy")
    low, high = (
        whole.predict_ms(space.extreme(whole.op_ms, largest=largest)) for largest in (False, True)
    )
    budget_ms = (low + high) / 2
    outcome = call(
        *("search", "--device", "host", "--space", "toy", "--budget", f"{budget_ms!r}ms"),
        *("--table", table, "--config", small_config, "--output", "run", "--json"),
    )
    assert outcome.code in (0, 3), outcome.err
    result = outcome.json()
    assert 0 < result["predicted_ms"] <= budget_ms
    assert result["measured_ms"] > 0
    missed = result["measured_ms"] > budget_ms * 1.05
    assert outcome.code == (3 if missed else 0)
    assert ("budget missed" in outcome.err) == missed
    kept = json.loads(Path("run/result.json").read_text())
    assert kept["measured_ms"] == result["measured_ms"]
    assert result["table"]["method"] == "measured"
    assert Path("run/report.html").is_file()


def test_a_measured_table_is_found_where_build_lut_puts_it(table: Path) -> None:
    folder = Path("latency_tables/toy")
    folder.mkdir(parents=True)
    shutil.copy(table, folder / "host.json")
    devices = {d["name"]: d for d in call("devices", "--json").json()["devices"]}
    assert devices["host"]["tables"] == {"toy": str(folder / "host.json")}
    (space,) = call("spaces", "toy", "--device", "host", "--json").json()["spaces"]
    assert 0 < space["devices"]["host"]["min_ms"] < space["devices"]["host"]["max_ms"]
    assert "measured (this machine, ONNX Runtime" in call("spaces", "toy").out


def test_nothing_is_measured_at_other_threads_or_another_batch(table: Path, run: Path) -> None:
    changed(table, threads=2, batch_size=8)
    _, outcome = derive(run, table, 0.1, "--json")
    assert outcome.code == 2
    error = outcome.json()
    assert "those of device 'host': threads 2, not 1; batch_size 8, not 1" in error["error"]
    assert f"mv {table} {table}.old && quadranas build-lut --device host" in error["hint"]
