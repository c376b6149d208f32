"""Boards behind a real sshd on loopback: right results, and everything that can go wrong."""

import ast
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from quadranas.backends import ssh_host
from quadranas.backends.interface import Conversion, FileBackend, QuantizingBackend, TimingBackend
from quadranas.backends.registry import open_backend
from quadranas.backends.ssh import SshBackend
from quadranas.backends.worker_client import Patience
from quadranas.backends.worker_process import SCRIPT
from quadranas.errors import (
    DeviceLostError,
    MissingExtraError,
    QuadranasError,
    ThrottledError,
)
from quadranas.latency.processor import CallTimes
from quadranas.latency.runtimes import RUNTIMES
from tests.measuring import board
from tests.ssh_board import ABSENT, SshBoard, ssh_board

pytestmark = pytest.mark.usefixtures("exports")
needs_sshd = pytest.mark.skipif(bool(ABSENT), reason=ABSENT)
SHAPE = (1, 3, 16, 16)
OVER_SSH = [name for name, runtime in RUNTIMES.items() if runtime.over_ssh]
HEAVY = ("executorch", "torch")
"""The runtimes that take seconds to import."""


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 16 * 16, 5)]
    return nn.Sequential(*layers).eval()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshBoard]:
    """A board that no test stops."""
    with ssh_board(tmp_path_factory.mktemp("board")) as found:
        yield found


@pytest.fixture
def own(tmp_path: Path) -> Iterator[SshBoard]:
    """A board of one's own."""
    (tmp_path / "board").mkdir()
    with ssh_board(tmp_path / "board") as found:
        yield found


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connect again at once."""
    monkeypatch.setattr(ssh_host, "PAUSES_S", (0.1,))


def opened(found: SshBoard, retries: int = 20, **changes: Any) -> SshBackend:
    """A backend on a board; skips a runtime that is not installed."""
    patience = Patience(load_s=60, call_s=30, retries=retries)
    try:
        return SshBackend(found.device(**changes), found.folder, patience)
    except MissingExtraError as error:
        pytest.skip(str(error))


def assert_right(backend: SshBackend, network: nn.Module) -> None:
    images = torch.randn(SHAPE)
    with torch.no_grad():
        expected = network(images)
    output = backend.compile(network, SHAPE).run(images)
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-4)


@needs_sshd
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n in HEAVY else ()) for n in OVER_SSH]
)
def test_networks_and_files_run_and_are_timed_there(
    shared: SshBoard, network: nn.Module, tmp_path: Path, name: str
) -> None:
    with opened(shared, runtime=name, reach={"folder": None}) as backend:
        there = Path(backend.host.there)
        assert (there / SCRIPT.name).is_file()
        assert isinstance(backend, FileBackend)
        assert isinstance(backend, TimingBackend)
        assert isinstance(backend, QuantizingBackend) == (name in ("onnxruntime", "openvino"))
        assert_right(backend, network)

        path = tmp_path / f"network{RUNTIMES[name].own_files.suffix}"
        backend.convert(network, Conversion(input_shape=SHAPE), path)
        ((taken, shape),) = backend.input_shapes(path).items()
        assert shape == SHAPE
        images = torch.randn(SHAPE)
        loaded = backend.load(path, SHAPE)
        timed = backend.open_file(path, {taken: SHAPE})
        for file in tmp_path.iterdir():
            file.unlink()
        torch.testing.assert_close(loaded.run(images), timed.run(images))
        times = timed.time_ms(3)
        assert len(times) == 3
        assert all(ms > 0 for ms in times)
        if Path("/proc/self/schedstat").is_file():
            assert isinstance(times, CallTimes)
        assert backend.provenance() == backend.provenance()
        assert RUNTIMES[name].title in backend.provenance().runtime
        assert backend.provenance().settings["cores"]
    deadline = time.monotonic() + 10
    while there.exists():  # the worker removes it when it ends
        assert time.monotonic() < deadline
        time.sleep(0.02)


@needs_sshd
def test_unsuitable_files_and_inputs_are_refused(
    shared: SshBoard, network: nn.Module, tmp_path: Path
) -> None:
    with opened(shared) as backend:
        path = tmp_path / "network.onnx"
        backend.convert(network, Conversion(input_shape=SHAPE), path)
        with pytest.raises(QuadranasError, match=r"network\.onnx takes inputs of"):
            backend.load(path, (1, 3, 8, 8))
        with pytest.raises(QuadranasError, match=r"compiled for \(1, 3, 16, 16\), got \(1, 3, 8"):
            backend.load(path, SHAPE).run(torch.zeros(1, 3, 8, 8))
        path.write_bytes(b"GIF89a")
        with pytest.raises(QuadranasError, match=r"cannot read .*network\.onnx"):
            backend.load(path, SHAPE)


@needs_sshd
def test_networks_that_do_not_fit_make_room_for_each_other(
    shared: SshBoard, network: nn.Module
) -> None:
    with opened(shared) as backend:
        backend.client.max_bytes = 1
        programs = [backend.compile(network, SHAPE) for _ in range(2)]
        for program in (*programs, *programs):
            assert len(program.time_ms(1)) == 1
            assert list(backend.client.loaded) == [program]


# Links that break


def break_link(backend: SshBackend) -> None:
    """End this side's ssh, as when the network goes."""
    assert backend.client.worker is not None
    os.kill(backend.client.worker.pid, signal.SIGKILL)


