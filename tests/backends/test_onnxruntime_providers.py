"""Execution providers of ONNX Runtime.

`AzureExecutionProvider` is in every package and runs no node on this machine, so with it all nodes
fall back to the CPU.
"""

import warnings
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

import quadranas
from quadranas.backends.interface import Backend, ProgramWithNotes
from quadranas.backends.onnxruntime_providers import CPU, offered_providers, providers_of
from quadranas.backends.registry import open_backend
from quadranas.errors import QuadranasError
from quadranas.latency.device import load_device, target_text
from quadranas.reporter import Reporter
from tests.measuring import board
from tests.onnx_files import write

onnxruntime = pytest.importorskip("onnxruntime")

AZURE = "AzureExecutionProvider"
SHAPE = (1, 3, 8, 8)


@pytest.fixture
def network() -> nn.Module:
    """Four nodes."""
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sigmoid(), nn.Flatten(), nn.Linear(144, 5)).eval()


def opened(folder: Path, target: Any, **changes: Any) -> Backend:
    """The backend of a device with a target."""
    return open_backend(board(target=target, **changes), folder)


def test_the_cpu_can_be_named(tmp_path: Path, network: nn.Module) -> None:
    images = torch.randn(SHAPE)
    targets: tuple[Any, ...] = (None, CPU, [CPU], [{CPU: {}}])
    for target in targets:
        with closing(opened(tmp_path, target)) as backend:
            program = backend.compile(network, SHAPE)
            assert isinstance(program, ProgramWithNotes)
            assert program.notes == ()
            torch.testing.assert_close(program.run(images), network(images))
            assert backend.provenance().runtime == f"ONNX Runtime {onnxruntime.__version__}"


def test_a_fallback_is_counted_named_and_refused(tmp_path: Path, network: nn.Module) -> None:
    with closing(opened(tmp_path, AZURE)) as backend, pytest.raises(QuadranasError) as caught:
        backend.compile(network, SHAPE)
    message = caught.value.message
    assert (
        "4 nodes of Sequential would run on the CPU instead of AzureExecutionProvider" in message
    )
    assert "(Conv)" in message
    assert CPU in caught.value.hint


def test_a_fallback_that_is_allowed_is_stated(tmp_path: Path, network: nn.Module) -> None:
    images = torch.randn(SHAPE)
    with closing(opened(tmp_path, [AZURE, CPU])) as backend:
        program = backend.compile(network, SHAPE)
        assert isinstance(program, ProgramWithNotes)
        assert program.notes[0].startswith("4 nodes run on the CPU: ")
        torch.testing.assert_close(program.run(images), network(images))
        assert len(program.time_ms(3)) == 3
        provenance = backend.provenance()
    assert f"({AZURE}, {CPU})" in provenance.runtime
    assert provenance.hardware.startswith("a board, ")
    assert provenance.settings == {}


def test_copies_are_timed_only_where_they_are_asked_for(
    tmp_path: Path, network: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    for time_copies in (False, True):
        calls: list[str] = []
        with closing(opened(tmp_path, [AZURE, CPU], time_copies=time_copies)) as backend:
            program = backend.compile(network, SHAPE)
            for name in ("run", "run_with_iobinding"):
                watch(program.session, name, calls, monkeypatch)  # type: ignore[attr-defined]
            program.time_ms(2)
            assert calls == 3 * ["run" if time_copies else "run_with_iobinding"]
            assert backend.provenance().settings == ({"copies": "timed"} if time_copies else {})


def watch(session: Any, name: str, calls: list[str], patch: pytest.MonkeyPatch) -> None:
    """Note the calls of a method."""
    method = getattr(session, name)

    def called(*arguments: Any) -> Any:
        calls.append(name)
        return method(*arguments)

    patch.setattr(session, name, called)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("CudaExecutionProvider", "offers no execution provider 'CudaExecutionProvider'; it off"),
        ([AZURE, "NPU"], "offers no execution provider 'NPU'"),
        ([CPU, AZURE], "is no list of execution providers"),
        ([AZURE, AZURE], "is no list of execution providers"),
        ([], "is no list of execution providers"),
        (3, "target 3 is no execution provider"),
        ({"kind": "llvm"}, "is no execution provider"),
        ([{AZURE: {}, CPU: {}}], "is no execution provider"),
    ],
)
def test_an_impossible_target_is_one_error(tmp_path: Path, target: Any, message: str) -> None:
    with pytest.raises(QuadranasError, match=message) as caught:
        opened(tmp_path, target)
    if "offers" in message:
        assert ", ".join(offered_providers()) in caught.value.message


