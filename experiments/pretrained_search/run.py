"""Searches from scratch and from a network of other classes, compared; see README.md."""

import argparse
import csv
import json
import os
import resource
import statistics
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

import torch
import yaml

from quadranas.files import source_commit, write_json
from quadranas.space.cost import count_macs
from quadranas.space.space_file import load_space

HERE = Path(__file__).parent
EVIDENCE = HERE.parent / "search_evidence"
FOUND, RESULTS = HERE / "results.csv", HERE / "results.json"
FIELDS = (
    *("variant", "seed", "accuracy", "inherited", "cpu_minutes", "macs", "depths"),
    *("commit", "torch", "date"),
)
NUM_IMAGES = 400
"""Number of training images of each target class."""

BUDGET = "5.683ms"
VARIANTS = {
    "scratch": (False, 20),
    "pretrained": (True, 20),
    "pretrained-third": (True, 7),
    "pretrained-tenth": (True, 2),
    "scratch-tenth": (False, 2),
}
"""Whether the search starts from the source, and the epochs of each of its phases."""


@dataclass(frozen=True)
class Paths:
    """Where images and runs are."""

    runs: Path

    @property
    def source(self) -> Path:
        """The run of the source."""
        return self.runs / "source"

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
            for part, names in (("source", classes[:5]), ("target", classes[5:])):
                limit = NUM_IMAGES if (part, split) == ("target", "train") else None
                for name in names:
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


def train_source(paths: Paths, epochs: int) -> None:
    """Train the largest network of the space on the source's classes."""
    if (paths.source / "result.json").is_file():
        return
    space = load_space(str(EVIDENCE / "space.yaml")).with_num_classes(5)
    architecture = paths.runs / "largest.json"
    space.extreme(count_macs, largest=True).save(architecture)
    more = ("--epochs", epochs, "--seed", 0, "--config", HERE / "source.yaml")
    where = ("--output", paths.source, "--resume")
    print(quadranas("train", architecture, *images_of(paths, "source"), *more, *where)["accuracy"])


def search(paths: Paths, variant: str, seed: int) -> dict[str, Any]:
    """One search, as a row of the table."""
    starts, epochs = VARIANTS[variant]
    content = yaml.safe_load((HERE / "search.yaml").read_text(encoding="utf-8"))
    phases = ("warmup_epochs", "search_epochs", "finetune_epochs")
    content["schedule"] = dict.fromkeys(phases, epochs) | {"resolution_images": 0}
    config, output = paths.runs / f"{variant}.yaml", paths.runs / f"{variant}-seed{seed}"
    config.write_text(yaml.safe_dump(content), encoding="utf-8")
    before = used_minutes()
    result = quadranas(
        *("search", "--space", EVIDENCE / "space.yaml", "--device", "cpu", "--budget", BUDGET),
        *("--table", EVIDENCE / "table.json", "--config", config, "--seed", seed),
        *images_of(paths, "target"),
        *(("--init", paths.source) if starts else ()),
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
        "commit": source_commit(),
        "torch": torch.__version__,
        "date": datetime.now(UTC).date().isoformat(),
    }


def used_minutes() -> float:
    """CPU time of the processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (used.ru_utime + used.ru_stime) / 60


def append(row: dict[str, Any]) -> None:
    """Add a row to the table."""
    is_new = not FOUND.exists()
    with FOUND.open("a", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        if is_new:
            writer.writeheader()
        writer.writerow(row)


def found_rows() -> list[dict[str, str]]:
    """The rows of the table; none if it is not there."""
    if not FOUND.exists():
        return []
    with FOUND.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def summarise() -> None:
    """Write the means of every variant over its seeds."""
    rows, variants = found_rows(), {}
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
    parser.add_argument("--runs", type=Path, default=Path("runs/pretrained_search"))
    args = parser.parse_args()
    paths = Paths(args.runs.absolute())
    unpack(args.data, paths)
    train_source(paths, epochs=5)
    done = {(row["variant"], int(row["seed"])) for row in found_rows()}
    for seed in args.seeds:
        for variant in VARIANTS:
            if (variant, seed) not in done:
                append(row := search(paths, variant, seed))
                print(row, flush=True)
    summarise()


if __name__ == "__main__":
    main()
