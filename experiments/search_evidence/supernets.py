"""Ways of training a supernet, compared at equal cost: how good are its sub-networks?

Every search that is done is in `supernets.csv` and is not repeated; an interrupted one continues
where it stopped, as long as its run folder is there. See README.md.
"""

import argparse
import resource
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import yaml
from scipy.stats import kendalltau
from truth import (
    HERE,
    TRUTH,
    append_row,
    cpu_minutes,
    depths_of,
    equal_networks,
    rows_of,
    run_until,
)

from quadranas.files import source_commit
from quadranas.space.architecture import Architecture, load_architecture
from quadranas.training.searched import open_searched

FOUND = HERE / "supernets.csv"
NUM_JUDGED = 32
"""Number of random networks of equal latency that every supernet judges."""

FIELDS = (
    *("variant", "seed", "chosen", "mean", "best", "deviation", "tau", "num_ranked"),
    *("depths", "cpu_minutes", "memory_mb", "commit", "torch", "date"),
)

VARIANTS: dict[str, tuple[dict[str, Any], tuple[int, int]]] = {
    "independent": ({"weights": "independent"}, (6, 9)),
    "nested": ({"weights": "nested"}, (6, 9)),
    "nested-near": ({"weights": "nested", "near_budget": 0.15}, (6, 9)),
    "nested-sandwich": ({"weights": "nested", "sandwich": 1}, (3, 4)),
    "nested-sandwich-distilled": (
        {"weights": "nested", "sandwich": 1, "distillation": True},
        (3, 4),
    ),
}
"""Keys of `supernet`, and epochs of warm-up and search. A step with the sandwich rule takes three
passes; an architecture step, after every second weight step, takes about two."""


@dataclass(frozen=True)
class Job:
    """One search."""

    variant: str
    seed: int


def config_of(job: Job) -> dict[str, Any]:
    """The configuration of a search."""
    keys, (warmup, search) = VARIANTS[job.variant]
    recipe = yaml.safe_load((HERE / "recipe.yaml").read_text("utf-8"))
    schedule = {"warmup_epochs": warmup, "search_epochs": search, "finetune_epochs": 0}
    del recipe["resolution_images"]
    return recipe | {
        "supernet": keys,
        "gates": {"weight_steps": 2, "learning_rate": 0.01},
        "schedule": schedule | {"resolution_images": 0},
    }


def search(
    config: dict[str, Any], seed: int, data: Path, run: Path, deadline: float
) -> resource.struct_rusage | None:
    """Search within the budget until the end or the deadline; returns what it used."""
    path = run.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(config), "utf-8")
    budget_ms, *_ = equal_networks(0)
    command = [
        *(sys.executable, "-m", "quadranas", "search", "--resume", "--quiet", "--device", "cpu"),
        *("--space", str(HERE / "space.yaml"), "--table", str(HERE / "table.json")),
        *("--data", str(data / "cifar10-train.zip"), "--val", str(data / "cifar10-test.zip")),
        *("--budget", f"{budget_ms:.6f}ms", "--config", str(path)),
        *("--seed", str(seed), "--output", str(run)),
    ]
    return run_until(deadline, command)


def truth_of(networks: list[Architecture]) -> dict[int, float]:
    """Accuracy from scratch per network, after the greatest number of epochs that all have."""
    rows = [row for row in rows_of(TRUTH) if row["seed"] == "0"]
    lengths = {int(row["epochs"]) for row in rows}
    by_length = {
        length: {
            int(row["network"]): float(row["accuracy"])
            for row in rows
            if int(row["epochs"]) == length and int(row["network"]) < len(networks)
        }
        for length in lengths
    }
    most = max(len(found) for found in by_length.values())
    return by_length[max(length for length, found in by_length.items() if len(found) == most)]


def judge(run: Path, networks: list[Architecture]) -> dict[str, Any]:
    """Accuracies on held-out images with the weights of a supernet."""
    torch.set_num_threads(1)
    searched = open_searched(run)
    supernet = searched.supernet()
    evaluator = searched.evaluator(supernet)

    def accuracy(network: Architecture) -> float:
        return evaluator.accuracy(searched.space.choices_of(network))

    found = [accuracy(network) for network in networks]
    chosen = load_architecture(run / "architecture.json")
    known = truth_of(networks)
    tau = kendalltau([found[i] for i in known], list(known.values())).statistic
    return {
        "chosen": f"{accuracy(chosen):.4f}",
        "mean": f"{statistics.fmean(found):.4f}",
        "best": f"{max(found):.4f}",
        "deviation": f"{statistics.stdev(found):.4f}",
        "tau": f"{tau:.3f}",
        "num_ranked": len(known),
        "depths": depths_of(chosen),
    }


def done() -> set[Job]:
    """The searches in the table."""
    return {Job(row["variant"], int(row["seed"])) for row in rows_of(FOUND)}


def main() -> None:
    """Search with every variant that is missing, until it is done or the time is over."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with CIFAR-10's zips")
    parser.add_argument("--variants", nargs="*", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--seeds", type=int, nargs="*", default=(0, 1, 2))
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=120, help="time limit")
    parser.add_argument("--runs", type=Path, default=Path("runs/search_evidence"))
    args = parser.parse_args()
    deadline = time.monotonic() + 60 * args.minutes
    _, _, networks = equal_networks(NUM_JUDGED)
    args.runs.mkdir(parents=True, exist_ok=True)
    finished = done()

    def work(job: Job) -> None:
        if job in finished or time.monotonic() >= deadline:
            return
        run = args.runs / f"{job.variant}-seed{job.seed}"
        used = search(config_of(job), job.seed, args.data, run, deadline)
        if used is None:
            return
        row = {
            "variant": job.variant,
            "seed": job.seed,
            **judge(run, networks),
            "cpu_minutes": cpu_minutes(used),
            "memory_mb": f"{used.ru_maxrss / 1024:.0f}",
            "commit": source_commit(),
            "torch": torch.__version__,
            "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        }
        append_row(FOUND, FIELDS, row)
        print(row, flush=True)

    with ThreadPoolExecutor(args.processes) as pool:
        list(pool.map(work, [Job(name, seed) for seed in args.seeds for name in args.variants]))


if __name__ == "__main__":
    main()