def test_the_precision_sets_the_options_of_a_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda, tensorrt = "CUDAExecutionProvider", "TensorrtExecutionProvider"
    monkeypatch.setattr(
        "quadranas.backends.onnxruntime_providers.offered_providers", lambda: [cuda, tensorrt, CPU]
    )

    def options(target: Any, precision: str) -> list[dict[str, str]]:
        found = providers_of(board(target=target, precision=precision))
        return [provider.texts for provider in found.chosen]

    assert options([{cuda: {"device_id": 1}}, CPU], "fp32") == [
        {"device_id": "1", "use_tf32": "0"},
        {},
    ]
    assert options(cuda, "tf32") == [{"use_tf32": "1"}]
    assert options([{tensorrt: {"trt_fp16_enable": True}}], "fp16") == [{"trt_fp16_enable": "1"}]
    assert providers_of(board(target=cuda)).memory == "cuda"
    with pytest.raises(QuadranasError, match=r"use_tf32: 1 of CUDA.* contradicts precision"):
        options([{cuda: {"use_tf32": 1}}], "fp32")
    with pytest.raises(QuadranasError, match="CUDAExecutionProvider runs fp32 or tf32, not int8"):
        options(cuda, "int8")


def test_a_device_file_names_providers_with_options(tmp_path: Path) -> None:
    content = {"name": "board", "title": "a board", "runtime": "onnxruntime", "precision": "fp32"}
    target = [{AZURE: {"a": 1, "b": "two", "c": True}}, CPU]
    (tmp_path / "board.yaml").write_text(yaml.safe_dump(content | {"target": target}))
    device = load_device(tmp_path / "board.yaml")
    assert device.target == target
    device.save(tmp_path / "again.yaml")
    assert load_device(tmp_path / "again.yaml") == device
    assert device.conditions.target == target_text(target) != target_text([AZURE, CPU])


def test_a_file_of_others_gives_no_options(tmp_path: Path) -> None:
    """They can name libraries, which would be loaded."""
    device = board(target=[{AZURE: {"backend_path": "/tmp/evil.so"}}, CPU])
    assert device.has_provider_options
    assert device.has_way
    assert device.without_reach().target == [AZURE, CPU]
    assert not device.without_reach().has_way
    assert board(target=[AZURE, CPU]).without_reach().target == [AZURE, CPU]
    assert board(target="CPU").without_reach().target == "CPU"


def test_a_provider_that_cannot_be_started_is_one_error(
    tmp_path: Path, network: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this package of ONNX Runtime has CUDA")
    offered = ["CUDAExecutionProvider", CPU]
    monkeypatch.setattr(
        "quadranas.backends.onnxruntime_providers.offered_providers", lambda: offered
    )
    with closing(opened(tmp_path, offered)) as backend, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(QuadranasError, match="could not start CUDAExecutionProvider, and wo"):
            backend.compile(network, SHAPE)


def test_time_states_what_runs_on_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quadranas.measurement.timing.LOST", 2.0)
    path = write(tmp_path / "net.onnx", "h = Relu(x)\ny = Sigmoid(h)")
    messages: list[str] = []

    class Listening(Reporter):
        def message(self, text: str) -> None:
            messages.append(text)

    result = quadranas.time(path, device=board(target=[AZURE, CPU]), reporter=Listening())
    assert result.notes[0].startswith("2 nodes run on the CPU: ")
    assert any("networks, first: " in message for message in messages)
    with pytest.raises(QuadranasError, match=r"2 nodes of .*net\.onnx would run on the CPU"):
        quadranas.time(path, device=board(target=AZURE))


def test_a_plug_in_runs_networks_or_says_why_not(tmp_path: Path, network: nn.Module) -> None:
    """`onnxruntime-ep-openvino`, where it is installed."""
    if find_spec("onnxruntime_ep_openvino") is None:
        pytest.skip("onnxruntime-ep-openvino is not installed")
    target = "OpenVINOExecutionProvider"
    assert target in offered_providers()
    images = torch.randn(SHAPE)
    with closing(opened(tmp_path, target)) as backend:
        try:
            program = backend.compile(network, SHAPE)
        except QuadranasError as error:
            if "finds no hardware that it supports on this machine" not in error.message:
                raise
            pytest.skip(error.message)
        torch.testing.assert_close(program.run(images), network(images), rtol=1e-3, atol=1e-3)
        assert len(program.time_ms(3)) == 3
        assert "onnxruntime-ep-openvino" in backend.provenance().versions
