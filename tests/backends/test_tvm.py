"""TVM on this machine, in its own process and behind real RPC servers."""

import inspect
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from quadranas.backends import tvm_trials, tvm_worker
from quadranas.backends.interface import Backend, Conversion
from quadranas.backends.tvm import TvmBackend, make_target
from quadranas.backends.tvm_import import import_network
from quadranas.backends.tvm_linker import export, find_linker, make_link
from quadranas.backends.tvm_reader import judge
from quadranas.errors import DeviceLostError, MissingExtraError, QuadranasError
from quadranas.latency.device import Device, Reach
from quadranas.layers import build_op
from quadranas.space.operation import OpSpec
from tests.backends.rpc_boards import boards, free_port, server, tracker

Scrambler = Callable[..., nn.Module]

SPECS = [
    OpSpec(kind=kind, in_channels=cin, out_channels=cout, resolution=6, **rest)
    for kind, cin, cout, rest in [
        ("quadratic_depthwise", 8, 8, {"kernel_size": 7}),
        ("feed_forward", 8, 8, {"expand_ratio": 2, "num_quadratic": 1}),
        ("feed_forward", 8, 8, {"expand_ratio": 2, "num_quadratic": 2}),
        ("mbconv", 8, 8, {"kernel_size": 5, "expand_ratio": 3}),
        ("mbconv", 8, 12, {"kernel_size": 3, "stride": 2, "expand_ratio": 3}),
        ("linear_head", 8, 5, {}),
    ]
]
"""What `tests/contracts/test_backends.py`, which tries every kind, leaves out."""

HEAD = SPECS[-1]
"""Two kernels: the fewest."""


def device(**changes: object) -> Device:
    content = {"name": "here", "title": "this machine", "runtime": "tvm", "precision": "fp32"}
    return Device.model_validate(content | {"threads": 1, "tuning_trials": 0} | changes)


def example(spec: OpSpec) -> Tensor:
    return torch.randn(1, spec.in_channels, spec.resolution, spec.resolution)


def error_of(backend: Backend, op: nn.Module, spec: OpSpec) -> float:
    """The largest difference from PyTorch."""
    images = example(spec)
    with torch.no_grad():
        expected = op(images)
    return float((backend.compile(op, images.shape).run(images) - expected).abs().max())


@pytest.fixture(autouse=True, scope="module")
def quick_import() -> Iterator[None]:
    """TVM 0.27 asks for its callers, with their source, for each intrinsic that tuning imports.

    It looks at their variables only, and for the source of a class, which intrinsics are not.
    """

    def callers(context: int = 1) -> list[inspect.FrameInfo]:
        found, frame = [], inspect.currentframe()
        while frame is not None and (frame := frame.f_back) is not None:
            code = frame.f_code
            place = (code.co_filename, frame.f_lineno, code.co_name)
            found.append(inspect.FrameInfo(frame, *place, None, None))
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inspect, "stack", callers)
        yield


@pytest.fixture(scope="module")
def untuned(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TvmBackend]:
    with TvmBackend(device(), tmp_path_factory.mktemp("records")) as backend:
        yield backend


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_it_computes_what_pytorch_computes(
    untuned: TvmBackend, scramble: Scrambler, spec: OpSpec
) -> None:
    op = scramble(build_op(spec)).eval()
    before = {name: tensor.clone() for name, tensor in op.state_dict().items()}
    assert error_of(untuned, op, spec) < 1e-5
    for name, tensor in op.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_times_are_milliseconds_and_one_per_call(untuned: TvmBackend) -> None:
    small, large = [
        untuned.compile(nn.Conv2d(8, 8, 3).eval(), (1, 8, size, size)) for size in (16, 128)
    ]
    times = small.time_ms(5), large.time_ms(5)
    assert [len(some) for some in times] == [5, 5]
    assert 1e-4 < min(times[0]) < min(times[1]) < 1e3
    assert min(times[1]) > 20 * min(times[0])


def test_untuned_is_said(untuned: TvmBackend) -> None:
    found = untuned.provenance()
    assert found.runtime.startswith("TVM 0.")
    assert found.settings["tuning"] == "untuned"
    assert "tuning_trials" not in found.settings
    assert found.hardware
    assert not found.emulated
    assert untuned.max_parallel == 1


def test_a_library_needs_nothing_but_tvm(untuned: TvmBackend, tmp_path: Path) -> None:
    import tvm

    images = example(HEAD)
    op = build_op(HEAD).eval()
    path = tmp_path / "new" / "model.so"
    untuned.convert(op, Conversion(input_shape=(1, 8, 6, 6)), path)
    assert [file.name for file in path.parent.iterdir()] == ["model.so"]
    assert untuned.count_operators(path) == {"fused_matmul_add": 1, "mean": 1}
    library = tvm.runtime.load_module(str(path))
    output = tvm.relax.VirtualMachine(library, tvm.cpu())["main"](
        tvm.runtime.tensor(images.numpy())
    )
    loaded = untuned.load(path, images.shape)
    assert torch.equal(torch.from_numpy(output.numpy()), loaded.run(images))