@needs_sshd
def test_a_link_that_broke_is_made_again(shared: SshBoard, network: nn.Module) -> None:
    images = torch.randn(SHAPE)
    with opened(shared) as backend:
        program = backend.compile(network, SHAPE)
        before, there = program.run(images), backend.host.there
        break_link(backend)
        assert torch.equal(program.run(images), before)
        assert backend.host.there != there
        timer = threading.Timer(0.2, break_link, [backend])
        timer.start()
        repeats = int(500 / min(program.time_ms(20)))  # half a second
        assert len(program.time_ms(repeats)) == repeats
        timer.join()


@needs_sshd
def test_a_board_that_reboots_is_found_again(own: SshBoard, network: nn.Module) -> None:
    with opened(own) as backend:
        warnings: list[str] = []
        backend.warn = warnings.append
        program = backend.compile(network, SHAPE)
        own.stop()
        before = Path(backend.host.there)
        timer = threading.Timer(0.5, own.start)
        timer.start()
        assert len(program.time_ms(2)) == 2
        timer.join()
        assert not before.exists()
        assert warnings[0].startswith("device 'board' (board) was lost: ")
        assert warnings[0].endswith("; connecting again in 0.1 s")
        assert_right(backend, network)


@needs_sshd
def test_a_board_that_stays_away_is_one_error(own: SshBoard, network: nn.Module) -> None:
    with opened(own, retries=2) as backend:
        program = backend.compile(network, SHAPE)
        own.stop()
        with pytest.raises(DeviceLostError) as caught:
            program.time_ms(2)
        assert "device 'board' (board) was lost 3 times when asked to time" in caught.value.message
        assert "Connection refused" in caught.value.message
        assert "timings that were taken are kept" in caught.value.hint
        own.start()
        assert len(program.time_ms(2)) == 2


# Connections that are refused


def refusal(found: SshBoard, **changes: Any) -> QuadranasError:
    with pytest.raises(QuadranasError) as caught:
        opened(found, **changes).close()
    assert not isinstance(caught.value, DeviceLostError)
    return caught.value


@needs_sshd
def test_a_wrong_key_is_one_error(own: SshBoard) -> None:
    own.make_key("key")
    error = refusal(own)
    assert "accepts none of your keys" in error.message
    assert "Permission denied (publickey)" in error.message
    assert "ssh-copy-id board" in error.hint


@needs_sshd
def test_a_changed_host_key_is_one_error_with_the_words_of_ssh(
    own: SshBoard, network: nn.Module
) -> None:
    with opened(own) as backend:
        program = backend.compile(network, SHAPE)
        own.stop()
        own.make_key("host_key")
        own.start()
        with pytest.raises(QuadranasError, match="its host key has changed") as caught:
            program.run(torch.zeros(SHAPE))  # also in the middle, and at once
    assert "WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!" in caught.value.message
    assert "SHA256:" in caught.value.message
    assert "its host key has changed" in refusal(own).message
    (own.folder / "known_hosts").write_text("")
    error = refusal(own)
    assert "its host key is not known" in error.message
    assert error.hint.endswith("ssh board")
    assert (own.folder / "known_hosts").read_text() == ""
    own.trust()
    opened(own).close()


