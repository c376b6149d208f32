"""A deep quadratic network without norms, by plain and by quadratic optimisers; see README.md."""

import argparse
import os
import platform
import statistics
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from training import BATCH, DEPTH, WIDTH, train

from quadranas.data.dataset import load_dataset
from quadranas.files import source_commit, write_json

HERE = Path(__file__).parent
GROUPS = {"second_order_lr": 0.1}
DECAY = {"weight_decay": 0.01}  # what torch's AdamW does by default
WARM_UP, BOUND = {"warmup_steps": 44}, {"max_product": 0.003}
ADAMW: dict[str, Any] = {"optimizer": "AdamW", "lr": 4e-3}
SGD: dict[str, Any] = {"optimizer": "SGD", "lr": 1e-2, "momentum": 0.9}
ARMS: dict[str, dict[str, Any]] = {
    "AdamW, first-order network": ADAMW | {"form": "linear"},
    "AdamW": ADAMW,
    "AdamW, a tenth of the rate": ADAMW | {"lr": 4e-4},
    "AdamW, gradient norm at most 1": ADAMW | {"clip_norm": 1.0},
    "AdamW, bound": ADAMW | {"groups": DECAY | {"second_order_lr": 1.0}, "control": BOUND},
    "AdamW, groups": ADAMW | {"groups": DECAY | GROUPS},
    "AdamW, groups, warm-up": ADAMW | {"groups": DECAY | GROUPS, "control": WARM_UP},
    "AdamW, groups, bound": ADAMW | {"groups": DECAY | GROUPS, "control": BOUND},
    "AdamW, groups, warm-up, bound": ADAMW
    | {"groups": DECAY | GROUPS, "control": WARM_UP | BOUND},
    "SGD, first-order network": SGD | {"form": "linear"},
    "SGD": SGD,
    "SGD, groups, warm-up, bound": SGD | {"groups": GROUPS, "control": WARM_UP | BOUND},
}


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and spread over the runs that did not diverge, and the share of those that did."""
    whole = [run for run in runs if "loss" in run]
    found: dict[str, Any] = {"share_diverged": 1 - len(whole) / len(runs)}
    for key in ("loss", "accuracy"):
        values = [run[key] for run in whole]
        found[f"{key}_mean"] = statistics.fmean(values) if values else None
        found[f"{key}_std"] = statistics.stdev(values) if len(values) > 1 else None
    return found | {"runs": runs}


def main() -> None:
    """Train every arm with every seed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="one step's worth, nothing kept")
    parser.add_argument("--data", help="folder or zip of images by class; digits if not given")
    parser.add_argument("--resolution", type=int, default=8, help="of the images, in pixels")
    args = parser.parse_args()
    seeds, epochs = (1, 1) if args.smoke else (3, 8)
    arms = dict(list(ARMS.items())[:2]) if args.smoke else ARMS
    torch.set_num_threads(1)
    dataset = load_dataset(args.data, resolution=args.resolution)
    started = time.monotonic()
    results = {}
    for name, arm in arms.items():
        found = summary([train(arm, dataset, seed, epochs) for seed in range(seeds)])
        results[name] = {"settings": arm} | found
        print({name: {k: v for k, v in found.items() if k != "runs"}}, flush=True)
    if args.smoke:
        return
    write_json(
        HERE / "results.json",
        {
            "data": dataset.name,
            "resolution": dataset.resolution,
            "network": {"blocks": DEPTH, "channels": WIDTH},
            "batch_size": BATCH,
            "epochs": epochs,
            "arms": results,
            "minutes": round((time.monotonic() - started) / 60, 1),
            "machine": f"{platform.machine()}, {torch.get_num_threads()} thread",
            "torch": torch.__version__,
            "date": datetime.now(UTC).date().isoformat(),
            "commit": source_commit(),
        },
    )


if __name__ == "__main__":
    main()
