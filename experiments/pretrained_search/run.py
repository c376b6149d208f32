"""Searches from scratch and from a network of other classes, compared; see README.md.

Networks of quadratic layers start from a trained network of the same kind, inverted bottlenecks
from a first-order network.
"""

import argparse
import csv
import json
import os
import resource
import statistics
import subprocess
import sys
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

import torch
import yaml

from quadranas.files import source_commit, write_json
from quadranas.space.architecture import Architecture
from quadranas.space.cost import count_macs
from quadranas.space.space_file import load_space

HERE = Path(__file__).parent
EVIDENCE = HERE.parent / "search_evidence"
FOUND, RESULTS = HERE / "results.csv", HERE / "results.json"
FIELDS = (
    *("variant", "seed", "accuracy", "inherited", "cpu_minutes", "macs", "depths"),
    *("commit", "torch", "date"),
)
NUM_IMAGES = {"source": None, "target": 400, "many": 4000}
"""Number of training images of each class: of the first five classes, and twice of the others."""


@dataclass(frozen=True)
class Family:
    """A search space with its table and budget, the median latency of random networks.

    Args:
        source: name of the run folder of its source.
        kind: the kind of operation of the source's blocks, if it is not that of the space.
    """

    space: Path
    table: Path
    budget: str
    source: str
    kind: str = ""


QUADRANET = Family(EVIDENCE / "space.yaml", EVIDENCE / "table.json", "5.683ms", "source")
MBCONV = Family(
    *(HERE / "quadratic_mbconv.yaml", HERE / "table.json", "2.176ms", "first-order"),
    kind="mbconv",
)


@dataclass(frozen=True)
class Variant:
    """A kind of search.

    Args:
        epochs: number of epochs of each of its phases.
        starts: whether it starts from the source.
        rate: learning rate of inherited weights as a share of that of new ones (`pretrained`).
    """

    family: Family
    epochs: int
    starts: bool = False
    rate: float = 0.1


ALL, THIRD, TENTH = 20, 7, 2
VARIANTS = {
    "scratch": Variant(QUADRANET, ALL),
    "pretrained": Variant(QUADRANET, ALL, starts=True),
    "pretrained-third": Variant(QUADRANET, THIRD, starts=True),
    "pretrained-tenth": Variant(QUADRANET, TENTH, starts=True),
    "scratch-tenth": Variant(QUADRANET, TENTH),
    "mbconv-scratch": Variant(MBCONV, ALL),
    "first-order": Variant(MBCONV, ALL, starts=True),
    "first-order-third": Variant(MBCONV, THIRD, starts=True),
    "first-order-tenth": Variant(MBCONV, TENTH, starts=True),
    "mbconv-scratch-tenth": Variant(MBCONV, TENTH),
    **{
        f"first-order{name}-rate{rate}": Variant(MBCONV, epochs, starts=True, rate=rate)
        for rate in (0.3, 1.0)
        for name, epochs in (("", ALL), ("-third", THIRD), ("-tenth", TENTH))
    },
}


@dataclass(frozen=True)
class Paths:
    """Where images and runs are."""

    runs: Path

    def source(self, family: Family) -> Path:
        """The run of a source."""
        return self.runs / family.source

    def images(self, part: str, split: str) -> Path:
        """A folder of images, by classes."""
        return self.runs / "images" / part / split


def unpack(data: Path, paths: Paths) -> None:
    """Write the images of source and target, one folder per class."""
    for split in ("train", "test"):
        with zipfile.ZipFile(data / f"cifar10-{split}.zip") as packed:
            members = [
                PurePosixPath(name) for name in sorted(packed.namelist()) if name[-1] != "/"
            ]
            classes = sorted({member.parent.name for member in members})
            for part, number in NUM_IMAGES.items():
                limit = number if split == "train" else None
                for name in classes[:5] if part == "source" else classes[5:]:
                    folder = paths.images(part, split) / name
                    folder.mkdir(parents=True, exist_ok=True)
                    for member in [one for one in members if one.parent.name == name][:limit]:
                        target = folder / member.name
                        if not target.exists():
                            target.write_bytes(packed.read(str(member)))