@needs_sshd
def test_a_board_that_is_off_is_one_error(own: SshBoard) -> None:
    own.stop()
    error = refusal(own)
    assert "Connection refused" in error.message
    assert "ssh board" in error.hint


@needs_sshd
def test_a_fault_in_ones_configuration_is_one_error(own: SshBoard) -> None:
    with (own.folder / "ssh_config").open("a") as file:
        file.write("NoSuchOption yes\n")
    assert "Bad configuration option" in refusal(own).message
    missing = refusal(own, reach={"ssh_config": "/nonexistent"})
    assert "configuration of OpenSSH has a fault" in missing.message


def test_without_a_client_it_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(QuadranasError, match="cannot start ssh") as caught:
        SshBackend(board(reach={"ssh": "pi@board"}), tmp_path)
    assert "openssh-client" in caught.value.hint


# What the board lacks


@needs_sshd
def test_a_missing_interpreter_is_one_error(shared: SshBoard) -> None:
    error = refusal(shared, reach={"python": "/nonexistent/python"})
    assert "there is no interpreter '/nonexistent/python' there" in error.message
    assert "python: /home/me/env/bin/python" in error.hint
    assert "there is no interpreter" in refusal(shared, reach={"python": "/etc/passwd"}).message


@needs_sshd
@pytest.mark.parametrize(
    ("says", "message"),
    [
        (
            '{"folder": "/tmp/quadranas-x", "python": [2, 7]}',
            "is Python 2.7; needed: at least 3.6",
        ),
        (
            '{"folder": "/tmp/a b/quadranas-x", "python": [3, 9]}',
            "'/tmp/a b/quadranas-x', which cannot be copied",
        ),
        ('{"folder": "/home", "python": [3, 9]}', "'/home', which cannot be copied"),
        ("Welcome", "printed 'Welcome"),
    ],
)
def test_an_unsuitable_interpreter_is_one_error(
    shared: SshBoard, tmp_path: Path, says: str, message: str
) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\necho '{says}'\n")
    python.chmod(0o755)
    assert message in refusal(shared, reach={"python": str(python)}).message


@needs_sshd
def test_a_missing_package_is_named_with_the_command_that_installs_it(
    shared: SshBoard, tmp_path: Path
) -> None:
    package = pytest.importorskip("onnxruntime")
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')  # without its packages
    bare.chmod(0o755)
    error = refusal(shared, reach={"python": str(bare)})
    assert f"{bare} there has no package 'onnxruntime'" in error.message
    pip = f"{bare} -m pip install onnxruntime=={package.__version__}"
    assert f"Install it with: ssh board '{pip}'\n" in error.hint


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    place = tmp_path / "tiny"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no small file system can be mounted here: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


@needs_sshd
def test_a_full_disk_is_one_error_and_work_goes_on_with_more_space(
    shared: SshBoard, network: nn.Module, tiny: Path
) -> None:
    filler = tiny / "filler"
    filler.write_bytes(bytes(250 * 1024))
    reach = {"folder": str(tiny)}
    error = refusal(shared, reach=reach)
    assert f"cannot copy {SCRIPT.name} (" in error.message
    assert "bytes are free" in error.message
    assert "reach.folder" in error.hint
    assert list(tiny.iterdir()) == [filler]
    filler.write_bytes(bytes(150 * 1024))
    with opened(shared, reach=reach) as backend:
        small = backend.compile(network, SHAPE)
        large = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 256)).eval()
        with pytest.raises(
            QuadranasError,
            match=r"cannot copy 2\.onnx \(\d+ bytes\) to .*tiny/.*, where \d+ bytes are free",
        ):
            backend.compile(large, SHAPE)
        assert not (Path(backend.host.there) / "2.onnx").exists()
        assert len(small.time_ms(2)) == 2  # what is loaded goes on
        assert_right(backend, network)


