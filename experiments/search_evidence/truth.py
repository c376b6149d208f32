"""Random networks of equal latency, each trained from scratch alike: the ground truth of a search.

Work that is done is in `truth.csv` and is not repeated; an interrupted training continues where it
stopped, as long as its run folder is there. See README.md.
"""

import argparse
import csv
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from random import Random

import torch

from quadranas.files import source_commit
from quadranas.latency.table import LatencyTable
from quadranas.latency.table_files import load_table
from quadranas.space.architecture import Architecture
from quadranas.space.cost import count_macs, count_params
from quadranas.space.sampling import random_architectures
from quadranas.space.space_file import load_space

HERE = Path(__file__).parent
TRUTH = HERE / "truth.csv"
NUM_DRAWN = 4001
"""Number of random networks whose median latency is the budget."""

NARROW = (0.93, 1.0)
"""Latencies of the networks in the table, as fractions of the budget."""

LENGTHS, NUM_FOR_LENGTH = (3, 9, 27), 8
"""Epochs to compare, and the number of networks to compare them on."""

FIELDS = (
    *("network", "epochs", "seed", "accuracy", "latency_ms", "params", "macs", "depths"),
    *("mean_kernel", "mean_expansion", "cpu_minutes", "commit", "torch", "date"),
)


@dataclass(frozen=True)
class Job:
    """One training: the network's number, its length and its seed."""

    network: int
    epochs: int
    seed: int

    @property
    def name(self) -> str:
        """Name of its run folder."""
        return f"network{self.network:02d}-epochs{self.epochs}-seed{self.seed}"


def equal_networks(number: int) -> tuple[float, LatencyTable, list[Architecture]]:
    """The budget in milliseconds, the table, and the first random networks near the budget."""
    table = load_table(HERE / "table.json")
    drawn = random_architectures(load_space(HERE / "space.yaml"), NUM_DRAWN, "evidence")
    latencies = [table.predict_ms(one) for one in drawn]
    budget_ms = statistics.median(latencies)
    low, high = (bound * budget_ms for bound in NARROW)
    near = [one for one, ms in zip(drawn, latencies, strict=True) if low <= ms <= high]
    Random(0).shuffle(near)  # they are drawn from small to large
    return budget_ms, table, near[:number]


def jobs(length: int | None, number: int, seeds: Sequence[int]) -> Iterator[Job]:
    """The trainings in their order; without a length, those that find it."""
    if length is None:
        for epochs in LENGTHS:
            for network in range(NUM_FOR_LENGTH):
                yield Job(network, epochs, 0)
        return
    for network in range(number):
        yield Job(network, length, 0)
    for seed in seeds:
        for network in range(NUM_FOR_LENGTH):
            yield Job(network, length, seed)


def done() -> set[Job]:
    """The trainings in the table."""
    keys = ("network", "epochs", "seed")
    return {Job(*(int(row[key]) for key in keys)) for row in rows_of(TRUTH)}


def run_until(deadline: float, command: Sequence[str]) -> resource.struct_rusage | None:
    """Run a command with one thread; returns what it used, or None if the deadline ended it."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    while True:
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            break
        if time.monotonic() >= deadline:
            process.terminate()
            process.wait()
            return None
        time.sleep(1)
    if code := os.waitstatus_to_exitcode(status):
        raise SystemExit(f"{' '.join(command)} ended with code {code}")
    return usage


def cpu_minutes(usage: resource.struct_rusage) -> str:
    """As it stands in a table."""
    return f"{(usage.ru_utime + usage.ru_stime) / 60:.1f}"


def train(
    job: Job, architecture: Path, data: Path, runs: Path, deadline: float
) -> tuple[float, str] | None:
    """Train until the end or the deadline; returns test accuracy and CPU minutes at the end.

    The CPU minutes are empty if the training continued one that was interrupted.
    """
    run = runs / job.name
    continues = run.exists()
    command = [
        *(sys.executable, "-m", "quadranas", "train", str(architecture), "--resume", "--quiet"),
        *("--data", str(data / "cifar10-train.zip"), "--val", str(data / "cifar10-test.zip")),
        *("--config", str(HERE / "recipe.yaml"), "--epochs", str(job.epochs)),
        *("--seed", str(job.seed), "--output", str(run)),
    ]
    usage = run_until(deadline, command)
    if usage is None:
        return None
    accuracy = json.loads((run / "result.json").read_text("utf-8"))["accuracy"]
    return float(accuracy), "" if continues else cpu_minutes(usage)


def row_of(
    job: Job, architecture: Architecture, table: LatencyTable, accuracy: float, minutes: str
) -> dict[str, object]:
    """One line of the table."""
    ops = list(architecture.ops())
    kernels = [op.kernel_size for op in ops if op.kind == "quadratic_depthwise"]
    expansions = [op.expand_ratio for op in ops if op.kind == "feed_forward"]
    return {
        "network": job.network,
        "epochs": job.epochs,
        "seed": job.seed,
        "accuracy": f"{accuracy:.4f}",
        "latency_ms": f"{table.predict_ms(architecture):.3f}",
        "params": count_params(architecture),
        "macs": count_macs(architecture),
        "depths": depths_of(architecture),
        "mean_kernel": f"{statistics.fmean(kernels):.2f}",
        "mean_expansion": f"{statistics.fmean(expansions):.2f}",
        "cpu_minutes": minutes,
        "commit": source_commit(),
        "torch": torch.__version__,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }


def depths_of(architecture: Architecture) -> str:
    """The number of blocks of every stage, such as `4-3-3-4`."""
    blocks = (op for op in architecture.ops() if op.kind == "quadratic_depthwise")
    stages = Counter(op.resolution for op in blocks)
    return "-".join(str(stages[resolution]) for resolution in sorted(stages, reverse=True))


def rows_of(path: Path) -> list[dict[str, str]]:
    """The lines of a table; none if it is not there."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def append_row(path: Path, fields: Sequence[str], row: Mapping[str, object]) -> None:
    """Add a line to a table, which is made if it is not there."""
    is_new = not path.is_file()
    with path.open("a", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fields, lineterminator="\n")
        if is_new:
            writer.writeheader()
        writer.writerow(row)


def main() -> None:
    """Train what is missing, until it is done or the time is over."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with CIFAR-10's zips")
    parser.add_argument("--length", type=int, help="epochs; default: find the length first")
    parser.add_argument("--networks", type=int, default=32)
    parser.add_argument("--seeds", type=int, nargs="*", default=(1, 2), help="more seeds")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=120, help="time limit")
    parser.add_argument("--runs", type=Path, default=Path("runs/search_evidence"))
    args = parser.parse_args()
    deadline = time.monotonic() + 60 * args.minutes
    budget_ms, table, networks = equal_networks(max(args.networks, NUM_FOR_LENGTH))
    print(f"budget {budget_ms:.3f} ms, {len(networks)} networks", flush=True)
    args.runs.mkdir(parents=True, exist_ok=True)
    finished = done()

    def work(job: Job) -> None:
        if job in finished or time.monotonic() >= deadline:
            return
        path = args.runs / f"network{job.network:02d}.json"
        networks[job.network].save(path)
        trained = train(job, path, args.data, args.runs, deadline)
        if trained is None:
            return
        row = row_of(job, networks[job.network], table, *trained)
        append_row(TRUTH, FIELDS, row)
        print(job.name, row["accuracy"], flush=True)

    with ThreadPoolExecutor(args.processes) as pool:
        list(pool.map(work, jobs(args.length, args.networks, args.seeds)))


if __name__ == "__main__":
    main()