def test_libraries_of_one_name_do_not_mix(untuned: TvmBackend, tmp_path: Path) -> None:
    """As the model.so of two folders; a board knows its programs by their names."""
    images, outputs = example(HEAD), []
    for folder in ("a", "b"):
        op = build_op(HEAD).eval()
        untuned.convert(op, Conversion(input_shape=(1, 8, 6, 6)), tmp_path / folder / "model.so")
        program = untuned.load(tmp_path / folder / "model.so", images.shape)
        with torch.no_grad():
            assert float((program.run(images) - op(images)).abs().max()) < 1e-5
        outputs.append(program.run(images))
    assert not torch.equal(*outputs)


def test_a_library_for_another_processor_is_refused(untuned: TvmBackend, tmp_path: Path) -> None:
    other = {"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mcpu": "cortex-a76"}
    target = make_target(device(target=other))
    op, link = nn.Conv2d(3, 4, 1).eval(), make_link(find_linker("aarch64-linux-gnu"))
    paths = [tmp_path / "a.so", tmp_path / "b.so"]
    for path in paths:
        export(tvm_compiled(import_network(op, (1, 3, 4, 4), target), target), path, link)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert untuned.count_operators(paths[0]) == {"fused_conv2d_add": 1}
    with pytest.raises(QuadranasError, match=r"a\.so is for aarch64, the .* target is x86_64"):
        untuned.load(paths[0], (1, 3, 4, 4))


def tvm_compiled(module: Any, target: Any) -> Any:
    import tvm

    with target, tvm.transform.PassContext(opt_level=3):
        return tvm.compile(module, target)


def test_a_wrong_input_is_refused_and_the_next_one_works(untuned: TvmBackend) -> None:
    program = untuned.compile(build_op(HEAD).eval(), (1, 8, 6, 6))
    with pytest.raises(QuadranasError, match="could not run"):
        program.run(torch.zeros(1, 3, 6, 6))
    assert program.run(torch.zeros(1, 8, 6, 6)).shape == (1, 5)