@needs_sshd
def test_a_hot_board_is_noticed(tmp_path: Path, network: nn.Module) -> None:
    """By a program in the place of a Raspberry Pi's `vcgencmd`."""
    flags = tmp_path / "flags"
    flags.write_text("throttled=0x0")
    program = tmp_path / "vcgencmd"
    program.write_text(f"#!/bin/sh\nexec cat {flags}\n")
    program.chmod(0o755)
    (tmp_path / "board").mkdir()
    with ssh_board(tmp_path / "board", f"SetEnv PATH={tmp_path}:/usr/bin:/bin") as found:
        with opened(found) as backend:
            program_there = backend.compile(network, SHAPE)
            assert len(program_there.time_ms(1)) == 1
            flags.write_text("throttled=0x4")
            with pytest.raises(ThrottledError, match="vcgencmd get_throttled says 0x4"):
                program_there.time_ms(1)
            assert_right(backend, network)
            with pytest.raises(ThrottledError, match="lowered its clock"):
                opened(found)
            flags.write_text("throttled=0x40000")
            with pytest.raises(ThrottledError, match="0x40000"):  # since the last look
                program_there.time_ms(1)
            assert len(program_there.time_ms(1)) == 1
        opened(found).close()


# What may not be


def test_only_a_named_file_says_what_is_contacted(tmp_path: Path) -> None:
    device = board(reach={"ssh": "pi@board"})
    stripped = device.without_reach().without_reach().configured(threads=2)
    assert stripped.is_away
    assert stripped.is_remote
    assert not stripped.reach.given
    with pytest.raises(QuadranasError, match="never chooses what is contacted"):
        open_backend(stripped, tmp_path)
    assert not stripped.configured(ssh="pi@board").is_away
    assert not board().without_reach().is_away


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"precision": "int8"}, "over ssh, ONNX Runtime runs fp32, tf32, fp16, not int8"),
        ({"precision": "fp16"}, "ONNX Runtime on a CPU runs fp32 or int8, not fp16"),
        ({"target": ["CPUExecutionProvider", "X"]}, "is no list of execution providers"),
        ({"runtime": "torch", "precision": "bf16"}, "over ssh, PyTorch runs fp32, not bf16"),
    ],
)
def test_what_it_lacks_is_refused_before_it_is_contacted(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(QuadranasError, match=message):
        open_backend(board(reach={"ssh": "pi@board"}, **changes), tmp_path)


@needs_sshd
def test_hardware_that_it_lacks_is_refused(shared: SshBoard) -> None:
    error = refusal(shared, target="NPUExecutionProvider")
    assert "offers no execution provider 'NPUExecutionProvider'" in error.message
    assert "it offers: " in error.message
    too_many = refusal(shared, threads=65536)
    assert "got 65536 threads, but there are only" in too_many.message


@needs_sshd
def test_nodes_that_fall_back_to_the_cpu_are_refused_or_stated(
    shared: SshBoard, network: nn.Module
) -> None:
    """As for the same provider on this machine, which leaves all nodes."""
    azure, cpu = "AzureExecutionProvider", "CPUExecutionProvider"
    with opened(shared, target=azure) as backend, pytest.raises(QuadranasError) as caught:
        backend.compile(network, SHAPE)
    assert f"nodes would run on the CPU instead of {azure}: " in caught.value.message
    assert f"add {cpu} as the last entry of target" in caught.value.message
    with opened(shared, target=[azure, cpu]) as backend:
        program = backend.compile(network, SHAPE)
        assert "nodes run on the CPU: " in program.notes[0]
        assert len(program.time_ms(3)) == 3
        assert_right(backend, network)
        provenance = backend.provenance()
    assert f"({azure}, {cpu})" in provenance.runtime
    assert provenance.hardware.startswith("a board, ")


def test_the_worker_is_valid_for_python_3_6() -> None:
    """Its syntax, and its annotations, which an old Python evaluates."""
    tree = ast.parse(SCRIPT.read_text(encoding="utf-8"), feature_version=(3, 6))
    for node in ast.walk(tree):
        if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name):
            assert node.value.id not in ("dict", "list", "tuple", "set", "type")
        assert not (isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr))
        assert not isinstance(node, ast.AnnAssign)


@needs_sshd
def test_what_the_shell_there_gets_is_quoted(
    shared: SshBoard, network: nn.Module, tmp_path: Path
) -> None:
    python = tmp_path / "a 'b' $(touch hacked); touch hacked"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    home = set(Path.home().iterdir())
    with opened(shared, reach={"python": str(python)}) as backend:
        assert_right(backend, network)
    assert set(Path.home().iterdir()) == home
