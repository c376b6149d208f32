"""Training with two processes against one, and `train` against a hand-written loop.

Run by itself, it starts two processes of one thread each. Steps of the supernet by process 0 alone
and by both together alternate, at the same batch size of both together and on the same paths.
"""

import argparse
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("KINETO_LOG_LEVEL", "99")

import torch
from run import active_subnet, peak_bytes
from torch import Tensor, nn

from quadranas.acceleration.accelerator import CPU
from quadranas.acceleration.engine import Engine
from quadranas.acceleration.processes import ALONE, Processes, together
from quadranas.data.augmentation import AugmentConfig, Augmenter
from quadranas.data.dataset import Dataset, load_dataset
from quadranas.files import source_commit
from quadranas.latency.table_files import find_table
from quadranas.network.skeleton import build_subnet
from quadranas.runs.config import GateConfig, WeightConfig
from quadranas.seeds import generator_for
from quadranas.space.space_file import load_space
from quadranas.supernet.budget_controller import BudgetController
from quadranas.supernet.expected_latency import ExpectedLatency
from quadranas.supernet.gate_training import GateTrainer
from quadranas.supernet.supernet import build_supernet
from quadranas.training.batches import Batches
from quadranas.training.distillation import label_loss
from quadranas.training.network_phase import NetworkTraining
from quadranas.training.optimizers import build_optimizer
from quadranas.training.steps import joint_weight_step

SPACE, DEVICE, RATE = "quadranet-mobile", "vpu", 1e-9
WEIGHTS = WeightConfig(learning_rate=RATE)
AUGMENT = AugmentConfig(flip=True, crop_padding=4)
PROCESSES = 2


class SupernetSteps:
    """Weight and architecture steps of a supernet, by one process or by several together."""

    def __init__(self, dataset: Dataset, batch_size: int, processes: Processes) -> None:
        self.engine = Engine.of(CPU, processes)
        space = load_space(SPACE).with_num_classes(dataset.num_classes)
        self.batches = Batches(
            *(dataset, Augmenter.of(dataset, AUGMENT), self.engine),
            torch.arange(len(dataset.train)),
            batch_size=batch_size,
            seed_of=lambda epoch: epoch,
        )
        self.supernet = build_supernet(space, seed=0, nested=True).train()
        self.optimizer = build_optimizer(self.supernet, WEIGHTS)
        self.trainer = GateTrainer(
            self.supernet,
            ExpectedLatency(space, self.supernet.gates, find_table(space, DEVICE)),
            BudgetController(30.0),
            GateConfig(learning_rate=RATE),
            self.engine,
        )

    def weight(self, number: int) -> None:
        """One weight step."""
        path = self.supernet.gates.sample_path(generator_for(0, "path", number))
        batch = self.batches.augmented(number, seed=number)
        joint_weight_step(
            *(self.supernet, [path], self.optimizer, batch, WEIGHTS, RATE, self.engine),
            label_loss(WEIGHTS),
            distillation=False,
        )

    def both(self, number: int) -> None:
        """A weight step and an architecture step, as in a search."""
        self.weight(number)
        self.trainer.step(self.batches.plain(number), generator_for(0, "gates", number))

    def path_bytes(self) -> int:
        """Size of the gradients on the current path."""
        parts = self.supernet.active_parts()
        return sum(shape.numel() * p.element_size() for p, shape in parts.items())


def timed(step: Callable[[int], None], numbers: range) -> list[float]:
    """Seconds of each step."""
    taken = []
    for number in numbers:
        start = time.perf_counter()
        step(number)
        taken.append(time.perf_counter() - start)
    return taken


def measure_processes(dataset: Dataset, args: argparse.Namespace) -> dict[str, Any]:
    """The figures of this process; those of the main one count."""
    with together() as processes:
        joint = SupernetSteps(dataset, args.batch_size, processes)
        alone = SupernetSteps(dataset, args.batch_size, ALONE)
        ratios = []
        for start in range(0, args.steps, 4):
            numbers = range(start, start + 4)
            joint.both(start)  # the other process has waited
            by_both = timed(joint.both, numbers)
            by_one = timed(alone.both, numbers) if processes.is_main else []
            processes.from_main("waited")
            ratios += [one / both for one, both in zip(by_one, by_both, strict=False)]
        sent = counted_bytes(joint)
        memory = peak_bytes(lambda: joint.weight(0))
        found = {"bytes_per_path_byte": sent, "joint_bytes": memory}
        if processes.is_main:
            found["speed"] = statistics.median(ratios)
            found["memory"] = memory / peak_bytes(lambda: alone.weight(0))
        processes.from_main("waited")
        return found


