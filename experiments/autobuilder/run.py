"""A converted network of fewer layers beside its first-order parent; see README.md."""

import argparse
import json
import os
import platform
import statistics
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from flow import build, open_images

from quadranas.files import source_commit
from quadranas.runs.config import WeightConfig

RESULTS = Path(__file__).with_name("results.json")


def main() -> None:
    """Build for every seed; seeds of an earlier run stay in the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", help="CIFAR-10's training images; digits if not given")
    parser.add_argument("--val", help="CIFAR-10's test images")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--held-out", type=int, default=5000, help="images to rank layers on")
    parser.add_argument("--smoke", action="store_true", help="a few digits, nothing kept")
    args = parser.parse_args()
    if args.smoke:
        images = open_images(None, None, num_held_out=64, num_left=64)
        build(images, WeightConfig(), epochs=1, seed=0)
        return
    if args.data is None or args.val is None:
        parser.error("CIFAR-10 is needed: --data and --val (or --smoke)")
    images = open_images(args.data, args.val, args.held_out, num_left=50_000)
    commit = source_commit()
    for seed in args.seeds:
        started = time.monotonic()
        found = build(images, WeightConfig(), args.epochs, seed) | {
            "images_seen": args.epochs * len(images.dataset.train),
            "num_ranked_on": len(images.ranking),
            "minutes": round((time.monotonic() - started) / 60, 1),
            "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
            "torch": torch.__version__,
            "commit": commit,
            "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        }
        kept = json.loads(RESULTS.read_text())["seeds"] if RESULTS.is_file() else {}
        seeds = dict(sorted({**kept, str(seed): found}.items()))
        RESULTS.write_text(
            json.dumps({"summary": summary(seeds), "seeds": seeds}, indent=2) + "\n"
        )


def summary(seeds: dict[str, Any]) -> dict[str, Any]:
    """Mean and standard deviation over the seeds, of every network."""
    found = {}
    for name in next(iter(seeds.values()))["networks"]:
        networks = [one["networks"][name] for one in seeds.values()]
        accuracies = [network["accuracy"] for network in networks]
        found[name] = {
            "mean_accuracy": statistics.mean(accuracies),
            "std_accuracy": statistics.stdev(accuracies) if len(accuracies) > 1 else None,
            "mean_params": statistics.mean(network["params"] for network in networks),
            "mean_macs": statistics.mean(network["macs"] for network in networks),
            "num_convs": [network["num_convs"] for network in networks],
        }
    return found


if __name__ == "__main__":
    main()
