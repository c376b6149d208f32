"""The search problem: space, budget, table and data, checked before any training."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quadranas.data.augmentation import Augmenter
from quadranas.data.dataset import Dataset
from quadranas.errors import QuadranasError
from quadranas.latency.budget import parse_budget
from quadranas.latency.contract import DEFAULT_TOLERANCE, Contract
from quadranas.latency.device import Device, load_device
from quadranas.latency.table import build_command
from quadranas.latency.table_files import PricedTable, find_priced
from quadranas.reporter import Reporter
from quadranas.runs.config import (
    DEFAULT_SPACE,
    SearchConfig,
    count_classes,
    open_data,
    resolve_config,
)
from quadranas.space.search_space import SearchSpace
from quadranas.space.space_file import SpaceFile, build_space, load_space_file
from quadranas.strategies.derivation import check_limits, decoding_limits
from quadranas.strategies.limits import Limits, feasibility
from quadranas.validation import validate_partial


@dataclass(frozen=True)
class SearchSetup:
    """What is searched, for what, on what: everything known before training."""

    config: SearchConfig
    space_file: SpaceFile
    space: SearchSpace
    priced: PricedTable
    contract: Contract
    limits: Limits
    device: Device
    dataset: Dataset

    @property
    def budget_ms(self) -> float:
        """The budget for predictions, in milliseconds."""
        return self.limits.budget_ms

    def augmenter(self) -> Augmenter:
        """The configured augmentation for the data's classes and colours."""
        data = self.dataset
        return Augmenter(
            self.config.augment, num_classes=data.num_classes, mean=data.mean, std=data.std
        )


def prepare_search(
    overrides: dict[str, Any],
    reporter: Reporter,
    source: str | Path,
    copies: Path | None = None,
) -> SearchSetup:
    """Check everything that can be checked before training, cheapest first.

    Args:
        overrides: what is given of a `SearchConfig`; `source` names where, for messages.
        copies: the folder of a run that is continued: its own space and table count, also where
            the originals have changed since.
    """
    validate_partial(SearchConfig, overrides, source)
    for key in ("device", "budget"):
        if key not in overrides:
            raise QuadranasError(f"no {key} is given", f"Name one with --{key}.")
    budget_ms = parse_budget(str(overrides["budget"]))
    device = load_device(overrides["device"])
    named = overrides.get("space", DEFAULT_SPACE)
    space_file = load_space_file(str(_copy(copies, "space.yaml") or named))
    space = build_space(space_file).with_num_classes(count_classes(overrides))
    table_file = _copy(copies, "table.json") or overrides.get("table")
    priced = find_priced(
        space,
        device.name,
        Path(table_file) if table_file else None,
        command=build_command(named, overrides["device"]),
    )
    contract = Contract(
        budget_ms=budget_ms,
        confidence=overrides.get("confidence"),
        tolerance=overrides.get("tolerance", DEFAULT_TOLERANCE),
    )
    reporter.message(feasibility(space, priced, contract))
    limits = decoding_limits(
        contract,
        priced.table,
        max_params=overrides.get("max_params"),
        max_macs=overrides.get("max_macs"),
    )
    check_limits(space, priced.table, limits)
    if "train_resolution" in overrides:
        _check_train_resolution(space, overrides["train_resolution"])
    dataset = open_data(overrides, space.resolution, source)
    _check_train_resolution(space, dataset.resolution)
    skipped = f", {dataset.num_skipped} corrupt images skipped" if dataset.num_skipped else ""
    reporter.message(
        f"data {dataset.name}: {len(dataset.train)} training and {len(dataset.test)} test images, "
        f"{dataset.num_classes} classes, at {dataset.resolution} pixels{skipped}"
    )
    config = resolve_config(SearchConfig, overrides, dataset, source)
    return SearchSetup(config, space_file, space, priced, contract, limits, device, dataset)


def _copy(folder: Path | None, name: str) -> Path | None:
    """A file of a run folder, if there is one."""
    return folder / name if folder is not None and (folder / name).is_file() else None


def _check_train_resolution(space: SearchSpace, resolution: int) -> None:
    """Refuse a training resolution that the space's strides do not divide."""
    space.extreme(lambda spec: spec.in_channels, largest=False).adapted(resolution=resolution)
