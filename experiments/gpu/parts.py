"""The parts of `make gpu` that no other experiment has: steps, networks, and the device's file."""

import argparse
import re
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from quadranas.acceleration.accelerator import Precision, find_accelerator
from quadranas.acceleration.engine import Engine
from quadranas.data.batch import Batch
from quadranas.files import dump_yaml, write_json
from quadranas.latency.device import load_device
from quadranas.latency.table_files import find_table
from quadranas.network.skeleton import build_subnet
from quadranas.runs.config import GateConfig, WeightConfig
from quadranas.seeds import generator_for
from quadranas.space.reference import reference_architecture
from quadranas.space.space_file import load_space
from quadranas.supernet.budget_controller import BudgetController
from quadranas.supernet.expected_latency import ExpectedLatency
from quadranas.supernet.gate_training import GateTrainer
from quadranas.supernet.supernet import build_supernet
from quadranas.training.optimizers import build_optimizer
from quadranas.training.steps import weight_step

RATE = 1e-9
WEIGHTS = WeightConfig(learning_rate=RATE)
QUADRANETS = ("quadranet36_t", "quadranet36_s", "quadranet36_b")
PEERS = (
    "swin_tiny_patch4_window7_224",
    "swin_small_patch4_window7_224",
    "swin_base_patch4_window7_224",
    "deit_small_patch16_224",
    "convnext_tiny",
    "convnext_small",
    "convnext_base",
)
"""timm's names of the networks in Table I of QuadraNet (arXiv:2311.17956) that timm has."""


def median_ms(call: Callable[[], Any], seconds: float) -> float:
    """Median time of a call, which the accelerator has finished, over as many as fit."""
    taken: list[float] = []
    for _ in range(3):
        call()
    end = time.monotonic() + seconds
    while len(taken) < 3 or time.monotonic() < end:
        _synchronize()
        start = time.perf_counter()
        call()
        _synchronize()
        taken.append(1e3 * (time.perf_counter() - start))
    return statistics.median(taken)


def _synchronize() -> None:
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def random_batch(engine: Engine, size: int, resolution: int, num_classes: int) -> Batch:
    """Random images and targets on the accelerator."""
    images = torch.randn(size, 3, resolution, resolution)
    labels = torch.randint(num_classes, (size,))
    targets = nn.functional.one_hot(labels, num_classes).float()
    put = engine.accelerator.put
    return Batch(put(images.contiguous(memory_format=torch.channels_last)), put(targets))


def training_step(network: nn.Module, engine: Engine, batch: Batch) -> Callable[[], Any]:
    """A weight step of a whole network, which is moved to the accelerator."""
    engine.accelerator.place(network.train())
    parameters, optimizer = list(network.parameters()), build_optimizer(network, WEIGHTS)
    return lambda: weight_step(network, parameters, optimizer, batch, WEIGHTS, RATE, engine)


def steps(*, smoke: bool) -> Iterator[dict[str, Any]]:
    """Weight and architecture steps of a supernet against plain steps of the sampled network."""
    name = "toy" if smoke else "quadranet-mobile"
    sizes = [(8, 32)] if smoke else [(256, 32), (64, 224)]
    for precision in ("fp32", "bf16"):
        for size, resolution in sizes:
            yield _steps(name, precision, size, resolution, seconds=0.1 if smoke else 2)


def _steps(
    name: str, precision: Precision, size: int, resolution: int, *, seconds: float
) -> dict[str, Any]:
    engine = Engine.of(find_accelerator("auto", precision))
    space = load_space(name).with_num_classes(10)
    batch = random_batch(engine, size, resolution, 10)
    supernet = build_supernet(space, seed=0).train()
    supernet.place(engine.accelerator)
    optimizer = build_optimizer(supernet, WEIGHTS)
    expected = ExpectedLatency(space, supernet.gates, find_table(space, "gpu"))
    gate_config = GateConfig(learning_rate=RATE)
    trainer = GateTrainer(supernet, expected, BudgetController(1.0), gate_config, engine)
    generator = generator_for(0)

    def weight() -> None:
        supernet.set_sample(supernet.gates.sample_path(generator))
        active = supernet.active_parameters()
        weight_step(supernet, active, optimizer, batch, WEIGHTS, RATE, engine)

    largest = build_subnet(space.extreme(lambda spec: spec.expand_ratio, largest=True))
    times = {
        "weight_ms": median_ms(weight, seconds),
        "gate_ms": median_ms(lambda: trainer.step(batch, generator), seconds),
        "largest_network_ms": median_ms(training_step(largest, engine, batch), seconds),
    }
    return {
        "setting": f"{name}, {precision}, batch {size}, {resolution} pixels",
        "accelerator": engine.accelerator.name,
        **times,
    }


def networks(*, smoke: bool) -> Iterator[dict[str, Any]]:
    """Throughput of QuadraNets in training and inference, beside timm's networks of their size."""
    size = 2 if smoke else 128
    for name, network in _networks(smoke=smoke):
        yield _throughput(name, network, size, smoke=smoke)


def _networks(*, smoke: bool) -> Iterator[tuple[str, nn.Module]]:
    for name in QUADRANETS[:1] if smoke else QUADRANETS:
        yield name, build_subnet(reference_architecture(name))
    try:
        import timm
    except ImportError:
        return
    for name in () if smoke else PEERS:
        yield name, timm.create_model(name)


def _throughput(name: str, network: nn.Module, size: int, *, smoke: bool) -> dict[str, Any]:
    engine = Engine.of(find_accelerator("auto", "fp32" if smoke else "bf16"))
    batch = random_batch(engine, size, 32 if smoke else 224, 1000)
    step = training_step(network, engine, batch)
    seconds = 0.1 if smoke else 3
    training_ms = median_ms(step, seconds)
    network.eval()
    with torch.no_grad():
        inference_ms = median_ms(lambda: engine.logits(network, batch.images), seconds)
    return {
        "network": name,
        "setting": f"{engine.accelerator.precision}, batch {size}",
        "accelerator": engine.accelerator.name,
        "training_images_per_s": 1e3 * size / training_ms,
        "inference_images_per_s": 1e3 * size / inference_ms,
    }


def write_device(output: Path, *, smoke: bool) -> None:
    """Write the description of this machine's GPU, or with `smoke` of one that has a model."""
    if smoke:
        content: dict[str, Any] = load_device("gpu").model_dump(mode="json", exclude_unset=True)
    else:
        title = torch.cuda.get_device_name()
        name = re.sub("[^a-z0-9]+", "-", title.lower()).strip("-")
        content = {"name": name, "title": title, "runtime": "cuda", "precision": "fp16"}
    (output / "device.yaml").write_text(dump_yaml(content), encoding="utf-8")


def main() -> None:
    """Run one part and keep its figures, row by row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=("steps", "networks", "device"))
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--smoke", action="store_true")
    args = parser.parse_args()
    torch.manual_seed(0)
    if args.part == "device":
        return write_device(args.output, smoke=args.smoke)
    rows: list[dict[str, Any]] = []
    for row in {"steps": steps, "networks": networks}[args.part](smoke=args.smoke):
        print(row, flush=True)
        rows.append(row)
        write_json(args.output / f"{args.part}.json", {"torch": torch.__version__, "rows": rows})


if __name__ == "__main__":
    main()