def counted_bytes(steps: SupernetSteps) -> float:
    """Bytes that a weight step adds up between the processes, per byte of the path's gradients."""
    sent = 0
    reduce = torch.distributed.all_reduce

    def counting(tensor: Tensor, *args: Any, **keys: Any) -> Any:
        nonlocal sent
        sent += tensor.numel() * tensor.element_size()
        return reduce(tensor, *args, **keys)

    torch.distributed.all_reduce = counting
    try:
        steps.weight(0)
    finally:
        torch.distributed.all_reduce = reduce
    return sent / steps.path_bytes()


def measure_train(dataset: Dataset, args: argparse.Namespace) -> float:
    """Images per second of `train`'s steps, relative to a loop written by hand."""
    space = load_space(SPACE).with_num_classes(dataset.num_classes)
    supernet = build_supernet(space, seed=0, nested=True)
    chosen = active_subnet(supernet, supernet.gates.sample_path(generator_for(0)))
    training = NetworkTraining(
        *("bench", build_subnet(chosen), dataset, Augmenter.of(dataset, AUGMENT), WEIGHTS),
        num_epochs=1000,
        batch_size=args.batch_size,
        seed=0,
    )
    by_hand = hand_written(build_subnet(chosen), dataset, args.batch_size)
    ratios = []
    for start in range(0, args.steps, 4):
        numbers = range(start, start + 4)
        ours, theirs = timed(lambda n: void(training.step(n)), numbers), timed(by_hand, numbers)
        ratios += [there / here for here, there in zip(ours, theirs, strict=True)]
    return statistics.median(ratios)


def void(_: object) -> None:
    """Drop a result."""


def hand_written(network: nn.Module, dataset: Dataset, batch_size: int) -> Callable[[int], None]:
    """A plain PyTorch loop with the same augmentation by kornia, without quadranas's own code."""
    from kornia.augmentation import RandomCrop, RandomHorizontalFlip

    network.train()
    size = dataset.resolution
    crop = RandomCrop((size, size), padding=4, cropping_mode="slice")
    flip = RandomHorizontalFlip(p=0.5)
    mean, std = (torch.tensor(s).view(1, 3, 1, 1) for s in (dataset.mean, dataset.std))
    pixels = dataset.train.batch(torch.arange(len(dataset.train)))
    labels = dataset.train.labels
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=RATE, betas=(0.9, 0.99), weight_decay=0.05, fused=True
    )
    loss_of = nn.CrossEntropyLoss(label_smoothing=0.1)
    generator = torch.Generator().manual_seed(0)

    def step(_: int) -> None:
        chosen = torch.randperm(len(labels), generator=generator)[:batch_size]
        images = (flip(crop(pixels[chosen].float() / 255)) - mean) / std
        images = images.contiguous(memory_format=torch.channels_last)
        optimizer.zero_grad()
        logits = network(images)
        loss = loss_of(logits, labels[chosen])
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 2.0)
        optimizer.step()
        loss.item()
        (logits.argmax(1) == labels[chosen]).float().mean().item()

    return step


def start_others(arguments: list[str]) -> list["subprocess.Popen[bytes]"]:
    """Start the other processes as `torchrun` does, and become the first one."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": str(PROCESSES), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= shared | {"RANK": "0", "LOCAL_RANK": "0"}
    command = [sys.executable, __file__, *arguments]
    return [
        subprocess.Popen(command, env=os.environ | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(1, PROCESSES)
    ]


def main() -> None:
    """Measure, print, and keep the figures in `--output`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=48)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--smoke", action="store_true", help="four steps")
    parser.add_argument("--output", type=Path, help="folder to keep the figures in")
    args = parser.parse_args()
    args.steps = 4 if args.smoke else args.steps
    torch.set_num_threads(1)
    is_first = "RANK" not in os.environ
    others = start_others(sys.argv[1:]) if is_first else []
    dataset = load_dataset(None, resolution=32)
    found = measure_processes(dataset, args)
    if not is_first:
        return
    for other in others:
        other.wait()
    found["train"] = measure_train(dataset, args)
    results = {
        "machine": f"{platform.machine()}, {PROCESSES} processes of one thread",
        "torch": torch.__version__,
        "commit": source_commit(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "setting": f"{SPACE}, batch {args.batch_size}, 32 pixels, {args.steps} steps",
        **found,
    }
    print(results["setting"], "on", results["machine"])
    print(
        f"{PROCESSES} processes / 1: speed of a weight and an architecture step "
        f"{found['speed']:.2f}, memory {found['memory']:.2f}, bytes added up per byte of the "
        f"path's gradients {found['bytes_per_path_byte']:.2f}"
    )
    print(f"train / hand-written loop: images per second {found['train']:.2f}")
    if args.output:
        (args.output / "processes.json").write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
