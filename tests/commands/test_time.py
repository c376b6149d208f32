"""time: files of any origin, on devices of this machine."""

import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from torch import nn

import quadranas
from quadranas.backends.interface import Conversion, FileBackend
from quadranas.backends.registry import open_backend
from quadranas.commands.predict import predict
from quadranas.errors import QuadranasError
from quadranas.latency.device import load_device
from quadranas.latency.processor import CallTimes
from quadranas.latency.runtimes import RUNTIMES
from tests.command_line import call
from tests.command_tool import TOOL
from tests.measuring import board
from tests.onnx_files import model, write

QUICK = ("--device", "host", "--rounds", "2")


@pytest.fixture(autouse=True)
def working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    # Other tests keep the machine busy; a call cannot lose more than all of its time.
    monkeypatch.setattr("quadranas.measurement.timing.LOST", 2.0)


def write_net(path: str = "net.onnx", **options: Any) -> Path:
    """A convolution as an ONNX file."""
    return write(Path(path), "y = Relu(x)", **options)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino", "torch"])
def test_a_file_of_every_runtime_of_this_machine_is_timed(runtime: str, tmp_path: Path) -> None:
    facts = RUNTIMES[runtime]
    device = board(runtime=runtime)
    path = tmp_path / f"net{facts.own_files.suffix}"
    with closing(open_backend(device, tmp_path)) as backend:
        assert isinstance(backend, FileBackend)
        network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()).eval()
        backend.convert(network, Conversion(input_shape=(1, 3, 16, 16)), path)
    result = quadranas.time(path, device=device)
    assert list(result.inputs.values()) == [(1, 3, 16, 16)]
    assert result.runtime.startswith(facts.title)
    assert 0 < result.minimum_ms <= result.p50_ms <= result.p95_ms
    assert result.minimum_ms <= result.latency_ms <= result.p95_ms
    assert result.rounds >= 2
    assert result.predicted_ms is None
    assert result.not_predicted == "device 'board' has no analytic model"
    host = quadranas.time(path, device="host")
    assert host.runtime == result.runtime


def test_openvino_times_onnx_files_too() -> None:
    pytest.importorskip("openvino")
    write_net()
    result = quadranas.time("net.onnx", device=board(runtime="openvino"))
    assert result.runtime.startswith("OpenVINO")


def test_the_estimate_of_the_model_stands_beside_the_measurement() -> None:
    write_net()
    device = board(analytic=load_device("cpu").analytic)
    result = quadranas.time("net.onnx", device=device)
    assert result.predicted_ms == predict("net.onnx", device=device).latency_ms
    assert result.deviation == pytest.approx(result.latency_ms / result.predicted_ms - 1)
    assert not result.is_lower_bound
    device.save(Path("board.yaml"))
    text = call("time", "net.onnx", "--device", "board.yaml").out
    assert "predicted by the analytic model: " in text
    for part in ("p50", "p95", "noise", " rounds"):
        assert part in text


def test_a_command_times_a_file() -> None:
    write_net()
    text = "import time; time.sleep(0.002); print('call took 1 ms')"
    run = [sys.executable, "-SIc", text, "{file}"]
    device = board(runtime="command", command=TOOL | {"run": run})
    with pytest.raises(QuadranasError, match="is measured by a command"):
        quadranas.time("net.onnx", device=device)
    result = quadranas.time("net.onnx", device=device, allow_commands=True)
    assert (result.runtime, result.hardware) == (TOOL["tool"], "a board")
    assert (result.latency_ms, result.p95_ms, result.dropped) == (1.0, 1.0, None)
    Path("net.xml").write_text("<net/>", encoding="utf-8")
    with pytest.raises(QuadranasError, match=r"times files of \.onnx, not net\.xml"):
        quadranas.time("net.xml", device=device, allow_commands=True)


def export_open(path: str) -> None:
    """A file with open sizes and two inputs, one of integers."""
    onnx = pytest.importorskip("onnx")
    graph = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 18]>'
        "net (float[batch, 3, height, width] image, int64[1] shift) => (float[b, c, h, w] y) {"
        " moved = Cast <to = 1> (shift) y = Add(image, moved) }"
    )
    onnx.save(graph, path)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_open_sizes_and_several_inputs(runtime: str) -> None:
    export_open("open.onnx")
    device = board(runtime=runtime, batch_size=2)
    result = quadranas.time("open.onnx", device=device, resolution=24)
    assert result.inputs == {"image": (2, 3, 24, 24), "shift": (1,)}
    named = quadranas.time("open.onnx", device=device, inputs={"image": (1, 3, 8, 16)})
    assert named.inputs["image"] == (1, 3, 8, 16)


def test_weights_can_lie_beside_the_file() -> None:
    onnx = pytest.importorskip("onnx")
    whole = model("y = Conv(x, w)", {"w": (8, 8, 3, 3)})
    onnx.save(whole, "net.onnx", save_as_external_data=True, size_threshold=0)
    assert Path("net.onnx").stat().st_size < 8 * 8 * 3 * 3 * 4
    assert quadranas.time("net.onnx", device="host").latency_ms > 0


def test_a_busy_machine_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    write_net()
    from quadranas.backends.onnxruntime import OnnxRuntimeProgram

    def disturbed(program: object, repeats: int) -> list[float]:
        return CallTimes([1.0] * repeats, [0.5] * repeats)

    monkeypatch.setattr(OnnxRuntimeProgram, "time_ms", disturbed)
    monkeypatch.setattr("quadranas.measurement.timing.LOST", 0.01)
    outcome = call("time", "net.onnx", *QUICK)
    assert outcome.code == 2
    assert "net.onnx is not measured: the machine was busy: 100%" in outcome.err


def test_what_cannot_be_timed_is_one_error() -> None:
    write_net()
    export_open("open.onnx")
    Path("text.onnx").write_text("GIF89a", encoding="utf-8")
    Path("net.so").write_bytes(b"\x7fELF")
    for words, message in (
        (("absent.onnx", *QUICK), "absent.onnx"),
        (("text.onnx", *QUICK), "ONNX Runtime cannot read text.onnx"),
        (("net.so", *QUICK), "times no files, not net.so"),
        (("net.onnx", "--device", "cpu"), "(TVM) times no files"),
        (("net.onnx", "--device", "gpu"), "(CUDA) times no files"),
        (("open.onnx", *QUICK), "its input image (?, 3, ?, ?) has open sizes"),
        (("net.onnx", *QUICK, "--input", "z=1,3"), "unknown input 'z'"),
        (("net.onnx", *QUICK, "--input", "x=1,2"), "cannot have the shape 1,2"),
        (("open.onnx", *QUICK, "--input", "image=1,3,0,8"), "cannot have the shape 1,3,0,8"),
        (("net.onnx", *QUICK, "--resolution", "999"), "no input has the size 999"),
    ):
        outcome = call("time", *words)
        assert outcome.code == 2, words
        assert message in outcome.err, words
