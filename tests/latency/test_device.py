"""Devices as YAML."""

import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from quadranas.errors import QuadranasError
from quadranas.latency.device import Device, Reach, load_device, shipped_devices

BOARD: dict[str, Any] = {
    "name": "board",
    "title": "a board",
    "precision": "fp32",
    "threads": 4,
    "analytic": {
        "runtime": "a runtime",
        "fitted_to": "nothing",
        "expected_error": "unknown",
        "gmacs_per_s": {"conv": 10, "pointwise": 10, "depthwise": 3, "linear": 10},
        "bandwidth_gb_per_s": 8,
        "overhead_us": 10,
    },
}


def change(key: str, value: object) -> dict[str, object]:
    """A key of the analytic model set to something else."""
    return {"analytic": BOARD["analytic"] | {key: value}}


def write(path: Path, content: object) -> str:
    path.write_text(yaml.safe_dump(content))
    return str(path)


@pytest.mark.parametrize("name", sorted({*shipped_devices()} - {"host"}))
def test_shipped_devices_say_where_their_numbers_come_from(name: str) -> None:
    device = load_device(name)
    assert device.name == name
    assert device.analytic is not None
    assert device.analytic.fitted_to
    assert device.analytic.expected_error
    # Without a way to the board, a runtime of this machine would measure another device
    assert device.runtime in (None, "tvm", "cuda", "openvino2021")


def test_ones_own_device_is_read(tmp_path: Path) -> None:
    device = load_device(write(tmp_path / "board.yaml", BOARD))
    assert (device.name, device.threads) == ("board", 4)


def test_an_unknown_device_suggests_the_nearest() -> None:
    with pytest.raises(QuadranasError, match=r"unknown device 'vpx'.*did you mean 'vpu'"):
        load_device("vpx")


@pytest.mark.parametrize(
    ("faulty", "message"),
    [
        ({"precison": "fp16"}, r"board\.yaml: precison: unknown key.*did you mean 'precision'"),
        ({"precision": "fp8"}, r"board\.yaml: precision: .*fp8"),
        ({"threads": 0}, r"board\.yaml: threads: .*0"),
        ({"name": "../up"}, r"board\.yaml: name: "),
        (
            {"analytic": {"gmacs": 3}},
            r"board\.yaml: analytic\.gmacs: unknown key.*did you mean 'gmacs_per_s'.*\n.*missing",
        ),
        ({"analytic": {}}, r"board\.yaml: analytic\.runtime: required key is missing"),
        (
            change("gmacs_per_s", {"conv": 1, "pointwize": 1, "depthwise": 1, "linear": 1}),
            r"board\.yaml: analytic\.gmacs_per_s\.pointwize: unknown key \(got 1\); accepted: "
            r"conv, depthwise, linear, pointwise; did you mean 'pointwise'\?",
        ),
        (change("bandwidth", 8), r"analytic\.bandwidth: unknown key.*'bandwidth_gb_per_s'"),
        (change("bandwidth_gb_per_s", "fast"), r"analytic\.bandwidth_gb_per_s: .*'fast'"),
        (change("bandwidth_gb_per_s", math.nan), r"analytic\.bandwidth_gb_per_s: .*nan"),
        (change("bandwidth_gb_per_s", 1e-320), r"analytic\.bandwidth_gb_per_s: .*1e-320"),
        (change("overhead_us", math.inf), r"analytic\.overhead_us: .*inf"),
        (change("overhead_us", -1), r"analytic\.overhead_us: .*-1"),
        (change("saturation", math.inf), r"analytic\.saturation: .*inf"),
        (change("saturation_channels", "both"), r"analytic\.saturation_channels: .*'both'"),
        ({"batch_size": 0}, r"board\.yaml: batch_size: .*0"),
        (change("bandwidth_gb_per_s", -1), r"board\.yaml: analytic\.bandwidth_gb_per_s: .*-1"),
    ],
)
def test_faults_name_file_key_and_value(
    tmp_path: Path, faulty: dict[str, object], message: str
) -> None:
    path = write(tmp_path / "board.yaml", BOARD | faulty)
    with pytest.raises(QuadranasError, match=message):
        load_device(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(QuadranasError, match=r"cannot read device .*none\.yaml"):
        load_device(str(tmp_path / "none.yaml"))


STICK = {"name": "stick", "title": "a stick", "runtime": "openvino", "precision": "fp16"}


@pytest.mark.parametrize(
    ("content", "runtime"),
    [
        ({"target": "MYRIAD"}, "openvino2021"),
        ({"target": "MYRIAD.1.2-ma2480"}, "openvino2021"),
        ({"target": "CPU", "reach": {"worker_python": "python3.8"}}, "openvino2021"),
        ({"target": "CPU"}, "openvino"),
        ({"target": "MYRIAD", "runtime": "openvino2021"}, "openvino2021"),
        ({"target": None}, "openvino"),
    ],
)
def test_the_devices_of_0_1_0_still_open(
    tmp_path: Path, content: dict[str, Any], runtime: str
) -> None:
    device = load_device(write(tmp_path / "stick.yaml", STICK | content))
    assert device.runtime == runtime
    assert Device.model_validate(device.model_dump()) == device


def test_a_worker_named_later_counts_too() -> None:
    device = Device.model_validate(STICK | {"target": "CPU"})
    assert device.configured(worker_python="python3.8").runtime == "openvino2021"
    assert device.configured(threads=2).runtime == "openvino"


def test_a_device_is_found_by_its_path(tmp_path: Path) -> None:
    path = Path(write(tmp_path / "board.yaml", BOARD))
    assert load_device(path) == load_device(str(path))


def test_an_address_of_one_kind_replaces_one_of_the_other() -> None:
    tracked = load_device("cpu").configured(rpc_tracker="a:1", rpc_key="k")
    served = tracked.configured(rpc="b:2")
    assert served.reach == Reach(rpc="b:2")
    assert served.configured(rpc_tracker="a:1", rpc_key="k") == tracked
    with pytest.raises(QuadranasError, match="not both"):
        served.configured(rpc="b:2", rpc_tracker="a:1", rpc_key="k")


@pytest.mark.parametrize(
    ("reach", "fault"),
    [
        ({"ssh": "-oProxyCommand=touch hacked"}, "reach.ssh: String should match"),
        ({"ssh": "pi@board; touch hacked"}, "reach.ssh: String should match"),
        ({"ssh": "pi@-board"}, "reach.ssh: String should match"),
        ({"ssh": "pi@board", "python": "-c"}, "reach.python: String should match"),
        ({"ssh": "pi@board", "python": "a\nb"}, "reach.python: String should match"),
        ({"ssh": "pi@board", "folder": "$(touch hacked)"}, "reach.folder: String should match"),
        ({"python": "env/bin/python"}, "python needs ssh, the host that it belongs to"),
    ],
)
def test_ways_by_ssh_that_are_none_are_refused(reach: dict[str, str], fault: str) -> None:
    with pytest.raises(QuadranasError) as caught:
        load_device("host").configured(runtime="onnxruntime", **reach)
    assert fault in caught.value.message


@pytest.mark.parametrize("runtime", ["fastest", "tvm", None])
def test_other_runtimes_are_not_reached_by_ssh(runtime: str | None) -> None:
    with pytest.raises(QuadranasError, match=r"reach\.ssh is for the runtimes onnxruntime, ope"):
        load_device("host").configured(runtime=runtime, ssh="pi@board")
