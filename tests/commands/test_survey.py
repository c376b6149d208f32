"""devices and spaces: what is shipped, what is one's own, what has no table."""

import shutil
from pathlib import Path

import pytest

from quadranas.commands.build_lut import build_lut
from quadranas.commands.survey import survey_devices, survey_spaces
from quadranas.errors import QuadranasError
from quadranas.latency.device import shipped_devices
from quadranas.latency.runtimes import RUNTIMES
from quadranas.latency.table_files import find_table, load_table
from quadranas.space.cost import count_macs
from quadranas.space.space_file import load_space, space_files
from quadranas.strategies.limits import reachable_ms
from tests.command_line import call

GOLDEN = Path(__file__).parents[1] / "golden/0.1.0"
MODELLED = sorted({*shipped_devices()} - {"host"})


def test_every_shipped_device_has_a_table_of_every_space() -> None:
    devices = survey_devices([]).devices
    assert [device.name for device in devices] == sorted([*MODELLED, "host"])
    for device in devices:
        if device.name == "host":  # measured where it is, never shipped
            assert device.tables == {}
            assert (device.analytic, device.expected_error) == (False, "unknown")
            continue
        assert set(device.tables) == set(space_files())
        for path in device.tables.values():
            assert load_table(path).header.device == device.name
        assert device.analytic is True
        assert device.expected_error
    assert survey_devices(["cpu"]).devices == (devices[sorted([*MODELLED, "host"]).index("cpu")],)


def test_the_error_of_a_device_without_a_model_is_that_of_its_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (host,) = survey_devices(["host"]).devices
    assert (host.expected_error, host.modelled_runtime) == ("unknown", None)
    table = Path("latency_tables/toy/host.json")
    table.parent.mkdir(parents=True)
    shutil.copy(GOLDEN / "host-table.json", table)
    (host,) = survey_devices(["host"]).devices
    assert (host.expected_error, host.tables) == ("measured", {"toy": table})
    assert "     expected error: measured\n" in call("devices", "host").out
    assert "analytic model of TFLite 2.1; expected error: 3.6 % MAPE" in call("devices", "cpu").out


def test_runtimes_that_are_not_installed_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {name for name, runtime in RUNTIMES.items() if runtime.found_by}
    assert known == set(RUNTIMES) - {"command", "cuda", "openvino2021"}
    absent = ("ai_edge_litert", "executorch", "tvm")
    monkeypatch.setattr(
        "quadranas.latency.runtimes.find_spec", lambda name: None if name in absent else name
    )
    assert survey_devices(["cpu"]).runtimes == ("onnxruntime", "openvino", "torch")


def test_spaces_say_what_they_reach() -> None:
    (toy,) = survey_spaces(["toy"]).spaces
    space = load_space("toy")
    assert (toy.name, toy.architectures, toy.resolution) == ("toy", 400, 32)
    assert toy.min_macs == count_macs(space.extreme(count_macs, largest=False))
    assert toy.max_macs > toy.min_macs
    assert set(toy.devices) == set(MODELLED)
    for name, entry in toy.devices.items():
        table = find_table(space, name)
        assert (entry.min_ms, entry.max_ms) == reachable_ms(space, table)
        assert entry.method == "analytic"
        assert entry.table.is_file()
        assert entry.summary == table.header.summary()
    assert [space.name for space in survey_spaces([], ["vpu"]).spaces] == list(space_files())


def test_a_space_of_one_s_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my space.yaml").write_text("{extends: toy, name: mine}", encoding="utf-8")
    (without,) = survey_spaces(["my space.yaml"]).spaces
    assert without.devices == {}
    command = "quadranas build-lut --device cpu --space 'my space.yaml'"
    with pytest.raises(QuadranasError, match=f"Make it with: {command}"):
        survey_spaces(["my space.yaml"], ["cpu"])
    build_lut("my space.yaml", device="cpu")
    (found,) = survey_spaces(["my space.yaml"]).spaces
    assert set(found.devices) == {"cpu"}
    assert found.devices["cpu"].table == Path("latency_tables/mine/cpu.json")
    (device,) = survey_devices(["cpu"]).devices
    assert device.tables["mine"] == Path("latency_tables/mine/cpu.json")


def test_one_s_own_table_comes_before_the_shipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    build_lut("toy", device="vpu")
    (device,) = survey_devices(["vpu"]).devices
    assert device.tables["toy"] == Path("latency_tables/toy/vpu.json")
