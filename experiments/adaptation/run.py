"""Is adapting a pre-trained network quicker than training a quadratic one? See README.md."""

import argparse
import os
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from comparison import SCRATCH, compared
from networks import first_order, shifted, ways

from quadranas.data.augmentation import AugmentConfig, Augmenter
from quadranas.data.dataset import Dataset, load_dataset
from quadranas.data.task import evaluate
from quadranas.files import source_commit, write_json
from quadranas.latency.host import cpu_name
from quadranas.network.counting import count_network
from quadranas.network.skeleton import Network, build_subnet
from quadranas.runs.config import WeightConfig
from quadranas.training.network_phase import NetworkTraining

HERE = Path(__file__).parent
PRETRAINING, FROM_SCRATCH, SHORT, NUM_POINTS = 5, 48, 5, 9
"""Epochs of each kind of training, and how often the accuracy is taken."""


def trained(network: Network, dataset: Dataset, epochs: int, seed: int) -> list[dict[str, float]]:
    """Train by the project's recipe; test accuracy and CPU seconds of training at some points."""
    augmenter = Augmenter(
        AugmentConfig(flip=True, crop_padding=4),
        num_classes=dataset.num_classes,
        mean=dataset.mean,
        std=dataset.std,
    )
    options: dict[str, Any] = {"num_epochs": epochs, "batch_size": 64, "seed": seed}
    training = NetworkTraining("train", network, dataset, augmenter, WeightConfig(), **options)
    marks = {round(training.num_steps * (i + 1) / NUM_POINTS) for i in range(NUM_POINTS)}
    curve, cpu_s = [], 0.0
    for number in range(training.num_steps):
        start = time.process_time()
        training.step(number)
        cpu_s += time.process_time() - start
        if number + 1 in marks:
            accuracy = evaluate(network, dataset.test, augmenter)
            curve.append({"steps": number + 1, "cpu_s": cpu_s, "accuracy": accuracy})
    print(seed, curve[-1], flush=True)
    return curve


def main() -> None:
    """Pre-train once; train in every way on the shifted domain, for every seed; compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", help="CIFAR-10's training images, a folder or zip")
    parser.add_argument("--val", help="its test images")
    parser.add_argument("--smoke", action="store_true", help="digits, one seed, not kept")
    args = parser.parse_args()
    torch.set_num_threads(1)
    dataset = load_dataset(args.data, val=args.val, resolution=32)
    num_seeds, num_train, num_test = (1, 512, 100) if args.smoke else (3, 2_500, 5_000)
    domain = shifted(dataset, num_train, num_test)
    torch.manual_seed(0)
    source = build_subnet(first_order(dataset.num_classes))
    epochs = (1, 2, 1) if args.smoke else (PRETRAINING, FROM_SCRATCH, SHORT)
    pretraining = trained(source, dataset, epochs[0], 0)
    curves = []
    for seed in range(num_seeds):
        torch.manual_seed(seed)
        networks = ways(source, dataset.num_classes)
        sizes = {name: count_network(network, 32) for name, network in networks.items()}
        curves.append(
            {
                name: trained(network, domain, epochs[1 if name == SCRATCH else 2], seed)
                for name, network in networks.items()
            }
        )
    rows = {name: compared(curves, name) for name in sizes}
    for name, row in rows.items():
        row["params"], row["macs"] = sizes[name]
        print(name, row)
    results = {
        "results": rows,
        "pretraining": pretraining[-1],
        "hardware": f"{cpu_name()}, 1 thread",
        "torch": torch.__version__,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "commit": source_commit(),
        "curves": curves,
    }
    if not args.smoke:
        write_json(HERE / "results.json", results)


if __name__ == "__main__":
    main()
