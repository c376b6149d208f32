"""What several test files share: replayable examples, helpers for networks, small runs."""

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings
from PIL import Image
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tests.command_line import SMALL, Server, call
from tests.measuring import remember_exports

# Generated examples are the same in every run, and no example is judged by the clock.
settings.register_profile("replay", derandomize=True, deadline=None, database=None)
settings.load_profile("replay")

# A shell without job control has what it starts in the background ignore interrupts, for good.
signal.signal(signal.SIGINT, signal.default_int_handler)

Counter = Callable[[nn.Module, Tensor], tuple[int, int]]
Scrambler = Callable[..., nn.Module]


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


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
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder: 8 images of cats and 8 of dogs for training, 4 each for the test."""
    folder = tmp_path_factory.mktemp("data") / "pictures"
    for split, count in (("train", 8), ("test", 4)):
        for label, name in enumerate(("cat", "dog")):
            (folder / split / name).mkdir(parents=True)
            for index in range(count):
                rng = np.random.default_rng([label, index, count])
                pixels = rng.integers(0, 128, (32, 32, 3)) + np.array([127 * label, 0, 0])
                image = Image.fromarray(pixels.astype(np.uint8))
                image.save(folder / split / name / f"{index}.png")
    return folder


@pytest.fixture(scope="session")
def small_config(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> Path:
    """A configuration with which a search takes eight steps."""
    path = tmp_path_factory.mktemp("config") / "small.yaml"
    path.write_text(SMALL.format(pictures=pictures), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory, small_config: Path) -> Path:
    """The folder of a finished search: toy space, 800 us on the cpu. Not to be changed."""
    folder = tmp_path_factory.mktemp("runs") / "toy"
    outcome = call(
        *("search", "--device", "cpu", "--budget", "0.8ms", "--space", "toy"),
        *("--config", small_config, "--output", folder, "--quiet"),
    )
    assert outcome.code == 0, outcome.err
    return folder


@pytest.fixture(scope="session")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Has every network exported only once; the folder is for other processes to do the same."""
    folder = tmp_path_factory.mktemp("exports")
    with pytest.MonkeyPatch.context() as patch:
        remember_exports(patch, folder)
        yield folder


@pytest.fixture(scope="session")
def host_table(tmp_path_factory: pytest.TempPathFactory, exports: Path) -> Path:
    """A table of the toy space, measured here with ONNX Runtime. Not to be changed."""
    pytest.importorskip("onnxruntime")
    path = tmp_path_factory.mktemp("tables") / "host.json"
    outcome = call(
        *("build-lut", "--device", "host", "--space", "toy", "--backend", "onnxruntime"),
        *("--output", path),
    )
    assert outcome.code == 0, outcome.err
    return path


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """Starts commands in processes of their own."""
    started = Server()
    yield started
    started.close()
