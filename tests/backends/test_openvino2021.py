"""The Myriad's worker process: right results, clear refusals, and workers that die or hang.

Most of it needs a Python with OpenVINO 2021.4.2 (`.ci/install_worker_python FOLDER` makes one),
whose CPU device stands in for the stick. No stick is needed; none must be plugged in.
"""

import json
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from ctypes.util import find_library
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from quadranas.backends.interface import Backend, Conversion, Program
from quadranas.backends.onnx_file import to_onnx
from quadranas.backends.openvino2021 import OpenVino2021Backend
from quadranas.backends.worker_client import Patience
from quadranas.backends.worker_process import SCRIPT
from quadranas.errors import DeviceLostError, MissingExtraError, QuadranasError
from quadranas.latency.device import Device, Reach
from quadranas.layers import build_op
from quadranas.network.skeleton import build_subnet
from quadranas.space.operation import OpSpec
from quadranas.space.space_file import load_space, space_files

Scrambler = Callable[..., nn.Module]

WORKER_PYTHON = os.environ.get("QUADRANAS_WORKER_PYTHON", "")
needs_worker = pytest.mark.skipif(
    not WORKER_PYTHON,
    reason="QUADRANAS_WORKER_PYTHON names no Python with OpenVINO 2021.4.2; "
    "make one with .ci/install_worker_python FOLDER",
)
TOLERANCE = 1e-4
"""Absolute and relative: in float32 sums are taken in another order; bfloat16 misses it by far."""

SHAPE = (1, 3, 32, 32)


def device(python: str = WORKER_PYTHON, **changes: Any) -> Device:
    content = {
        "name": "stick",
        "title": "a stick",
        "runtime": "openvino2021",
        "target": "CPU",
        "precision": "fp32",
        "threads": 1,
        "reach": Reach(worker_python=python),
    }
    return Device.model_validate(content | changes)


def myriad(python: str = WORKER_PYTHON) -> Device:
    return device(python, target="MYRIAD", precision="fp16", threads=None)


def children() -> set[int]:
    """The processes that this one has started and not yet seen end."""
    tasks = Path("/proc/self/task").glob("*/children")
    return {int(pid) for task in tasks for pid in task.read_text().split()}


@pytest.fixture(scope="module")
def shared() -> Iterator[OpenVino2021Backend]:
    with OpenVino2021Backend(device(), Path()) as backend:
        yield backend


@contextmanager
def opened(**patience: Any) -> Iterator[OpenVino2021Backend]:
    """A backend of one's own, that leaves no process and no file behind."""
    before = children()
    with OpenVino2021Backend(device(), Path(), Patience(**patience)) as backend:
        folder = Path(backend._folder.name)
        assert children() > before
        assert folder.is_dir()
        yield backend
    assert children() == before
    assert not folder.exists()


def pid(backend: OpenVino2021Backend) -> int:
    assert backend.client.worker is not None
    return backend.client.worker.pid


@pytest.fixture
def network(scramble: Scrambler) -> nn.Module:
    space = load_space("toy")
    choices = space.extreme(lambda spec: spec.kernel_size, largest=True)
    return scramble(build_subnet(choices)).eval()


