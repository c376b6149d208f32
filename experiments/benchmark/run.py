"""Ratios of the supernet's steps to plain training; decoding times; the data pipeline.

Every pair is interleaved: the supernet's step and the plain step of the identical sampled subnet,
same images, same optimiser; best of three each, median over the paths. Memory is the peak of what
a step allocates, parameters and optimiser state excluded, from the profiler's allocation events.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from torch.profiler import ProfilerActivity, profile

from quadranas.data.augmentation import AugmentConfig, Augmenter
from quadranas.data.batch import Batch
from quadranas.data.dataset import load_dataset
from quadranas.files import source_commit
from quadranas.latency.table_files import find_table
from quadranas.layers.quadratic import QuadraticConv2d
from quadranas.network.skeleton import build_subnet
from quadranas.runs.config import GateConfig, WeightConfig
from quadranas.seeds import generator_for
from quadranas.space.architecture import Architecture
from quadranas.space.search_space import SKIPPED
from quadranas.space.space_file import load_space, space_files
from quadranas.strategies.exact import decode
from quadranas.strategies.limits import Limits, reachable_ms
from quadranas.supernet.budget_controller import BudgetController
from quadranas.supernet.expected_latency import ExpectedLatency
from quadranas.supernet.gate_training import GateTrainer
from quadranas.supernet.gates import SKIP, Sample
from quadranas.supernet.supernet import Supernet, build_supernet
from quadranas.training.optimizers import build_optimizer
from quadranas.training.steps import weight_step

SPACE, DEVICE, RATE = "quadranet-mobile", "vpu", 1e-9
WEIGHTS = WeightConfig()


def best_of(repeats: int, first: Callable[[], Any], second: Callable[[], Any]) -> float:
    """Ratio of the best times of two steps, interleaved, after one discarded call each."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats + 1):
        for step, taken in zip((first, second), times, strict=True):
            start = time.perf_counter()
            step()
            taken.append(time.perf_counter() - start)
    return min(times[0][1:]) / min(times[1][1:])


def peak_bytes(step: Callable[[], Any]) -> int:
    """Most memory that a step held at once, beyond what was allocated before it."""
    step()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    assert profiler.profiler is not None
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def active_subnet(supernet: Supernet, sample: Sample) -> Architecture:
    """The network on a sampled path."""
    choices: dict[str, Any] = {}
    active = sample.active.tolist()
    for info, index in zip(supernet.gates.infos, active, strict=True):
        if info.slot is None and index == SKIP:
            choices[info.block] = SKIPPED
        elif info.slot is not None and choices.get(info.block, ()) is not SKIPPED:
            choices[info.block] = (*choices.get(info.block, ()), index)
    return supernet.space.architecture(choices)


def measure_steps(mode: str, paths: int, repeats: int, batch: Batch) -> dict[str, float]:
    """Time and memory ratios of one kind of step against plain training."""
    space = load_space(SPACE).with_num_classes(batch.targets.shape[1])
    supernet = build_supernet(space, seed=0, nested=True).train()
    optimizer = build_optimizer(supernet, WEIGHTS)
    table = find_table(space, DEVICE)
    trainer = GateTrainer(
        supernet,
        ExpectedLatency(space, supernet.gates, table),
        BudgetController(30.0),
        GateConfig(mode="full" if mode == "full" else "two_path", learning_rate=RATE),
    )
    draw = {"weight": "sample_path", "two_path": "sample_pair", "full": "sample_full"}[mode]
    times, memories = [], []
    for path in range(paths):
        sample = getattr(supernet.gates, draw)(generator_for(0, "path", path))
        subnet = build_subnet(active_subnet(supernet, sample)).train()
        parameters = list(subnet.parameters())
        plain_optimizer = build_optimizer(subnet, WEIGHTS)

        def plain(subnet=subnet, parameters=parameters, optimizer=plain_optimizer) -> None:  # type: ignore[no-untyped-def]
            weight_step(subnet, parameters, optimizer, batch, WEIGHTS, RATE)

        def step(sample=sample, path=path) -> None:  # type: ignore[no-untyped-def]
            if mode == "weight":
                supernet.gates.sample_path(generator_for(0, "path", path))
                supernet.set_sample(sample)
                active = supernet.active_parameters()
                weight_step(supernet, active, optimizer, batch, WEIGHTS, RATE)
            else:
                trainer.step(batch, generator_for(0, "path", path))

        times.append(best_of(repeats, step, plain))
        memories.append(peak_bytes(step) / peak_bytes(plain))
    return {"time": statistics.median(times), "memory": statistics.median(memories)}


