"""Does a quadratic term add anything to fine-tuning, with enough images? See README.md."""

import argparse
import os
import statistics
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from run import HERE, MBCONV, Paths, append, found_rows, provenance, train_source, unpack

import quadranas
from quadranas.conversion import adapt, quadratic_parameters
from quadranas.data.augmentation import AugmentConfig, Augmenter
from quadranas.data.dataset import Dataset, load_dataset
from quadranas.data.task import evaluate
from quadranas.files import write_json
from quadranas.network.skeleton import Network
from quadranas.runs.config import PretrainedConfig, WeightConfig
from quadranas.training.network_phase import NetworkTraining
from quadranas.training.optimizers import decay_groups, optimizer_of

FOUND, RESULTS = HERE / "quadratic_term.csv", HERE / "quadratic_term.json"
FIELDS = (
    *("network", "seed", "accuracy", "on_training_images", "cpu_minutes"),
    *("commit", "torch", "date"),
)
EPOCHS, SEEDS = 10, (0, 1, 2)
DEPTHWISE = "blocks.stage*.mbconv.layers.3"
RATES = PretrainedConfig(rate=0.1)
"""Rates of inherited weights and of quadratic factors, and the warm-up of the latter."""


def networks(paths: Paths, num_classes: int) -> dict[str, Network]:
    """The first-order source with a new classifier, as it is and with quadratic terms of zero."""
    source = quadranas.open_run(paths.source(MBCONV)).network()
    source.reset_classifier(num_classes)
    quadratic = adapt(source, dilation=1, where=DEPTHWISE)
    return {"first order": source, "quadratic terms": quadratic}


def optimizer(network: Network, weights: WeightConfig) -> torch.optim.Optimizer:
    """An optimiser with a rate for inherited weights, for the classifier and for the terms."""
    terms = list(quadratic_parameters(network).values())
    head = list(network.blocks["head"].parameters())
    new = {id(parameter) for parameter in (*terms, *head)}
    inherited = [p for p in network.parameters() if id(p) not in new]
    groups = []
    for members, factor in ((inherited, RATES.rate), (head, 1.0), (terms, RATES.quadratic_rate)):
        found = decay_groups(members, weights.weight_decay)
        extra = {"lr_factor": factor, "is_term": members is terms}
        groups += [group | extra for group in found if group["params"]]
    return optimizer_of(groups, weights)


def trained(network: Network, dataset: Dataset, seed: int) -> dict[str, str]:
    """Train, with a warm-up of the terms; accuracies and CPU time."""
    augmenter = Augmenter.of(dataset, AugmentConfig(flip=True, crop_padding=4))
    training = NetworkTraining(
        *("train", network, dataset, augmenter, WeightConfig()),
        num_epochs=EPOCHS,
        batch_size=64,
        seed=seed,
        make_optimizer=optimizer,
    )
    warmup, start = round(RATES.quadratic_warmup * training.num_steps), time.process_time()
    for number in range(training.num_steps):
        for group in training.optimizer.param_groups:
            if group["is_term"]:
                risen = min(1.0, (number + 1) / (warmup + 1))
                group["lr_factor"] = RATES.quadratic_rate * risen
        training.step(number)
    minutes = (time.process_time() - start) / 60
    sample = dataset.train.subset(torch.arange(0, len(dataset.train), 4))
    return {
        "accuracy": f"{evaluate(network, dataset.test, augmenter):.4f}",
        "on_training_images": f"{evaluate(network, sample, augmenter):.4f}",
        "cpu_minutes": f"{minutes:.1f}",
    }


def compared(rows: list[dict[str, str]]) -> dict[str, Any]:
    """Means and standard deviations, and the differences of every seed that has both."""
    by_name: dict[str, dict[str, float]] = {}
    for row in rows:
        by_name.setdefault(row["network"], {})[row["seed"]] = float(row["accuracy"])
    plain, quadratic = by_name["first order"], by_name["quadratic terms"]
    found: dict[str, Any] = {
        name: {
            "mean": statistics.fmean(accuracies.values()),
            "std": statistics.stdev(accuracies.values()) if len(accuracies) > 1 else 0.0,
        }
        for name, accuracies in by_name.items()
    }
    both = sorted(plain.keys() & quadratic.keys())
    return found | {"differences": [round(quadratic[seed] - plain[seed], 4) for seed in both]}


def main() -> None:
    """Fine-tune both networks with every seed that is missing, and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with CIFAR-10's zips")
    parser.add_argument("--seeds", type=int, nargs="*", default=SEEDS)
    parser.add_argument("--runs", type=Path, default=Path("runs/pretrained_search"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    paths = Paths(args.runs.absolute())
    unpack(args.data, paths)
    train_source(paths, MBCONV, epochs=5)
    dataset = load_dataset(
        str(paths.images("many", "train")), val=str(paths.images("many", "test")), resolution=32
    )
    done = {(row["network"], row["seed"]) for row in found_rows(FOUND)}
    for seed in args.seeds:
        torch.manual_seed(seed)
        for name, network in networks(paths, dataset.num_classes).items():
            if (name, str(seed)) not in done:
                row = {"network": name, "seed": seed} | trained(network, dataset, seed)
                append(FOUND, FIELDS, row | provenance())
                print(row, flush=True)
    write_json(RESULTS, compared(found_rows(FOUND)))


if __name__ == "__main__":
    main()
