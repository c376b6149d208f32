"""The search problem: space, budget, table and data, checked before any training."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quadranas.augment import Augmenter
from quadranas.config import DEFAULT_SPACE, SearchConfig, open_data, resolve_config
from quadranas.data import Dataset
from quadranas.decode import Limits, check_budget
from quadranas.derivation import PricedTable
from quadranas.errors import QuadranasError
from quadranas.latency.budget import parse_budget
from quadranas.latency.device import load_device
from quadranas.latency.table import find_table, locate_table
from quadranas.reporter import Reporter
from quadranas.space import SearchSpace, SpaceFile, build_space, load_space_file


@dataclass(frozen=True)
class Problem:
    """What is searched, for what, on what: everything known before training."""

    config: SearchConfig
    space_file: SpaceFile
    space: SearchSpace
    priced: PricedTable
    budget_ms: float
    dataset: Dataset

    @property
    def limits(self) -> Limits:
        """The bounds on the derived network."""
        return Limits(
            budget_ms=self.budget_ms,
            max_params=self.config.max_params,
            max_macs=self.config.max_macs,
        )

    def augmenter(self) -> Augmenter:
        """The configured augmentation for the data's classes and colours."""
        data = self.dataset
        return Augmenter(
            self.config.augment, num_classes=data.num_classes, mean=data.mean, std=data.std
        )


def pose_problem(overrides: dict[str, Any], reporter: Reporter, source: str | Path) -> Problem:
    """Check everything that can be checked before training, cheapest first."""
    for key in ("device", "budget"):
        if key not in overrides:
            raise QuadranasError(f"no {key} is given", f"Name one with --{key}.")
    budget_ms = parse_budget(str(overrides["budget"]))
    device = load_device(str(overrides["device"]))
    space_file = load_space_file(str(overrides.get("space", DEFAULT_SPACE)))
    space = build_space(space_file)
    table_path = Path(overrides["table"]) if overrides.get("table") else None
    path = locate_table(space.name, device.name, table_path)
    priced = PricedTable(path, find_table(space, device.name, path))
    reporter.message(priced.feasibility(space, budget_ms))
    check_budget(space, priced.table, budget_ms)
    dataset = open_data(overrides, space.resolution, source)
    _check_train_resolution(space, dataset.resolution)
    skipped = f", {dataset.num_skipped} corrupt images skipped" if dataset.num_skipped else ""
    reporter.message(
        f"data {dataset.name}: {len(dataset.train)} training and {len(dataset.test)} test images, "
        f"{dataset.num_classes} classes, at {dataset.resolution} pixels{skipped}"
    )
    config = resolve_config(SearchConfig, overrides, dataset, source)
    space = space.with_num_classes(dataset.num_classes)
    priced.table.require(space.specs())
    return Problem(config, space_file, space, priced, budget_ms, dataset)


def _check_train_resolution(space: SearchSpace, resolution: int) -> None:
    """Refuse a training resolution that the space's strides do not divide."""
    space.extreme(lambda spec: spec.in_channels, largest=False).adapted(resolution=resolution)
