"""What a search hands over, against random networks of equal latency trained in the same time.

Every search that is done is in `handed_over.csv` and is not repeated; the random networks are
those of `truth.csv`. With all of them, the comparison is kept. See README.md.
"""

import argparse
import json
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import yaml
from scipy.stats import permutation_test
from supernets import search
from truth import HERE, NUM_FOR_LENGTH, TRUTH, append_row, cpu_minutes, depths_of, rows_of

from quadranas.files import source_commit, write_json
from quadranas.space.architecture import load_architecture

FOUND, RESULTS = HERE / "handed_over.csv", HERE / "handed_over.json"
SEEDS, EPOCHS = (0, 1, 2), 9
"""Seeds of the searches, and the epochs of the random networks."""

SCHEDULE = {"warmup_epochs": 1, "search_epochs": 4, "finetune_epochs": 5, "resolution_images": 0}
FIELDS = (
    *("seed", "accuracy", "inherited", "latency_ms", "depths", "cpu_minutes"),
    *("commit", "torch", "date"),
)


def search_row(seed: int, data: Path, run: Path, deadline: float) -> dict[str, Any] | None:
    """One search with its row of the table, or None if the deadline ended it."""
    config = yaml.safe_load((HERE / "recipe.yaml").read_text("utf-8"))
    del config["resolution_images"]
    continues = run.exists()
    used = search(config | {"schedule": SCHEDULE}, seed, data, run, deadline)
    if used is None:
        return None
    result = json.loads((run / "result.json").read_text("utf-8"))
    return {
        "seed": seed,
        "accuracy": f"{result['accuracy']:.4f}",
        "inherited": f"{result['inherited_accuracy']:.4f}",
        "latency_ms": f"{result['predicted_ms']:.3f}",
        "depths": depths_of(load_architecture(run / "architecture.json")),
        "cpu_minutes": "" if continues else cpu_minutes(used),
        "commit": source_commit(),
        "torch": torch.__version__,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }


def random_rows() -> list[dict[str, str]]:
    """The random networks in the comparison."""
    return [
        row
        for row in rows_of(TRUTH)
        if (row["epochs"], row["seed"]) == (str(EPOCHS), "0")
        and int(row["network"]) < NUM_FOR_LENGTH
    ]


def compare(rows: list[list[dict[str, str]]]) -> dict[str, Any]:
    """Searches against random networks."""
    ours, theirs = ([float(row["accuracy"]) for row in part] for part in rows)
    test = permutation_test(
        (ours, theirs), lambda x, y, axis: x.mean(axis) - y.mean(axis), alternative="greater"
    )
    minutes = [[float(row["cpu_minutes"]) for row in part if row["cpu_minutes"]] for part in rows]
    return {
        "searches": ours,
        "random": theirs,
        "difference": statistics.fmean(ours) - statistics.fmean(theirs),
        "p": float(test.pvalue),
        "cpu_minutes": [statistics.fmean(part) if part else None for part in minutes],
    }


def main() -> None:
    """Search with every seed that is missing, until it is done or the time is over."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with CIFAR-10's zips")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=120, help="time limit")
    parser.add_argument("--runs", type=Path, default=Path("runs/search_evidence"))
    args = parser.parse_args()
    deadline = time.monotonic() + 60 * args.minutes
    args.runs.mkdir(parents=True, exist_ok=True)
    finished = {int(row["seed"]) for row in rows_of(FOUND)}

    def work(seed: int) -> None:
        if seed in finished or time.monotonic() >= deadline:
            return
        run = args.runs / f"handed-over-seed{seed}"
        if row := search_row(seed, args.data, run, deadline):
            append_row(FOUND, FIELDS, row)
            print(row, flush=True)

    with ThreadPoolExecutor(args.processes) as pool:
        list(pool.map(work, SEEDS))
    rows = [rows_of(FOUND), random_rows()]
    if all(rows):
        print(json.dumps(comparison := compare(rows), indent=2))
        if [len(part) for part in rows] == [len(SEEDS), NUM_FOR_LENGTH]:
            write_json(RESULTS, comparison)


if __name__ == "__main__":
    main()
