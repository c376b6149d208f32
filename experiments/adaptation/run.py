"""Is adapting a pre-trained network quicker than training a quadratic one? See README.md."""

import argparse
import os
import time
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
from networks import ADAPTED, first_order, high_order, shifted

from quadranas.augment import AugmentConfig, Augmenter
from quadranas.config import WeightConfig
from quadranas.data import Dataset, load_dataset
from quadranas.evaluate import evaluate
from quadranas.files import source_commit, write_json
from quadranas.latency.host import cpu_name
from quadranas.network import Network, build_subnet, count_network
from quadranas.network_training import NetworkTraining
from quadranas.toolkit import adapt

HERE, POINTS, RATE = Path(__file__).parent, 12, 4e-3
SCRATCH, TUNED = "from scratch, high order", "fine-tuned"


def trained(
    network: Network, dataset: Dataset, epochs: int, rate: float, seed: int
) -> list[dict[str, float]]:
    """Train by the project's recipe; test accuracy and CPU seconds of training at 12 points."""
    augment = AugmentConfig(flip=True, crop_padding=4)
    moments: dict[str, Any] = {"mean": dataset.mean, "std": dataset.std}
    augmenter = Augmenter(augment, num_classes=dataset.num_classes, **moments)
    weights = WeightConfig(learning_rate=rate)
    training = NetworkTraining(
        "train", network, dataset, augmenter, weights, num_epochs=epochs, batch_size=64, seed=seed
    )
    marks = {round(training.num_steps * (i + 1) / POINTS) for i in range(POINTS)}
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


def reached(curve: list[dict[str, float]], target: float) -> dict[str, float] | None:
    """The first point of a curve at or above an accuracy."""
    return next((point for point in curve if point["accuracy"] >= target), None)


def summary(curves: list[dict[str, Any]], name: str) -> dict[str, Any]:
    """One way over all seeds: its accuracy, and its cost of the target beside from scratch."""
    final = [100 * seed[name][-1]["accuracy"] for seed in curves]
    shares: dict[str, list[float | None]] = {"steps": [], "cpu_s": []}
    for seed in curves:
        target = seed[SCRATCH][-1]["accuracy"]
        own, scratch = reached(seed[name], target), reached(seed[SCRATCH], target)
        for unit, found in shares.items():
            found.append(own[unit] / scratch[unit] if own and scratch else None)
    return {
        "accuracy_percent": {"mean": np.mean(final), "std": np.std(final, ddof=min(1, len(final) - 1))},
        "cost_of_target_over_scratch": shares,
    }


def main() -> None:
    """Pre-train once; for every seed train in every way on the shifted domain; compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", help="CIFAR-10's training images, a folder or zip")
    parser.add_argument("--val", help="its test images")
    parser.add_argument("--smoke", action="store_true", help="digits, one seed, not kept")
    args = parser.parse_args()
    torch.set_num_threads(1)
    dataset = load_dataset(args.data, val=args.val, resolution=32)
    num_seeds, pretraining, scratch, images = (1, 1, 2, 256) if args.smoke else (3, 6, 12, 15_000)
    domain = shifted(dataset, images, images // 3)
    architecture = first_order(dataset.num_classes)
    torch.manual_seed(0)
    source = build_subnet(architecture)
    before = trained(source, dataset, pretraining, RATE, 0)
    curves = []
    for seed in range(num_seeds):
        torch.manual_seed(seed)
        ways = {
            SCRATCH: (high_order(architecture), scratch, RATE),
            TUNED: (build_subnet(architecture), 1, RATE),
            "adapted": (adapt(source, where=ADAPTED), 1, RATE),
            "adapted, quadratic terms alone": (adapt(source, where=ADAPTED, train="quadratic"), 1, RATE),
        }
        ways[TUNED][0].load_state_dict(source.state_dict())
        curves.append({n: trained(w[0], domain, w[1], w[2], seed) for n, w in ways.items()})
