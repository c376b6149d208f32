"""A Cortex-A76 imitated by QEMU: cross-compiled networks compute what PyTorch computes.

`.ci/install_emulated_board` installs it; the times it gives mean nothing.
"""

import os
import shutil
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from quadranas.backends.interface import Conversion
from quadranas.backends.tvm import TvmBackend
from quadranas.commands.export import export
from quadranas.deployment.bundle import open_bundle
from quadranas.deployment.proof import program_outputs
from quadranas.errors import DeviceLostError, QuadranasError
from quadranas.latency.device import Device, Reach, load_device
from quadranas.network.skeleton import build_subnet
from quadranas.network.weights import save_tensors
from quadranas.runs.stored_network import StoredNetwork
from quadranas.space.space_file import load_space
from tests.backends.rpc_boards import boards, server
from tests.measuring import remember_nothing

Scrambler = Callable[..., nn.Module]

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
FOLDER = Path(os.environ.get("QUADRANAS_EMULATED_BOARD", CACHE / "quadranas/emulated_board"))
PYTHON = str(FOLDER / "python")

pytestmark = pytest.mark.skipif(
    not (FOLDER / "installed").exists(),
    reason=f"no emulated board in {FOLDER}: install it with .ci/install_emulated_board",
)


def cortex_a76(reach: Reach, trials: int) -> Device:
    """The shipped device, reached in some way."""
    return load_device("cpu").model_copy(update={"reach": reach, "tuning_trials": trials})


@pytest.fixture
def network(scramble: Scrambler) -> nn.Module:
    """The smallest network of the toy space."""
    space = load_space("toy")
    smallest = space.extreme(lambda spec: spec.kernel_size + spec.expand_ratio, largest=False)
    return scramble(build_subnet(smallest.adapted(resolution=16))).eval()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(1, 3, 16, 16)


def expected(network: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        output: Tensor = network(images)
    return output


def test_a_tuned_network_computes_the_same_and_has_no_latency(
    tmp_path: Path, scramble: Scrambler, images: Tensor
) -> None:
    network = scramble(nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU(), nn.Conv2d(4, 2, 3))).eval()
    with server(PYTHON) as board:
        device = cortex_a76(Reach(rpc=board.address), trials=1)
        with TvmBackend(device, tmp_path) as backend:
            found = backend.provenance()
            assert found.emulated
            assert found.settings["tuning"] == "tuned"
            assert '"mcpu":"cortex-a76"' in found.settings["target"]
            program = backend.compile(network, images.shape)
            assert backend.tuner is not None
            assert backend.tuner.trials_run > 1
            output = program.run(images)
            assert float((output - expected(network, images)).abs().max()) < 1e-5
            with pytest.raises(
                QuadranasError, match=r"(?s)emulated times are not latencies.*real board"
            ):
                program.time_ms(3)
            board.kill()
            with pytest.raises(DeviceLostError, match=f"no board at {board.address}"):
                program.run(images)


def test_a_library_is_written_and_run_there(
    tmp_path: Path, network: nn.Module, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    remember_nothing(monkeypatch)
    paths = [tmp_path / name / "model.so" for name in ("a", "b")]
    with (
        server(PYTHON) as board,
        TvmBackend(cortex_a76(Reach(rpc=board.address), trials=0), tmp_path) as backend,
    ):
        for path in paths:
            backend.convert(network, Conversion(input_shape=(1, 3, 16, 16)), path)
        assert paths[0].read_bytes() == paths[1].read_bytes()
        assert backend.count_operators(paths[0])["layer_norm"] > 0
        output = backend.load(paths[0], images.shape).run(images)
        assert float((output - expected(network, images)).abs().max()) < 1e-5
        with pytest.raises(QuadranasError, match=r"model\.so does not run with inputs of"):
            backend.load(paths[0], (1, 3, 32, 32))


def test_an_exported_library_is_proven_on_the_board(
    tmp_path: Path, network: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_tensors(network.state_dict(), tmp_path / "weights.safetensors")
    space = load_space("toy")
    smallest = space.extreme(lambda spec: spec.kernel_size + spec.expand_ratio, largest=False)
    stored = StoredNetwork(
        smallest.adapted(resolution=16), weights=tmp_path / "weights.safetensors"
    )
    output = tmp_path / "bundle"
    with server(PYTHON) as board:
        options: dict[str, Any] = {"format": "tvm", "device": "cpu", "output": output}
        options |= {"rpc": board.address, "tuning_trials": 0, "images": 2}
        result = export(stored, **options)
        assert result.relative_error < 1e-4
        assert (result.measured_ms, result.not_measured) == (None, "the device is emulated")
        assert "has no entry" in result.not_predicted
        manifest = open_bundle(output).manifest
        assert manifest.device.target == load_device("cpu").target
        before = (output / "manifest.json").read_bytes()

        def lost(*_: object) -> Tensor:
            board.kill()
            return program_outputs(*_)  # type: ignore[arg-type]

        monkeypatch.setattr("quadranas.deployment.work.program_outputs", lost)
        with pytest.raises(DeviceLostError, match=f"no board at {board.address}"):
            export(stored, **options, force=True)
    assert (output / "manifest.json").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "weights.safetensors"]


@pytest.mark.skipif(shutil.which("aarch64-linux-gnu-g++") is None, reason="one linker is tested")
def test_pips_linker_serves_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, images: Tensor
) -> None:
    with server(PYTHON) as board:
        monkeypatch.setenv("PATH", str(tmp_path))
        with TvmBackend(cortex_a76(Reach(rpc=board.address), 0), tmp_path) as backend:
            assert "ziglang" in backend.command
            network = nn.Conv2d(3, 4, 3).eval()
            output = backend.compile(network, images.shape).run(images)
            assert float((output - expected(network, images)).abs().max()) < 1e-5


def test_emulated_boards_lost_in_the_middle_lose_nothing(
    tmp_path: Path, network: nn.Module, images: Tensor
) -> None:
    wanted = expected(network, images)
    with boards(2, "cortex-a76", PYTHON) as (lender, *emulated):
        reach = Reach(rpc_tracker=lender.address, rpc_key="cortex-a76")
        with TvmBackend(cortex_a76(reach, 0), tmp_path) as backend:
            assert backend.max_parallel == 2
            assert backend.provenance().emulated
            program = backend.compile(network, images.shape)
            both = threading.Barrier(2)

            def run(index: int) -> Tensor:
                if index < 2:
                    both.wait()  # so that both boards are in use
                if index == 6:
                    emulated[0].signal(signal.SIGKILL)
                return program.run(images)

            with ThreadPoolExecutor(2) as pool:
                outputs = list(pool.map(run, range(16)))
            assert len(outputs) == 16
            assert max(float((output - wanted).abs().max()) for output in outputs) < 1e-5
