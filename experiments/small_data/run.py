"""Two recipes for a search on a thousand photos; see README.md."""

import argparse
import json
import os
import platform
import tempfile
import zipfile
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from itertools import product
from pathlib import Path, PurePosixPath
from statistics import fmean, stdev
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # there are as many processes as cores

import torch

from quadranas.commands.search import search
from quadranas.files import source_commit
from quadranas.runs.config import ScheduleConfig, SearchConfig, WeightConfig
from quadranas.runs.records import read_epochs

HERE = Path(__file__).parent
NUM_CLASSES, NUM_IMAGES, SEEDS = 6, 200, (1, 2, 3)
ARMS: dict[str, dict[str, Any]] = {
    "batch 64": {"batch_size": 64, "weights": WeightConfig(learning_rate=4e-3)},
    "defaults": {},
}


def main() -> None:
    """Search with every recipe and seed, and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("archive", type=Path, help="CIFAR-10's training images, one folder each")
    parser.add_argument("--smoke", action="store_true", help="few epochs, nothing kept")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    unpack(args.archive, folder / "photos")
    runs = list(product(ARMS, SEEDS[:1] if args.smoke else SEEDS))
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        found = list(
            pool.map(run, *zip(*runs, strict=True), [folder] * len(runs), [args.smoke] * len(runs))
        )
    by_arm = {arm: [one for one in found if one["arm"] == arm] for arm in ARMS}
    means = {arm: fmean(one["accuracy"] for one in ones) for arm, ones in by_arm.items()}
    results = {
        "runs": found,
        "mean_accuracy": means,
        "machine": f"{platform.machine()}, one thread per run",
        "torch": torch.__version__,
        "commit": source_commit(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }
    if not args.smoke:
        spread = {arm: stdev(one["accuracy"] for one in ones) for arm, ones in by_arm.items()}
        error = sum(value**2 / len(SEEDS) for value in spread.values()) ** 0.5
        results |= {"standard_error_of_difference": error}
        (HERE / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps(results, indent=2))


def unpack(archive: Path, folder: Path) -> None:
    """Write the first images of the last classes, one folder per class."""
    with zipfile.ZipFile(archive) as packed:
        members = [PurePosixPath(name) for name in sorted(packed.namelist()) if name[-1] != "/"]
        for name in sorted({member.parent.name for member in members})[-NUM_CLASSES:]:
            (folder / name).mkdir(parents=True)
            for member in [one for one in members if one.parent.name == name][:NUM_IMAGES]:
                (folder / name / member.name).write_bytes(packed.read(str(member)))


def run(arm: str, seed: int, folder: Path, smoke: bool) -> dict[str, Any]:
    """Search with one recipe and seed."""
    epochs = {"warmup_epochs": 1, "search_epochs": 1, "finetune_epochs": 1} if smoke else {}
    config = SearchConfig(
        device="vpu",
        budget="30ms",
        data=str(folder / "photos"),
        seed=seed,
        schedule=ScheduleConfig(resolution_images=0, **epochs),
        **ARMS[arm],
    )
    output = folder / f"{arm.replace(' ', '-')}-{seed}"
    result = search(config, output=output)
    searched = [e for e in read_epochs(output / "metrics.jsonl")[0] if e.phase == "search"]
    last = [e.gate_accuracy or 0.0 for e in searched[-max(1, len(searched) // 4) :]]
    return {
        "arm": arm,
        "seed": seed,
        "held_out": fmean(last),
        "accuracy": result.accuracy_as_trained,
        "warnings": result.warnings,
    }


if __name__ == "__main__":
    main()