class AiryFunction(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = torch.special.airy_ai(x)
        return result


def test_an_operation_that_tvm_lacks_is_named(untuned: TvmBackend) -> None:
    with pytest.raises(QuadranasError, match=r"cannot compile this network.*airy"):
        untuned.compile(AiryFunction(), (1, 3, 4, 4))


def test_tuned_kernels_are_not_tuned_again(tmp_path: Path) -> None:
    op = build_op(HEAD).eval()
    settings = device(tuning_trials=1)  # a server runs several in the test below
    with TvmBackend(settings, tmp_path) as backend:
        assert error_of(backend, op, HEAD) < 1e-5
        assert backend.tuner is not None
        assert backend.tuner.trials_run == 2 * 1
        found = backend.provenance().settings
        assert (found["tuning"], found["tuning_trials"]) == ("tuned", "1")
        assert found["tuning_strategy"] == "replay-trace"
        assert min(backend.compile(op, (1, 8, 6, 6)).time_ms(3)) > 0
    files = {file: file.read_bytes() for file in tmp_path.rglob("*.json")}
    assert len(files) == 4
    with TvmBackend(settings, tmp_path) as backend:
        assert error_of(backend, op, HEAD) < 1e-5
        assert backend.tuner is not None
        assert backend.tuner.trials_run == 0
    assert {file: file.read_bytes() for file in tmp_path.rglob("*.json")} == files
    with TvmBackend(
        device(tuning_trials=2), tmp_path
    ):  # another number of trials never mixes with it
        assert len(list(tmp_path.iterdir())) == 2


LINKER = """#!/bin/sh
case "$*" in *quadranas-kernels*)
  echo . >> "{folder}/calls"
  [ $(($(wc -l < "{folder}/calls") % {modulus})) = 0 ] && {{ echo "no space left" >&2; exit 1; }}
esac
exec {linker} "$@"
"""


@pytest.fixture
def break_linker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Makes every so-many-th linking of a schedule fail."""

    def install(modulus: int) -> None:
        folder = tmp_path / "bin"
        folder.mkdir()
        text = LINKER.format(folder=folder, modulus=modulus, linker=shutil.which("c++"))
        (folder / "c++").write_text(text, encoding="utf-8")
        (folder / "c++").chmod(0o755)
        monkeypatch.setenv("PATH", str(folder), prepend=":")

    return install


def test_some_failed_trials_are_passed_over(
    tmp_path: Path, break_linker: Callable[[int], None]
) -> None:
    break_linker(2)
    with TvmBackend(device(tuning_trials=2), tmp_path / "records") as backend:
        assert error_of(backend, build_op(HEAD).eval(), HEAD) < 1e-5
    assert len((tmp_path / "bin/calls").read_text().splitlines()) == 2 * 2


def test_only_failed_trials_are_an_error(
    tmp_path: Path, break_linker: Callable[[int], None]
) -> None:
    break_linker(1)
    with (
        TvmBackend(device(tuning_trials=2), tmp_path / "records") as backend,
        pytest.raises(QuadranasError, match=r"(?s)none of 2 schedules of.*no space left"),
    ):
        backend.compile(build_op(HEAD).eval(), (1, 8, 6, 6))


def test_schedules_that_compile_too_long_are_failed_trials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tvm_trials, "BUILD_S", 0.01)
    with (
        TvmBackend(device(tuning_trials=1), tmp_path) as backend,
        pytest.raises(QuadranasError, match=r"none of 1 schedules.*compiling took more than"),
    ):
        backend.compile(build_op(HEAD).eval(), (1, 8, 6, 6))


def test_ctrl_c_while_tuning_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = tvm_trials._built

    def interrupted(result: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        return built(result)

    monkeypatch.setattr(tvm_trials, "_built", interrupted)
    handler = signal.getsignal(signal.SIGINT)
    said: list[str] = []
    with TvmBackend(device(tuning_trials=1), tmp_path) as backend:
        backend.report = said.append
        with pytest.raises(KeyboardInterrupt):
            backend.compile(build_op(HEAD).eval(), (1, 8, 6, 6))
    assert signal.getsignal(signal.SIGINT) == handler
    assert said == ["tuning kernel 1 of 2"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"precision": "fp16"}, "the precision is fp32, got fp16"),
        ({"target": 0}, "TVM accepts no target 0"),
        ({"target": "cuda"}, "it must be of kind 'llvm'"),
        ({"target": {"kind": "llvm", "mcup": "x"}}, "accepts no target.*mcup"),
        (
            {"target": {"kind": "llvm", "num-cores": 4}},
            "threads is 1 and num-cores of its target 4",
        ),
        (
            {"target": {"kind": "llvm", "mtriple": "riscv64-linux-gnu"}},
            "its target is riscv64, this machine is",
        ),
    ],
)
def test_impossible_devices_are_refused(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(QuadranasError, match=message):
        TvmBackend(device(**changes), tmp_path)


def test_a_missing_package_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tvm", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'quadranas\[tvm\]'"):
        TvmBackend(device(), tmp_path)


def test_linkers_are_tried_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    linker = tmp_path / "aarch64-linux-gnu-g++"
    linker.write_text("#!/bin/sh\n", encoding="utf-8")
    linker.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_linker("aarch64-linux-gnu") == [str(linker)]
    linker.unlink()
    assert find_linker("aarch64-linux-gnu")[1:3] == ["-m", "ziglang"]
    monkeypatch.setitem(sys.modules, "ziglang", None)
    with pytest.raises(QuadranasError, match=r"(?s)aarch64-linux-gnu-g\+\+.*pip install ziglang"):
        find_linker("aarch64-linux-gnu")


PI = b"processor : 0\nCPU implementer : 0x41\nCPU part : 0xd0b\n"


@pytest.mark.parametrize(
    ("cpuinfo", "compatible", "vendor", "emulated"),
    [
        (PI, b"raspberrypi,5-model-b\0brcm,bcm2712\0", b"", False),
        (PI, b"linux,dummy-virt\0", b"", True),
        (PI, b"", b"QEMU\n", True),
        (b"vendor_id : AuthenticAMD\nmodel name : AMD EPYC\n", b"", b"", True),
    ],
)
def test_what_a_board_says_is_judged(
    cpuinfo: bytes, compatible: bytes, vendor: bytes, emulated: bool
) -> None:
    facts = judge([b"", cpuinfo, compatible, vendor, b"ondemand\n", b"2400000\n"], "aarch64")
    assert bool(facts.emulator) == emulated
    assert facts.hardware == ("Arm Cortex-A76" if cpuinfo == PI else "AMD EPYC")
    assert facts.settings == {"governor": "ondemand", "max_clock_mhz": "2400"}


def test_an_unreachable_server_is_named_soon(tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    started = time.monotonic()
    message = f"(?s)no TVM RPC server responds at {address}.*tvm.exec.rpc_server --host 0.0.0.0"
    with pytest.raises(QuadranasError, match=message):
        TvmBackend(device(reach=Reach(rpc=address)), tmp_path)
    message = f"(?s)no TVM RPC tracker responds at {address}.*tvm.exec.rpc_tracker"
    with pytest.raises(QuadranasError, match=message):
        TvmBackend(device(reach=Reach(rpc_tracker=address, rpc_key="a76")), tmp_path)
    assert time.monotonic() - started < 10


def test_a_tracker_without_boards_says_what_it_has(tmp_path: Path) -> None:
    with tracker() as lender:
        reach = Reach(rpc_tracker=lender.address, rpc_key="a76")
        with pytest.raises(QuadranasError, match="'a76'; it has no boards"):
            TvmBackend(device(reach=reach), tmp_path)


def test_a_server_runs_times_and_tunes(tmp_path: Path) -> None:
    op = build_op(HEAD).eval()
    with server() as board:
        reach = Reach(rpc=board.address)
        other = {"kind": "llvm", "mtriple": "aarch64-linux-gnu"}
        with pytest.raises(QuadranasError, match="its board cannot run programs compiled for"):
            TvmBackend(device(target=other, reach=reach), tmp_path)
        with TvmBackend(device(tuning_trials=2, reach=reach), tmp_path) as backend:
            assert backend.max_parallel == 1
            assert error_of(backend, op, HEAD) < 1e-5
            assert backend.tuner is not None
            assert backend.tuner.trials_run == 2 * 2
            assert not backend.provenance().emulated
            program = backend.compile(op, (1, 8, 6, 6))
            assert min(program.time_ms(3)) > 0
            board.kill()
            with pytest.raises(DeviceLostError, match=f"no board at {board.address} responds"):
                program.time_ms(3)


@pytest.mark.slow
def test_tuning_that_lost_its_board_goes_on_where_it_was(tmp_path: Path) -> None:
    op = build_op(HEAD).eval()
    with server() as board:

        def kill_after_the_first_kernel() -> None:
            while not list(tmp_path.glob("*/tuned.json")):
                time.sleep(0.01)
            board.kill()

        with TvmBackend(device(tuning_trials=8, reach=Reach(rpc=board.address)), tmp_path) as lost:
            killer = threading.Thread(target=kill_after_the_first_kernel)
            killer.start()
            with pytest.raises(DeviceLostError, match=f"no board at {board.address} responds"):
                lost.compile(op, (1, 8, 6, 6))
            killer.join()
    with server() as board:
        reach = Reach(rpc=board.address)
        with TvmBackend(device(tuning_trials=8, reach=reach), tmp_path) as backend:
            assert error_of(backend, op, HEAD) < 1e-5
            assert backend.tuner is not None
            assert backend.tuner.trials_run == 8


def test_boards_lost_in_the_middle_lose_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    op = build_op(HEAD).eval()
    with boards(2, "x86") as (lender, *servers):
        reach = Reach(rpc_tracker=lender.address, rpc_key="other")
        with pytest.raises(QuadranasError, match=r"under the key 'other'.*it has 2 x 'x86'"):
            TvmBackend(device(reach=reach), tmp_path)
        settings = device(reach=Reach(rpc_tracker=lender.address, rpc_key="x86"))
        with TvmBackend(settings, tmp_path) as backend:
            assert backend.max_parallel == 2
        with TvmBackend(settings, tmp_path) as backend:  # closing made both free again
            assert backend.max_parallel == 2
            program = backend.compile(op, (1, 8, 6, 6))
            both = threading.Barrier(2)

            def measure(index: int) -> list[float]:
                if index < 2:
                    both.wait()  # so that both boards are in use
                if index == 20:
                    # Both are open, and nothing that does not answer at once ever will
                    monkeypatch.setattr(tvm_worker, "CONNECT_S", 1.0)
                    servers[0].kill()
                return program.time_ms(4)

            with ThreadPoolExecutor(2) as pool:
                times = list(pool.map(measure, range(60)))
            assert [len(some) for some in times] == [4] * 60
            assert min(map(min, times)) > 0
            servers[1].kill()
            with pytest.raises(DeviceLostError, match="no board under the key 'x86'"):
                program.time_ms(4)


def test_a_board_that_hangs_is_left_for_another(tmp_path: Path) -> None:
    op = build_op(HEAD).eval()
    images = example(HEAD)
    with boards(2, "x86") as (lender, *servers):
        reach = Reach(rpc_tracker=lender.address, rpc_key="x86")
        with TvmBackend(device(reach=reach), tmp_path, hang_s=3.0) as backend:
            program = backend.compile(op, (1, 8, 6, 6))
            with ThreadPoolExecutor(2) as pool:
                first = list(pool.map(program.run, [images] * 20))
            servers[0].signal(signal.SIGSTOP)
            with ThreadPoolExecutor(2) as pool:
                second = list(pool.map(program.run, [images] * 20))
            assert all(torch.equal(output, first[0]) for output in first + second)