def quadranas(*arguments: object) -> dict[str, Any]:
    """Run a command in a process of its own, and return its result."""
    command = [sys.executable, "-m", "quadranas", *map(str, arguments), "--quiet", "--json"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 3):
        raise SystemExit(f"{' '.join(command)}\n{done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def images_of(paths: Paths, part: str) -> tuple[object, ...]:
    """The options for the images."""
    return ("--data", paths.images(part, "train"), "--val", paths.images(part, "test"))


def train_source(paths: Paths, family: Family, epochs: int) -> None:
    """Train the largest network of a space on the source's classes."""
    run = paths.source(family)
    if (run / "result.json").is_file():
        return
    largest = load_space(str(family.space)).with_num_classes(5).extreme(count_macs, largest=True)
    if family.kind:
        text = largest.model_dump_json().replace(f"quadratic_{family.kind}", family.kind)
        largest = Architecture.model_validate_json(text)
    architecture = paths.runs / f"{family.source}.json"
    largest.save(architecture)
    more = ("--epochs", epochs, "--seed", 0, "--config", HERE / "source.yaml")
    where = ("--output", run, "--resume")
    print(quadranas("train", architecture, *images_of(paths, "source"), *more, *where)["accuracy"])


def search(paths: Paths, variant: str, seed: int) -> dict[str, Any]:
    """One search, as a row of the table."""
    about = VARIANTS[variant]
    family = about.family
    content = yaml.safe_load((HERE / "search.yaml").read_text(encoding="utf-8"))
    phases = ("warmup_epochs", "search_epochs", "finetune_epochs")
    content["schedule"] = dict.fromkeys(phases, about.epochs) | {"resolution_images": 0}
    content["pretrained"] = {"rate": about.rate}
    config, output = paths.runs / f"{variant}.yaml", paths.runs / f"{variant}-seed{seed}"
    config.write_text(yaml.safe_dump(content), encoding="utf-8")
    before = used_minutes()
    result = quadranas(
        *("search", "--space", family.space, "--device", "cpu", "--budget", family.budget),
        *("--table", family.table, "--config", config, "--seed", seed),
        *images_of(paths, "target"),
        *(("--init", paths.source(family)) if about.starts else ()),
        *("--output", output, "--resume"),
    )
    depths = json.loads((output / "architecture.json").read_text(encoding="utf-8"))["blocks"]
    stages = [block["name"].split("_")[0] for block in depths if "entry" not in block["name"]]
    return {
        "variant": variant,
        "seed": seed,
        "accuracy": f"{result['accuracy']:.4f}",
        "inherited": f"{result['inherited_accuracy']:.4f}",
        "cpu_minutes": f"{used_minutes() - before:.1f}",
        "macs": result["macs"],
        "depths": "-".join(str(stages.count(stage)) for stage in dict.fromkeys(stages)),
        **provenance(),
    }


def provenance() -> dict[str, str]:
    """Where and when a row was made."""
    date = datetime.now(UTC).date().isoformat()
    return {"commit": source_commit(), "torch": torch.__version__, "date": date}


def used_minutes() -> float:
    """CPU time of the processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (used.ru_utime + used.ru_stime) / 60


def append(path: Path, fields: Sequence[str], row: Mapping[str, Any]) -> None:
    """Add a row to a table."""
    is_new = not path.exists()
    with path.open("a", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fields, lineterminator="\n")
        if is_new:
            writer.writeheader()
        writer.writerow(row)


def found_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a table; none if it is not there."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def summarise() -> None:
    """Write the means of every variant over its seeds."""
    rows, variants = found_rows(FOUND), {}
    for variant in VARIANTS:
        found = [row for row in rows if row["variant"] == variant]
        if found:
            means = {
                key: round(statistics.fmean(float(row[key]) for row in found), 4)
                for key in ("accuracy", "inherited", "cpu_minutes")
            }
            variants[variant] = {"seeds": len(found)} | means
    write_json(RESULTS, {"variants": variants})


def main() -> None:
    """Train the source, and do the searches that are missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with CIFAR-10's zips")
    parser.add_argument("--seeds", type=int, nargs="*", default=(0, 1, 2))
    parser.add_argument("--variants", nargs="*", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--runs", type=Path, default=Path("runs/pretrained_search"))
    args = parser.parse_args()
    paths = Paths(args.runs.absolute())
    unpack(args.data, paths)
    done = {(row["variant"], int(row["seed"])) for row in found_rows(FOUND)}
    planned = [(variant, seed) for seed in args.seeds for variant in args.variants]
    missing = [one for one in planned if one not in done]
    for family in (QUADRANET, MBCONV):
        if any(VARIANTS[variant].family == family for variant, _ in missing):
            train_source(paths, family, epochs=5)
    for variant, seed in missing:
        append(FOUND, FIELDS, row := search(paths, variant, seed))
        print(row, flush=True)
    summarise()


if __name__ == "__main__":
    main()
