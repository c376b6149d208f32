"""What exploring costs besides judging: Optuna's trials, a shared journal, judging sub-networks.

The judge is a function of the choices, so that everything measured is overhead; with two
processes, it takes a fixed time of waiting.
"""

import argparse
import json
import multiprocessing
import platform
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from quadranas.acceleration.engine import Engine
from quadranas.data.augmentation import AugmentConfig, Augmenter
from quadranas.data.dataset import load_dataset
from quadranas.files import source_commit
from quadranas.latency.table_files import load_table
from quadranas.space.search_space import Choices
from quadranas.space.space_file import load_space
from quadranas.strategies.derivation import decode_candidates
from quadranas.strategies.interface import Problem
from quadranas.strategies.limits import Limits
from quadranas.strategies.registry import load_strategy
from quadranas.strategies.studies import InStorage
from quadranas.supernet.evaluation import SubnetEvaluator
from quadranas.supernet.supernet import build_supernet

EVIDENCE = Path(__file__).parents[1] / "search_evidence"
BUDGET_MS, CANDIDATES, JUDGE_S = 5.683, 32, 0.25


def judged(choices: Choices) -> float:
    """Larger candidates are better."""
    return sum(sum(choice) for choice in choices.values() if choice) / 1000


def judged_slowly(choices: Choices) -> float:
    """The same, as slowly as with a supernet."""
    time.sleep(JUDGE_S)
    return judged(choices)


def problem(judge: Any) -> Problem:
    """The space of experiments/search_evidence with its table and budget."""
    space, table = load_space(EVIDENCE / "space.yaml"), load_table(EVIDENCE / "table.json")
    return Problem(space=space, table=table, limits=Limits(budget_ms=BUDGET_MS), judge=judge)


def overhead_s(trials: int) -> float:
    """Wall time of trials of TPE whose judge takes none."""
    start = time.perf_counter()
    load_strategy("tpe")().explore(
        problem(judged), trials=trials, seed=0, report=lambda trial: None
    )
    return time.perf_counter() - start


def explore(storage: str, trials: int) -> None:
    """What one explorer does."""
    InStorage("tpe", storage).explore(
        problem(judged_slowly), trials=trials, seed=0, report=lambda trial: None
    )


def shared_s(processes: int, trials: int) -> float:
    """Wall time of explorers that share a journal, from the moment when they are ready."""
    with (
        tempfile.TemporaryDirectory() as folder,
        multiprocessing.get_context("spawn").Pool(processes) as pool,
    ):
        pool.map(abs, range(10 * processes))
        start = time.perf_counter()
        pool.starmap(explore, [(f"{folder}/journal", trials)] * processes, chunksize=1)
        return time.perf_counter() - start


def judging_s(images: int) -> float:
    """Wall time of decoding sub-networks of the small space, and judging them, on one core."""
    torch.set_num_threads(1)
    space, table = load_space(EVIDENCE / "space.yaml"), load_table(EVIDENCE / "table.json")
    dataset = load_dataset(None, resolution=space.resolution)
    supernet = build_supernet(space, seed=0, nested=True)
    count = torch.arange(images) % len(dataset.train)
    evaluator = SubnetEvaluator(
        *(supernet, dataset.train, Augmenter.of(dataset, AugmentConfig()), Engine()),
        held_out=count,
        trained_on=torch.arange(len(dataset.train)),
    )
    evaluator.held_out = count
    start = time.perf_counter()
    scores = supernet.gates.scores(space)
    limits = Limits(budget_ms=BUDGET_MS)
    networks = decode_candidates(space, scores, table, limits, CANDIDATES)
    evaluator.accuracies([network.choices for network in networks])
    return time.perf_counter() - start


def main() -> None:
    """Measure, print, and save if asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, help="folder for strategies.json")
    parser.add_argument("--smoke", action="store_true", help="a few trials and images")
    args = parser.parse_args()
    trials, shared, images = (20, 8, 64) if args.smoke else (1000, 160, 4000)
    alone_s, together_s = shared_s(1, shared), shared_s(2, shared)
    results = {
        "tpe_trials": trials,
        "tpe_overhead_s": round(overhead_s(trials), 2),
        "shared_trials": shared,
        "two_explorers_speedup": round(alone_s / together_s, 2),
        "judged_networks": CANDIDATES,
        "judged_images": images,
        "judging_s": round(judging_s(images), 1),
        "processor": platform.processor() or platform.machine(),
        "commit": source_commit(),
        "torch": torch.__version__,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }
    print(json.dumps(results, indent=2))
    if args.output:
        text = json.dumps(results, indent=2) + "\n"
        (args.output / "strategies.json").write_text(text, "utf-8")


if __name__ == "__main__":
    main()