def computed(network: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        output: Tensor = network(images)
    return output


def assert_right(backend_output: Tensor, network: nn.Module, images: Tensor) -> None:
    assert backend_output.dtype == torch.float32
    expected = computed(network, images)
    torch.testing.assert_close(backend_output, expected, rtol=TOLERANCE, atol=TOLERANCE)


def small_specs(space: str) -> list[OpSpec]:
    """The operations of a space without two that differ in size only, made small."""
    specs: dict[OpSpec, None] = {}
    for spec in load_space(space).specs():
        channels = {"in_channels": 12, "out_channels": 12}
        if spec.in_channels == 3:
            channels["in_channels"] = 3
        if spec.in_channels != spec.out_channels:
            channels["out_channels"] = 8
        specs[OpSpec.model_validate(spec.model_dump() | channels | {"resolution": 8})] = None
    return list(specs)


@needs_worker
@pytest.mark.parametrize("space", space_files())
def test_every_operation_computes_what_pytorch_computes(
    shared: Backend, scramble: Scrambler, space: str
) -> None:
    specs = small_specs(space)
    assert {spec.kind for spec in specs} == {spec.kind for spec in load_space(space).specs()}
    for spec in specs:
        op = scramble(build_op(spec)).eval()
        images = torch.randn(1, spec.in_channels, spec.resolution, spec.resolution)
        program = shared.compile(op, images.shape)
        assert_right(program.run(images), op, images)


@needs_worker
def test_a_network_is_run_and_timed(shared: Backend, network: nn.Module) -> None:
    program = shared.compile(network, SHAPE)
    images = torch.randn(SHAPE)
    start = time.perf_counter()
    latencies_ms = program.time_ms(7)
    total_ms = (time.perf_counter() - start) * 1e3
    assert len(latencies_ms) == 7
    assert all(math.isfinite(ms) and ms > 0 for ms in latencies_ms)
    assert sum(latencies_ms) < total_ms  # so they are milliseconds, or less; and not much less:
    assert sum(latencies_ms) > 7 * 1e-3  # a call takes more than a microsecond
    assert_right(program.run(images), network, images)


@needs_worker
def test_batches_and_other_memory_formats(shared: Backend, network: nn.Module) -> None:
    images = torch.randn(3, 3, 32, 32).to(memory_format=torch.channels_last)
    assert_right(shared.compile(network, images.shape).run(images), network, images)


@needs_worker
def test_an_input_of_another_shape_is_refused(shared: Backend, network: nn.Module) -> None:
    program = shared.compile(network, SHAPE)
    with pytest.raises(QuadranasError, match=r"compiled for \(1, 3, 32, 32\), got \(1, 3, 8, 8\)"):
        program.run(torch.zeros(1, 3, 8, 8))


@needs_worker
def test_provenance_names_runtime_hardware_and_settings(shared: Backend) -> None:
    provenance = shared.provenance()
    assert provenance.runtime == "OpenVINO 2021.4.2 (CPU)"
    assert provenance.hardware not in ("", "a stick")
    assert provenance.versions["torch"] == torch.__version__
    assert provenance.settings["CPU_THREADS_NUM"] == "1"
    assert provenance.settings["ENFORCE_BF16"] == "NO"
    assert not provenance.emulated
    assert shared.max_parallel == 1


@needs_worker
@pytest.mark.usefixtures("exports")
def test_newer_opsets_are_refused(
    shared: OpenVino2021Backend, network: nn.Module, tmp_path: Path
) -> None:
    images = torch.randn(SHAPE)
    new, old = tmp_path / "new.onnx", tmp_path / "old.onnx"
    with pytest.raises(QuadranasError, match=r"reads ONNX of opset 13 at most, got opset 17"):
        shared.convert(network, Conversion(input_shape=SHAPE, opset=17), new)
    new.write_bytes(to_onnx(network, Conversion(input_shape=SHAPE)))
    with pytest.raises(QuadranasError, match=r"new\.onnx is of opset 18; .* reads 13 at most"):
        shared.load(new, SHAPE)
    shared.convert(network, Conversion(input_shape=SHAPE, opset=13), old)
    assert_right(shared.load(old, SHAPE).run(images), network, images)
    counts = shared.count_operators(old)
    assert counts["Conv"] > 0
    assert "LayerNormalization" not in counts


@needs_worker
def test_what_onnx_lacks_is_explained(shared: Backend, capfd: pytest.CaptureFixture[str]) -> None:
    class HyperbolicSine(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.sinh(x)

    with pytest.raises(QuadranasError, match=r"HyperbolicSine cannot be .*opset 13.*sinh"):
        shared.compile(HyperbolicSine(), SHAPE)
    assert capfd.readouterr().out == ""  # stdout is for --json


@needs_worker
def test_what_openvino_refuses_is_explained(network: nn.Module) -> None:
    with opened() as backend:
        backend._config["NO_SUCH_KEY"] = "1"
        backend.client.stop()  # the next worker opens with it
        with pytest.raises(QuadranasError, match=r"cannot load Network .* on CPU: .*NO_SUCH_KEY"):
            backend.compile(network, SHAPE)


@needs_worker
def test_networks_make_room_for_each_other(
    network: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a stick, which holds one at a time."""
    images = torch.randn(SHAPE)
    with opened() as backend:
        monkeypatch.setattr(backend.client, "max_loaded", 1)
        other = build_op(OpSpec(kind="conv_bn", in_channels=3, out_channels=4, resolution=32))
        programs = [(backend.compile(net, SHAPE), net) for net in (network, other.eval())]
        for program, net in [*programs, *reversed(programs)]:
            assert_right(program.run(images), net, images)
            assert len(backend.client.loaded) == 1


@needs_worker
def test_a_missing_stick_is_explained(network: nn.Module) -> None:
    with OpenVino2021Backend(myriad(), Path()) as backend:
        assert backend.provenance().runtime == "OpenVINO 2021.4.2 (MYRIAD)"
        with pytest.raises(QuadranasError) as caught:
            backend.compile(network, SHAPE)
    assert not isinstance(caught.value, DeviceLostError)
    if find_library("usb-1.0") is None:
        assert caught.value.message.endswith("libusb-1.0.so.0 is not installed")
        assert "apt-get install libusb-1.0-0" in caught.value.hint
    else:
        assert re.search("no Myriad stick .*NC_ERROR", caught.value.message)
        assert "lsusb" in caught.value.hint


@needs_worker
def test_a_worker_killed_between_requests_is_replaced(network: nn.Module) -> None:
    images = torch.randn(SHAPE)
    with opened() as backend:
        programs = [backend.compile(network, SHAPE) for _ in range(2)]
        for program in programs:
            first = pid(backend)
            os.kill(first, signal.SIGKILL)
            assert_right(program.run(images), network, images)
            assert pid(backend) != first
        assert len(programs[0].time_ms(3)) == 3


def after(seconds: float, action: Callable[[], None]) -> threading.Timer:
    timer = threading.Timer(seconds, action)
    timer.start()
    return timer


@needs_worker
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGSTOP])
def test_a_worker_lost_in_the_middle_of_a_request_is_replaced(
    network: nn.Module, sent: signal.Signals
) -> None:
    images = torch.randn(SHAPE)
    with opened(call_s=3) as backend:
        program = backend.compile(network, SHAPE)
        repeats = int(600 / min(program.time_ms(20)))  # 0.6 s at least
        first = pid(backend)
        timer = after(0.1, lambda: os.kill(first, sent))
        assert len(program.time_ms(repeats)) == repeats
        timer.join()
        assert pid(backend) != first
        assert_right(program.run(images), network, images)


@needs_worker
def test_a_worker_that_hangs_while_loading_is_replaced(network: nn.Module) -> None:
    with opened(load_s=3) as backend:
        os.kill(pid(backend), signal.SIGSTOP)
        program = backend.compile(network, SHAPE)
        assert len(program.time_ms(1)) == 1


@needs_worker
def test_a_worker_that_is_always_killed_is_given_up(network: nn.Module) -> None:
    done = threading.Event()

    def kill_again_and_again() -> None:
        while not done.wait(0.05):
            if backend.client.worker is not None:
                with suppress(ProcessLookupError, AttributeError):
                    os.kill(backend.client.worker.pid, signal.SIGKILL)

    with opened(retries=2) as backend:
        program = backend.compile(network, SHAPE)
        killer = threading.Thread(target=kill_again_and_again)
        killer.start()
        try:
            with pytest.raises(DeviceLostError) as caught:
                program.time_ms(100_000)
        finally:
            done.set()
            killer.join()
        assert "lost 3 times when asked to time a network" in caught.value.message
        assert "killed by SIGKILL" in caught.value.message
        assert len(program.time_ms(2)) == 2  # and it can be asked again


def interrupted_timing(program: Program) -> None:
    """All in one, because a loaded machine may deliver the interrupt before the timing begins."""
    after(0.3, lambda: os.kill(os.getpid(), signal.SIGINT))
    program.time_ms(100_000)


@needs_worker
def test_an_interrupt_leaves_no_answer_behind(network: nn.Module) -> None:
    images = torch.randn(SHAPE)
    with opened() as backend:
        program = backend.compile(network, SHAPE)
        with pytest.raises(KeyboardInterrupt):
            interrupted_timing(program)
        assert_right(program.run(images), network, images)


@needs_worker
@pytest.mark.parametrize("end", ["", "SIGINT", "SIGTERM", "SIGKILL"])
def test_no_worker_outlives_its_owner(tmp_path: Path, end: str) -> None:
    code = f"""
import os, signal
from pathlib import Path
from quadranas.backends.worker_process import SCRIPT, WorkerProcess
command = [{WORKER_PYTHON!r}, "-I", str(SCRIPT)]
worker = WorkerProcess(command, Path({str(tmp_path / "log")!r}))
worker.ask("open", 60, runtime="openvino2021", settings={{"target": "CPU", "config": {{}}}})
print(worker.pid, flush=True)
if {end!r}:
    os.kill(os.getpid(), signal.{end or "SIGINT"})
"""
    owner = [sys.executable, "-c", code]
    started = subprocess.run(owner, capture_output=True, text=True, check=False)
    wait_for_end(int(started.stdout))


def wait_for_end(process: int) -> None:
    """One that ended may stay listed as a zombie: its parent is gone."""
    status = Path(f"/proc/{process}/status")
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        with suppress(ProcessLookupError):
            if not status.exists() or "\nState:\tZ" in status.read_text():
                return
        time.sleep(0.02)
    raise AssertionError(f"process {process} still runs")


@needs_worker
def test_the_worker_answers_every_fault() -> None:
    requests = [
        "no JSON",
        "[1]",
        "{}",
        '{"id": 1, "do": "dance"}',
        '{"id": 2, "do": "time", "handle": 5, "repeats": 1}',
        '{"id": 3, "do": "unload"}',
        '{"id": 4, "do": "open", "runtime": "openvino2021", '
        '"settings": {"target": "CPU", "config": {}}}',
        '{"id": 5, "do": "load", "path": "/nonexistent.onnx", "shapes": {}, "batch": null}',
    ]
    done = subprocess.run(
        [WORKER_PYTHON, "-I", str(SCRIPT)],
        input="\n".join(requests) + "\n",
        capture_output=True,
        text=True,
        check=True,
    )
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [answer["id"] for answer in answers] == [None, None, None, 1, 2, 3, 4, 5]
    opened = answers.pop(-2)
    assert opened["result"]["versions"]["openvino"].startswith("2021.4")
    assert all("error" in answer for answer in answers)
    assert "/nonexistent.onnx" in answers[-1]["error"]


def test_a_python_without_openvino_2021_is_explained() -> None:
    """Our own: it has no OpenVINO, or one that is too new."""
    before = children()
    with pytest.raises(QuadranasError, match=r"OpenVINO 2021\.4 does not work there") as caught:
        OpenVino2021Backend(device(sys.executable), Path())
    assert sys.executable in caught.value.message
    assert "pip install openvino==2021.4.2" in caught.value.hint
    assert children() == before


@pytest.mark.parametrize(
    "python", ["/nonexistent/python", "no-such-python", "/tmp", "/etc/passwd"]
)
def test_a_python_that_cannot_be_started_is_explained(python: str) -> None:
    with pytest.raises(QuadranasError, match="it cannot be started") as caught:
        OpenVino2021Backend(device(python), Path())
    assert python in caught.value.message
    assert "pip install openvino==2021.4.2" in caught.value.hint


@pytest.mark.parametrize(
    ("script", "fault"),
    [
        ("echo Traceback >&2; exit 3", "ended with exit code 3\n  stderr: Traceback"),
        ("read line; echo Hello", "answered b'Hello', which is not an answer"),
        ("exec sleep 60", "no answer came in 0.5 s"),
        ("kill -SEGV $$", "killed by SIGSEGV"),
    ],
)
def test_what_is_no_worker_is_explained(tmp_path: Path, script: str, fault: str) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    with pytest.raises(QuadranasError) as caught:
        OpenVino2021Backend(device(str(python)), Path(), Patience(load_s=0.5))
    assert fault in caught.value.message


STICK = """#!{python}
import json, pathlib, sys
starts = pathlib.Path({folder!r}, "starts")
starts.write_text(starts.read_text() + "." if starts.exists() else ".")
for line in sys.stdin:
    request = json.loads(line)
    answer = {{"result": {{"versions": {{"openvino": "2021.4.2-0"}}, "handle": 1, "ms": [1.5]}}}}
    if request["do"] == "time" and len(starts.read_text()) < {starts}:
        answer = {{"error": "RuntimeError: Failed to allocate graph: NC_ERROR"}}
    print(json.dumps({{"id": request["id"], **answer}}), flush=True)
"""


@pytest.mark.parametrize("starts", [3, 99])
def test_a_stick_that_answered_before_counts_as_lost(
    tmp_path: Path, network: nn.Module, starts: int
) -> None:
    """A script in the worker's place: it fails as the plugin does when the stick is pulled out."""
    python = tmp_path / "python"
    python.write_text(STICK.format(python=sys.executable, folder=str(tmp_path), starts=starts))
    python.chmod(0o755)
    with OpenVino2021Backend(device(str(python)), Path()) as backend:
        program = backend.compile(network, SHAPE)
        if starts == 3:
            assert program.time_ms(1) == [1.5]
            return
        with pytest.raises(DeviceLostError, match=r"lost 4 times .*NC_ERROR") as caught:
            program.time_ms(1)
        assert "plugged in" in caught.value.hint


def test_what_the_worker_started_ends_with_it(tmp_path: Path) -> None:
    python = tmp_path / "python"
    child = tmp_path / "child"
    python.write_text(f"#!/bin/sh\nsleep 60 & echo $! > {child}\nexit 1\n")
    python.chmod(0o755)
    with pytest.raises(QuadranasError, match="ended with exit code 1"):
        OpenVino2021Backend(device(str(python)), Path())
    wait_for_end(int(child.read_text()))


def test_an_openvino_of_another_release_is_explained(tmp_path: Path) -> None:
    python = tmp_path / "python"
    answer = json.dumps({"id": 1, "result": {"versions": {"openvino": "2022.3.0-9052"}}})
    python.write_text(f"#!/bin/sh\nread line; echo '{answer}'; read line\n")
    python.chmod(0o755)
    with pytest.raises(QuadranasError, match=r"it has OpenVINO 2022\.3\.0-9052, expected 2021\.4"):
        OpenVino2021Backend(device(str(python)), Path())


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"reach": Reach()}, "has no worker_python"),
        ({"target": "GPU"}, "has the target 'GPU'.*accepted are .*MYRIAD.*CPU"),
        ({"target": 0}, "has the target 0"),
        (
            {"target": "CPU", "precision": "fp16"},
            "has the precision fp16, but CPU computes in fp32",
        ),
        (
            {"target": "MYRIAD", "precision": "fp32"},
            "has the precision fp32, but MYRIAD computes in fp16",
        ),
        (
            {"target": None, "precision": "int8"},
            "has the precision int8, but MYRIAD computes in fp16",
        ),
    ],
)
def test_what_the_release_cannot_do_is_refused(changes: dict[str, Any], fault: str) -> None:
    with pytest.raises(QuadranasError, match=fault):
        OpenVino2021Backend(device("python3", **changes), Path())


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'quadranas\[myriad\]'"):
        OpenVino2021Backend(device("python3"), Path())
