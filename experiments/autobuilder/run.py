"""A converted network of fewer layers beside its first-order parent; see README.md."""

import argparse
import json
import os
import platform
import statistics
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from networks import VGG
from torch import nn

from quadranas.augment import AugmentConfig, Augmenter
from quadranas.config import WeightConfig
from quadranas.data import Dataset, ImageSet, load_dataset
from quadranas.evaluate import evaluate
from quadranas.files import source_commit
from quadranas.layers.quadratic import QuadraticConv2d
from quadranas.layers.replacement import set_memory_efficient
from quadranas.network import count_network
from quadranas.network_training import NetworkTraining
from quadranas.toolkit import convert, pick, rank_layers, remove
from quadranas.training import generator_for

HERE = Path(__file__).parent
NUM_HELD_OUT = 5000
"""Training images that no network trains on: the layers are ranked on them."""


def main() -> None:
    """Train parent, converted and reduced network for every seed; keep the accuracies."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", help="CIFAR-10's training images; digits if not given")
    parser.add_argument("--val", help="CIFAR-10's test images")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--learning-rate", type=float, default=4e-3)
    parser.add_argument("--smoke", action="store_true", help="a few digits, nothing kept")
    args = parser.parse_args()
    weights = WeightConfig(learning_rate=args.learning_rate)
    dataset = load_dataset(args.data, val=args.val, resolution=32)
    held_out = min(NUM_HELD_OUT, len(dataset.train) // 2)
    if args.smoke:
        args.seeds, args.epochs, held_out = [0], 1, len(dataset.train) - 128
    order = torch.randperm(len(dataset.train), generator=generator_for(0, "held out"))
    ranked_on = subset(dataset.train, order[:held_out])
    dataset = replace(dataset, train=subset(dataset.train, order[held_out:]))
    path = HERE / "results.json"
    kept = json.loads(path.read_text()) if path.is_file() and not args.smoke else {}
    for seed in args.seeds:
        started = time.monotonic()
        found = one_seed(dataset, ranked_on, weights, args.epochs, seed)
        found |= {
            "minutes": round((time.monotonic() - started) / 60, 1),
            "images_seen": args.epochs * len(dataset.train),
            "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
            "torch": torch.__version__,
            "commit": source_commit(),
            "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        }
        print(json.dumps(found, indent=2), flush=True)
        kept = merged(kept, seed, found)
        if not args.smoke:
            path.write_text(json.dumps(kept, indent=2) + "\n")


def one_seed(
    dataset: Dataset, ranked_on: ImageSet, weights: WeightConfig, epochs: int, seed: int
) -> dict[str, object]:
    """The auto-builder's way from a parent to a reduced network, each trained alike."""
    flips = AugmentConfig(flip=True, crop_padding=2)
    augmenter = Augmenter(
        flips, num_classes=dataset.num_classes, mean=dataset.mean, std=dataset.std
    )

    def trained(name: str, network: nn.Module) -> dict[str, object]:
        network.to(memory_format=torch.channels_last)
        set_memory_efficient(network, False)
        training = NetworkTraining(
            name, network, dataset, augmenter, weights, num_epochs=epochs, batch_size=64, seed=seed
        )
        for number in range(training.num_steps):
            training.step(number)
        params, macs = count_network(network, 32)
        convs = sum(isinstance(m, nn.Conv2d | QuadraticConv2d) for m in network.features)
        accuracy = evaluate(network, dataset.test, augmenter)
        print(f"seed {seed}, {name}: {accuracy:.4f}", flush=True)
        return {"params": params, "macs": macs, "convs": convs, "accuracy": accuracy}

    torch.manual_seed(seed)
    parent = VGG(dataset.num_classes)
    untrained = convert(parent, "hadamard", norm=True)
    converted = convert(parent, "hadamard", norm=True)
    networks = {"parent": trained("parent", parent), "converted": trained("converted", converted)}
    ranking = rank_layers(
        converted,
        lambda network: evaluate(network, ranked_on, augmenter),
        example=torch.zeros(1, 3, 32, 32),
    )
    for count in range(1, len(ranking)):
        removed = pick(ranking, count, removable=True)
        reduced = remove(untrained, removed)
        if count_network(reduced, 32)[0] < networks["parent"]["params"]:
            break
    networks["reduced"] = trained("reduced", reduced)
    ranked = [layer.as_json() for layer in ranking]
    return {"networks": networks, "removed": removed, "ranking": ranked}


def subset(images: ImageSet, indices: torch.Tensor) -> ImageSet:
    """Some images of a split."""
    return ImageSet(
        images.labels[indices], lambda some: images.batch(indices[some]).permute(0, 2, 3, 1)
    )


def merged(kept: dict[str, dict], seed: int, found: dict) -> dict[str, dict]:
    """The results with one seed's put in, and the means and spreads over the seeds."""
    seeds = {**kept.get("seeds", {}), str(seed): found}
    summary = {}
    for name in ("parent", "converted", "reduced"):
        accuracies = [one["networks"][name]["accuracy"] for one in seeds.values()]
        spread = statistics.stdev(accuracies) if len(accuracies) > 1 else None
        summary[name] = {"mean_accuracy": statistics.mean(accuracies), "std_accuracy": spread}
    return {"summary": summary, "seeds": dict(sorted(seeds.items()))}


if __name__ == "__main__":
    main()
