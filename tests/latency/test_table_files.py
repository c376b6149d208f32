"""Where a latency table is looked for, and in which order."""

from pathlib import Path
from typing import Any

import pytest

from quadranas.commands.build_lut import build_lut
from quadranas.errors import MissingEntryError, QuadranasError
from quadranas.files import shipped
from quadranas.latency.conditions import in_words
from quadranas.latency.device import Device, load_device
from quadranas.latency.table import LatencyTable, Measurement
from quadranas.latency.table_files import (
    find_priced,
    find_table,
    load_table,
    locate_table,
    table_paths,
)
from quadranas.space.space_file import load_space

VPU = load_device("vpu")
SHIPPED = shipped("latency_tables") / "toy" / "vpu.json"
SHIPPED_TABLES = [
    (path.parent.name, path.stem) for path in sorted(shipped("latency_tables").glob("*/*.json"))
]


@pytest.fixture(autouse=True)
def working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_the_file_named_comes_first_then_the_copy_then_the_working_folder() -> None:
    table = load_table(SHIPPED)
    named, own, usual = Path("named.json"), Path("table.json"), table_paths("toy", "vpu")[0]
    assert locate_table("toy", VPU, own=own) == SHIPPED
    table.save(usual)
    assert locate_table("toy", VPU, own=own) == usual
    table.save(own)
    assert locate_table("toy", VPU, own=own) == own
    assert locate_table("toy", VPU) == usual
    assert locate_table("toy", VPU, named, own=own) is None
    table.save(named)
    assert locate_table("toy", VPU, named, own=own) == named


def test_a_copy_of_another_device_s_table_is_passed_over() -> None:
    own = Path("table.json")
    load_table(SHIPPED.with_name("cpu.json")).save(own)
    assert locate_table("toy", VPU, own=own) == SHIPPED
    assert locate_table("toy", load_device("cpu"), own=own) == own


def test_without_a_space_there_is_no_default_place() -> None:
    assert locate_table("", VPU) is None


def test_an_incomplete_copy_names_the_command_that_completes_it() -> None:
    table, own = load_table(SHIPPED), Path("a table.json")
    table.model_copy(update={"entries": table.entries[1:]}).save(own)
    with pytest.raises(MissingEntryError) as caught:
        find_priced(load_space("toy"), "vpu", own=own)
    assert "--output 'a table.json'" in caught.value.hint


def test_the_file_comes_with_the_table() -> None:
    priced = find_priced(load_space("toy"), "vpu")
    assert (priced.path, priced.table) == (SHIPPED, find_table(load_space("toy"), "vpu"))


def test_a_missing_file_names_the_command_that_makes_it() -> None:
    with pytest.raises(QuadranasError, match=r"looked at mine\.json") as caught:
        find_priced(load_space("toy"), "vpu", Path("mine.json"))
    assert caught.value.hint == (
        "Make it with: quadranas build-lut --device vpu --space toy --output mine.json"
    )


# Conditions


SLOWER = {"conv": 1, "pointwise": 10, "depthwise": 10, "linear": 1}


def board(**changes: Any) -> Device:
    """A device of one's own with an analytic model."""
    rates = dict.fromkeys(SLOWER, 10)
    model: dict[str, Any] = {"runtime": "test", "fitted_to": "nothing", "expected_error": "?"}
    model |= {"gmacs_per_s": rates, "bandwidth_gb_per_s": 10, "overhead_us": 10}
    content: dict[str, Any] = {"name": "board", "title": "a board", "precision": "fp32"}
    content |= {"threads": 1, "analytic": model | changes.pop("analytic", {})}
    return Device.model_validate(content | changes)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"precision": "fp16"}, "precision fp32, not fp16"),
        ({"threads": 4}, "threads 1, not 4"),
        ({"threads": None}, "threads 1, not None"),
        ({"batch_size": 16}, "batch_size 1, not 16"),
        ({"precision": "fp16", "threads": 8}, "precision fp32, not fp16; threads 1, not 8"),
        ({"analytic": {"runtime": "other"}}, "runtime test, not other"),
        ({"analytic": {"overhead_us": 20}}, "model.overhead_us 10.0, not 20.0"),
        ({"analytic": {"saturation_channels": "in"}}, "model.saturation_channels out, not in"),
        (
            {"analytic": {"linear_weights_gb_per_s": 5}},
            "model.linear_weights_gb_per_s None, not 5.0",
        ),
        (
            {"analytic": {"gmacs_per_s": SLOWER}},
            "model.gmacs_per_s.conv 10.0, not 1.0; model.gmacs_per_s.linear 10.0, not 1.0",
        ),
    ],
)
def test_a_device_that_was_edited_needs_a_new_table(changes: dict[str, Any], fault: str) -> None:
    build_lut("toy", device=board())
    assert find_priced(load_space("toy"), board()).path == table_paths("toy", "board")[0]
    with pytest.raises(QuadranasError) as caught:
        find_priced(load_space("toy"), board(**changes))
    assert caught.value.message == (
        "latency_tables/toy/board.json was made under other conditions than those of device "
        f"'board': {fault}"
    )
    assert caught.value.hint == (
        "Make the right one with: quadranas build-lut --device board --space toy "
        "--backend analytic"
    )
    build_lut("toy", device=board(**changes), backend="analytic")
    assert find_priced(load_space("toy"), board(**changes))