def measure_decoding() -> dict[str, float]:
    """Slowest decoding per space over devices and budgets, in seconds, gates as initialised."""
    seconds = {}
    for name in space_files():
        space = load_space(name)
        scores = build_supernet(space, seed=0).gates.scores(space)
        slowest = 0.0
        for device in ("cpu", "vpu", "gpu"):
            table = find_table(space, device)
            low, high = reachable_ms(space, table)
            for share in (0.05, 0.2, 0.5, 0.8):
                start = time.perf_counter()
                decode(space, scores, table, Limits(budget_ms=low + share * (high - low)))
                slowest = max(slowest, time.perf_counter() - start)
        seconds[name] = slowest
    return seconds


def measure_pipeline(batch_size: int, resolution: int) -> tuple[Batch, dict[str, float]]:
    """A training batch, and images per second of loading and augmenting against training."""
    dataset = load_dataset(None, resolution=resolution)
    config = AugmentConfig(flip=True, crop_padding=4)
    augmenter = Augmenter(config, num_classes=10, mean=dataset.mean, std=dataset.std)
    indices = torch.arange(batch_size)

    def pipeline() -> Batch:
        images = dataset.train.batch(indices)
        return Batch(*augmenter(images, dataset.train.labels[indices], seed=0))

    batch = pipeline()
    space = load_space(SPACE).with_num_classes(10)
    supernet = build_supernet(space, seed=0, nested=True)
    subnet = build_subnet(active_subnet(supernet, supernet.gates.sample_path(generator_for(0))))
    parameters, optimizer = list(subnet.parameters()), build_optimizer(subnet, WEIGHTS)
    timings = []
    for step in (
        pipeline,
        lambda: weight_step(subnet, parameters, optimizer, batch, WEIGHTS, RATE),
    ):
        step()
        start = time.perf_counter()
        for _ in range(5):
            step()
        timings.append(5 * batch_size / (time.perf_counter() - start))
    return batch, {
        "pipeline_images_per_s": timings[0],
        "training_images_per_s": timings[1],
        "ratio": timings[0] / timings[1],
    }


def measure_depthwise(batch_size: int, repeats: int) -> dict[str, float]:
    """Forward and backward of a quadratic depthwise convolution, ours / autograd's, by kernel."""
    images, gradient = (
        torch.randn(batch_size, 240, 8, 8).contiguous(memory_format=torch.channels_last)
        for _ in range(2)
    )
    images.requires_grad_()

    def step(layer: QuadraticConv2d) -> None:
        layer(images).backward(gradient)

    ratios = {}
    for kernel in (3, 5, 7):
        shape: dict[str, Any] = {"kernel_size": kernel, "padding": kernel // 2, "groups": 240}
        layers = [QuadraticConv2d(240, 240, memory_efficient=m, **shape) for m in (True, False)]
        ratios[f"kernel {kernel}"] = best_of(repeats, *(partial(step, one) for one in layers))
    return ratios


def main() -> None:
    """Measure, print, and keep the figures in `--output`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--paths", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--resolution", type=int, default=32)
    parser.add_argument("--smoke", action="store_true", help="one path, one repeat")
    parser.add_argument("--output", type=Path, help="folder to keep the figures in")
    args = parser.parse_args()
    paths, repeats = (1, 1) if args.smoke else (args.paths, args.repeats)
    batch, pipeline = measure_pipeline(args.batch_size, args.resolution)
    results: dict[str, Any] = {
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "commit": source_commit(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "setting": f"{SPACE}, batch {args.batch_size}, {args.resolution} pixels, {paths} paths",
    }
    print(results["setting"], "on", results["machine"])
    for mode in ("weight", "two_path", "full"):
        results[mode] = measure_steps(mode, paths, repeats, batch)
        print(f"{mode:<9} step / plain step: time {results[mode]['time']:.2f}", end="")
        print(f", memory {results[mode]['memory']:.2f}")
    results["depthwise"] = measure_depthwise(args.batch_size, 3 * repeats)
    for name, ratio in results["depthwise"].items():
        print(f"quadratic depthwise convolution / with autograd's gradients, {name}: {ratio:.2f}")
    results["decoding_s"] = measure_decoding()
    for name, seconds in results["decoding_s"].items():
        print(f"decoding {name}: {seconds:.2f} s")
    results["pipeline"] = pipeline
    print(
        f"data pipeline {pipeline['pipeline_images_per_s']:.0f} images/s, training step "
        f"{pipeline['training_images_per_s']:.0f} images/s: {pipeline['ratio']:.1f} times"
    )
    if args.output:
        (args.output / "results.json").write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
