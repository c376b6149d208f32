"""What several test files share: replayable examples, helpers for networks, small runs."""

import faulthandler
import functools
import gc
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from _pytest.faulthandler import fault_handler_stderr_fd_key
from hypothesis import settings
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import quadranas.data.dataset
import quadranas.measurement.bench
import quadranas.measurement.timing
import quadranas.reports.page
from quadranas.measurement.plan import Plan
from tests.command_line import SMALL, Server, call
from tests.figures import Unrendered
from tests.measuring import quicken_exporters, remember_exports, trace_exports
from tests.sharing import Share, share_in

# Generated examples are the same in every run, and no example is judged by the clock.
settings.register_profile("replay", derandomize=True, deadline=None, database=None)
settings.load_profile("replay")

# A shell without job control has what it starts in the background ignore interrupts, for good.
signal.signal(signal.SIGINT, signal.default_int_handler)

gc.set_threshold(20_000)


def pytest_runtest_teardown(item: pytest.Item) -> None:
    """Have crashes reported by Python again once TVM is imported, which reports them itself.

    What it prints then is lost with what the test has printed.
    """
    stash = item.config.stash
    if "tvm" in sys.modules and fault_handler_stderr_fd_key in stash:
        faulthandler.disable()
        faulthandler.enable(file=stash[fault_handler_stderr_fd_key])


def pytest_collection_finish() -> None:
    """Leave what is imported and the tests, millions of objects, to no garbage collector."""
    gc.freeze()
    gc.enable()


Counter = Callable[[nn.Module, Tensor], tuple[int, int]]
Scrambler = Callable[..., nn.Module]


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def no_delays() -> Iterator[None]:
    """No test waits between rounds or for a disk; figures are not rendered.

    Networks are timed in two rounds: what they give on this machine does not matter. Exporters
    keep what they would make anew for every network, and the built-in digits stay as they were
    decoded first. Tests of the figures use the fixture `rendered`.
    """
    clock = SimpleNamespace(monotonic=time.monotonic, sleep=lambda seconds: None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quadranas.measurement.timing, "time", clock)
        patch.setattr(quadranas.measurement.bench, "DEFAULT_PLAN", Plan(num_rounds=2, repeats=2))
        patch.setattr(os, "fsync", lambda descriptor: None)
        patch.setattr(quadranas.reports.page, "Figure", Unrendered)
        read_digits = functools.cache(quadranas.data.dataset._load_digits)
        patch.setattr(quadranas.data.dataset, "_load_digits", read_digits)
        quicken_exporters(patch)
        yield


@pytest.fixture
def rendered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has figures rendered as they are for users."""
    monkeypatch.setattr(quadranas.reports.page, "Figure", Figure)


@pytest.fixture(scope="session")
def share(tmp_path_factory: pytest.TempPathFactory) -> Share:
    """Makes what is costly once for all processes of this run of the tests."""
    return share_in(tmp_path_factory)


@pytest.fixture(scope="session")
def count_by_torch() -> Counter:
    """Parameters, and MACs of one forward pass as PyTorch counts them, for batch 1."""

    def count(model: nn.Module, images: Tensor) -> tuple[int, int]:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(images)
        macs = counter.get_total_flops() // 2
        return sum(parameter.numel() for parameter in model.parameters()), macs

    return count


@pytest.fixture(scope="session")
def scramble() -> Scrambler:
    """Fills a module with values for which every tensor matters, and stays near unit scale."""

    def fill(module: nn.Module, seed: int = 0) -> nn.Module:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, tensor in module.state_dict().items():
                if not tensor.is_floating_point():
                    continue
                if tensor.dim() > 1:
                    tensor.normal_(0, tensor[0].numel() ** -0.5, generator=generator)
                elif name.endswith("running_var"):
                    tensor.uniform_(0.5, 2, generator=generator)
                else:
                    mean = 1 if name.endswith("weight") else 0
                    tensor.normal_(mean, 0.3, generator=generator)
        return module

    return fill


@pytest.fixture(scope="session")
def pictures(share: Share) -> Path:
    """A data folder: 8 images of cats and 8 of dogs for training, 4 each for the test."""
    return share("data/pictures", write_pictures)


def write_pictures(folder: Path) -> None:
    for split, count in (("train", 8), ("test", 4)):
        for label, name in enumerate(("cat", "dog")):
            (folder / split / name).mkdir(parents=True)
            for index in range(count):
                rng = np.random.default_rng([label, index, count])
                pixels = rng.integers(0, 128, (32, 32, 3)) + np.array([127 * label, 0, 0])
                image = Image.fromarray(pixels.astype(np.uint8))
                image.save(folder / split / name / f"{index}.png")


@pytest.fixture(scope="session")
def small_config(share: Share, pictures: Path) -> Path:
    """A configuration with which a search takes eight steps."""
    text = SMALL.format(pictures=pictures)
    return share("small.yaml", lambda path: path.write_text(text, encoding="utf-8"))


@pytest.fixture(scope="session")
def finished_run(share: Share, small_config: Path) -> Path:
    """The folder of a finished search: toy space, 800 us on the cpu. Not to be changed."""

    def search(folder: Path) -> None:
        outcome = call(
            *("search", "--device", "cpu", "--budget", "0.8ms", "--space", "toy"),
            *("--config", small_config, "--output", folder, "--quiet"),
        )
        assert outcome.code == 0, outcome.err

    return share("runs/toy", search)


@pytest.fixture(scope="session")
def exports(share: Share) -> Iterator[Path]:
    """Has every network exported only once; the folder is for other processes to do the same."""
    folder = share("exports", Path.mkdir)
    with pytest.MonkeyPatch.context() as patch:
        remember_exports(patch, folder)
        yield folder


@pytest.fixture(scope="session")
def host_table(share: Share, exports: Path) -> Path:
    """A table of the toy space, measured here in a few rounds. Not to be changed."""
    pytest.importorskip("onnxruntime")

    def measure(path: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            trace_exports(patch)
            outcome = call(
                *("build-lut", "--device", "host", "--space", "toy", "--backend", "onnxruntime"),
                *("--rounds", "12", "--max-residual", "9"),  # the other tests keep it busy
                *("--output", path),
            )
        assert outcome.code == 0, outcome.err

    return share("tables/host.json", measure)


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """Starts commands in processes of their own."""
    started = Server()
    yield started
    started.close()