def test_titles_and_origins_are_no_conditions() -> None:
    build_lut("toy", device=board())
    changed = board(title="the same board", analytic={"fitted_to": "a datasheet"})
    assert find_priced(load_space("toy"), changed)


def test_a_device_named_like_a_shipped_one_does_not_get_its_table() -> None:
    with pytest.raises(QuadranasError, match=r"cpu\.json was made .* runtime TFLite") as e:
        find_priced(load_space("toy"), board(name="cpu"), command="quadranas build-lut ...")
    assert e.value.hint == (
        "Give the device a name of its own; then make its table with: quadranas build-lut ... "
        "--backend analytic"
    )
    with pytest.raises(QuadranasError, match="method analytic, not measured only"):
        find_priced(load_space("toy"), board(name="cpu").model_copy(update={"analytic": None}))
    assert find_priced(load_space("toy"), load_device("cpu"))


def test_a_table_of_0_1_0_is_compared_as_far_as_it_tells() -> None:
    build_lut("toy", device=board())
    path = table_paths("toy", "board")[0]
    table = load_table(path)
    header = table.header.model_copy(update={"model": None})
    table.model_copy(update={"header": header}).save(path)
    assert find_priced(load_space("toy"), board(analytic={"overhead_us": 20}))
    with pytest.raises(QuadranasError, match="threads 1, not 2"):
        find_priced(load_space("toy"), board(threads=2))


def test_the_copy_in_a_run_is_passed_over_if_the_device_has_changed() -> None:
    own = Path("table.json")
    build_lut("toy", device=board(), output=own)
    assert find_priced(load_space("toy"), board(), own=own).path == own
    build_lut("toy", device=board(threads=2))
    assert (
        find_priced(load_space("toy"), board(threads=2), own=own).path
        == table_paths("toy", "board")[0]
    )


@pytest.mark.parametrize(("space", "device"), SHIPPED_TABLES)
def test_shipped_tables_have_the_numbers_of_their_model(space: str, device: str) -> None:
    header = find_table(load_space(space), device).header
    model = load_device(device).analytic
    assert model is not None
    assert header.model == model.numbers
    assert not header.differences(load_device(device))


def test_measured_tables_are_compared_with_runtime_target_and_tuning() -> None:
    pi = Device(
        name="pi",
        title="a Pi",
        runtime="tvm",
        target={"kind": "llvm", "mcpu": "cortex-a76"},
        precision="fp32",
        threads=1,
    )
    measurement = Measurement(
        hardware="a Pi",
        target='{"mcpu": "cortex-a76", "kind": "llvm"}',
        versions={},
        settings={"tuning": "32 trials"},
        num_rounds=1,
        repeats=1,
        num_disturbed=0,
        noise=0,
        reference_ms=1,
    )
    changes: dict[str, Any] = {
        "method": "measured",
        "backend": "tvm",
        "precision": "fp32",
        "threads": 1,
    }
    changes |= {"device": "pi", "measurement": measurement, "tuning_trials": 32, "model": None}
    header = load_table(SHIPPED).header.model_copy(update=changes)
    assert header.differences(pi) == []
    assert header.model_copy(update={"tuning_trials": None}).differences(pi) == []
    found = in_words(header.differences(pi.configured(tuning_trials=0, target="llvm")))
    assert found == (
        'target {"kind": "llvm", "mcpu": "cortex-a76"}, not llvm; tuning_trials 32, not 0'
    )
    other = pi.configured(runtime="onnxruntime", batch_size=2, target=None)
    assert in_words(header.differences(other)).startswith(
        "batch_size 1, not 2; backend tvm, not onnxruntime"
    )
    assert header.differences(pi.configured(runtime="fastest", target=None)) == []


def test_an_old_table_gets_its_model_and_keeps_the_rest() -> None:
    path = table_paths("toy", "vpu")[0]
    table = load_table(SHIPPED)
    table.model_copy(update={"header": table.header.model_copy(update={"model": None})}).save(path)
    assert '"model": {' not in path.read_text(encoding="utf-8")
    build_lut("toy", device="vpu", backend="analytic", only_missing=True)
    assert path.read_bytes() == SHIPPED.read_bytes()
    faster = table.entries[0].model_copy(update={"latency_ms": 0.01})
    header = table.header.model_copy(update={"model": None})
    LatencyTable(header=header, entries=(faster, *table.entries[1:])).save(path)
    with pytest.raises(QuadranasError, match=r"another analytic model .* 0\.01 ms, not 0\.0483"):
        build_lut("toy", device="vpu", backend="analytic", only_missing=True)
