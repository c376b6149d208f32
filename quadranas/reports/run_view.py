"""A run folder as a report shows it: each file is read alone and checked against the others.

Files that are absent or broken are noted here, so later code need not check them again.
"""

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from quadranas.errors import BudgetError, QuadranasError
from quadranas.files import read_json, read_text, refuse_links
from quadranas.inspection.records import StepRecord, read_records
from quadranas.latency.budget import parse_budget
from quadranas.latency.device import load_device
from quadranas.latency.table import LatencyTable
from quadranas.latency.table_files import check_conditions, load_table
from quadranas.runs import layout
from quadranas.runs.config_file import read_config_file
from quadranas.runs.fronts import Fronts, load_fronts
from quadranas.runs.pretrained_record import PretrainedNote, load_pretrained_record
from quadranas.runs.records import Epoch, read_epochs
from quadranas.runs.results import DeriveResult, Result, SearchResult, read_result
from quadranas.space.architecture import Architecture, load_architecture
from quadranas.space.operation import DEPTHWISE, EXPANDING, OpSpec
from quadranas.space.search_space import SearchSpace
from quadranas.space.space_file import load_whole_space
from quadranas.strategies.scores import GateScores, load_scores

RUN_FILES = (
    layout.CONFIG,
    layout.METRICS,
    layout.ARCHITECTURE,
    layout.GATES,
    layout.TABLE,
    layout.SPACE,
    layout.RESULT,
)
SEARCHED = {*DEPTHWISE, *EXPANDING, "own_block"}
TIMES = "\N{MULTIPLICATION SIGN}"
Content = TypeVar("Content")


@dataclass(frozen=True, kw_only=True)
class BlockView:
    """A block as the report shows it.

    Args:
        ops: the chosen operations; for a skipped block, the first candidate of each slot.
        ms: latency per operation; None for a skipped block, or without a table.
    """

    name: str
    stage: str
    ops: tuple[OpSpec, ...]
    skipped: bool = False
    ms: tuple[float, ...] | None = None

    @property
    def is_searched(self) -> bool:
        """Whether the search decides about it; stem, downsampling and head are fixed."""
        return any(op.kind in SEARCHED for op in self.ops)

    @property
    def kernel_size(self) -> int:
        """The largest kernel among its operations."""
        return max(op.kernel_size for op in self.ops)

    @property
    def expand_ratio(self) -> float | None:
        """The expansion ratio of its feed-forward part or inverted bottleneck, or None."""
        return next((op.expand_ratio for op in self.ops if op.kind in EXPANDING), None)


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run folder as read; None stands for a file that is absent or unusable.

    Args:
        config_text: the text of `config.yaml`, even if it is not valid YAML.
        dropped_lines: number of lines of `metrics.jsonl` that are not records.
        pretrained: how a search used the network that it started from.
        faults: per file, why its content is not shown.
    """

    config: dict[str, Any]
    config_text: str | None
    epochs: tuple[Epoch, ...]
    dropped_lines: int
    architecture: Architecture | None
    table: LatencyTable | None
    space: SearchSpace | None
    scores: GateScores | None
    result: Result | None
    class_names: tuple[str, ...]
    records: tuple[StepRecord, ...]
    pretrained: PretrainedNote | None
    fronts: Fronts | None
    faults: dict[str, str]

    @property
    def derived(self) -> DeriveResult | None:
        """The result, if the run chose its network for a budget; None for `quadranas train`."""
        return self.result if isinstance(self.result, DeriveResult) else None

    @property
    def device(self) -> str | None:
        """The name of the device; None for a network that was not found for one."""
        derived = self.derived.device if self.derived else None
        table = self.table.header.device if self.table else None
        name = derived or table or self._origin("device") or self.config.get("device")
        return str(name) if name else None

    @property
    def is_training(self) -> bool:
        """Whether it is a run of `quadranas train`, which searches nothing."""
        trained = self.result is not None and not isinstance(self.result, DeriveResult)
        return trained or any(epoch.phase == "train" for epoch in self.epochs)

    def _origin(self, key: str) -> Any:
        """A value that the architecture records about the derivation of the network."""
        return None if self.architecture is None else self.architecture.provenance.get(key)

    @property
    def num_classes(self) -> int | None:
        """The number of classes of the images."""
        if self.architecture is not None:
            return self.architecture.num_classes
        return len(self.class_names) or None

    @property
    def chance(self) -> float | None:
        """The accuracy of always naming the most frequent class; None if it is not recorded."""
        return None if self.result is None else self.result.chance

    @property
    def name(self) -> str:
        """The name of the search space; without one, of the network."""
        space = self.space.name if self.space else self.config.get("space")
        return str(space or (self.architecture.name if self.architecture else "a network"))

    @property
    def budget_ms(self) -> float | None:
        """From the result, the configuration, the derivation, or the last epoch."""
        if self.derived is not None:
            return self.derived.budget_ms
        with suppress(KeyError, BudgetError):
            return parse_budget(str(self.config["budget"]))
        origin = self._origin("budget_ms")
        if isinstance(origin, int | float) and origin > 0:
            return float(origin)
        return next((e.budget_ms for e in reversed(self.epochs) if e.budget_ms), None)

    @property
    def seed(self) -> Any:
        """The random seed; None if it is not recorded."""
        searched = self.result.seed if isinstance(self.result, SearchResult) else None
        return self.config.get("seed", searched)

    @property
    def confidence(self) -> float | None:
        """The probability with which the budget is kept; None if none was asked for."""
        derived = self.derived.confidence if self.derived else None
        found = derived or self.config.get("confidence") or self._origin("confidence")
        return float(found) if isinstance(found, int | float) and 0.5 <= found < 1 else None

    @property
    def predicted_ms(self) -> float | None:
        """The prediction of the table; without one, the value in the result."""
        if self.architecture is not None and self.table is not None:
            return self.table.predict_ms(self.architecture)
        return self.derived.predicted_ms if self.derived else None

    @property
    def source(self) -> str:
        """The source of the latencies, in a few words."""
        if self.table is None:
            return f"unknown ({self.faults[layout.TABLE]})"
        header = self.table.header
        return f"{self.method} ({header.title}, {header.runtime}, {header.precision})"

    @property
    def method(self) -> str:
        """How the table was made, in words that do not call a prediction a measurement."""
        method = self.table.header.method if self.table else ""
        return "from a measured table" if method == "measured" else method

    @cached_property
    def blocks(self) -> tuple[BlockView, ...]:
        """The blocks of the network and, if the space is known, those it skips."""
        if self.architecture is None:
            return ()
        kept = {block.name: block.ops for block in self.architecture.blocks}
        places = [(name, name.partition("_block")[0], ops) for name, ops in kept.items()]
        if self.space is not None:
            places = [
                (block.name, block.stage, tuple(slot.candidates[0] for slot in block.slots))
                for block in self.space.blocks
            ]
        views = []
        for name, stage, candidates in places:
            ops, skipped = kept.get(name, candidates), name not in kept
            ms = None
            if self.table is not None and not skipped:
                ms = tuple(self.table.op_ms(op) for op in ops)
            views.append(BlockView(name=name, stage=stage, ops=ops, skipped=skipped, ms=ms))
        return tuple(views)

    @property
    def chosen(self) -> tuple[float, float] | None:
        """Predicted latency in milliseconds and accuracy with the supernet's weights.

        None without a network that was chosen by its accuracy.
        """
        accuracy = self.derived.inherited_accuracy if self.derived else None
        if accuracy is None or self.predicted_ms is None:
            return None
        return self.predicted_ms, accuracy


def op_label(op: OpSpec, *, kernel: bool = True, expansion: bool = True) -> list[str]:
    """The choices made in an operation, one short text each."""
    size = f"{op.kernel_size}{TIMES}{op.kernel_size}"
    sizes = [size] if kernel and op.kind != "feed_forward" else []
    return sizes + ([f"e{op.expand_ratio:g}"] if expansion and op.kind in EXPANDING else [])


def fixed_ms(latency_ms: float, total_ms: float) -> str:
    """A part of a sum, with enough decimals to show 0.1 % of the sum."""
    decimals = 4 - math.ceil(math.log10(total_ms)) if total_ms > 0 else 3
    return f"{latency_ms:.{max(decimals, 0)}f}"


def read_run(run: Path) -> Run:
    """Read a run folder; `Run.faults` lists the files that are missing or unusable.

    Raises:
        QuadranasError: a link leads out of the folder.
    """
    if run.is_dir():
        refuse_links(run)
    faults: dict[str, str] = {}

    def read(name: str, load: Callable[[Path], Content]) -> Content | None:
        if not (run / name).exists():
            faults[name] = f"there is no {name}"
            return None
        try:
            return load(run / name)
        except QuadranasError as error:
            faults[name] = error.message.replace(f"{run}/", "").splitlines()[0]
            return None

    architecture = read(layout.ARCHITECTURE, load_architecture)
    space = read(layout.SPACE, lambda path: _load_space(path, architecture))
    epochs, dropped_lines = read(layout.METRICS, read_epochs) or ((), 0)
    records: tuple[StepRecord, ...] = ()
    if (run / layout.RECORDS).exists():  # without an inspection there is nothing amiss
        records = read(layout.RECORDS, lambda path: read_records(run)) or ()
    pretrained: PretrainedNote | None = None
    if (run / layout.PRETRAINED).exists():
        pretrained = read(layout.PRETRAINED, load_pretrained_record)
    class_names: tuple[str, ...] = ()
    if (run / layout.PREPROCESSING).exists():  # only an unfinished search needs it
        class_names = read(layout.PREPROCESSING, _class_names) or ()
    return Run(
        config_text=read(layout.CONFIG, lambda path: read_text(path, "configuration")),
        config=read(layout.CONFIG, lambda path: read_config_file(path).keys) or {},
        epochs=epochs,
        dropped_lines=dropped_lines,
        architecture=architecture,
        table=read(layout.TABLE, lambda path: _load_table(path, architecture, space)),
        space=space,
        scores=read(layout.GATES, lambda path: _load_scores(path, space)),
        result=read(layout.RESULT, lambda path: read_result(run)),
        class_names=class_names,
        records=records,
        pretrained=pretrained,
        fronts=read(layout.PARETO, load_fronts),
        faults=faults,
    )


def _load_space(path: Path, architecture: Architecture | None) -> SearchSpace:
    """The space with the architecture's number of classes; it must contain the architecture."""
    space = load_whole_space(path)
    if architecture is not None:
        space = space.with_num_classes(architecture.num_classes)
        space.choices_of(architecture)
    return space


def _load_table(
    path: Path, architecture: Architecture | None, space: SearchSpace | None
) -> LatencyTable:
    """Load the table, and check that it covers the network and the space.

    A table covers no replaced layers. It must also have the conditions of the device that is
    stored beside it, if there is one.
    """
    table = load_table(path)
    device = path.with_name(layout.DEVICE)
    if device.is_file():
        check_conditions(table.header, load_device(device), path)
    if architecture is not None and architecture.changes:
        raise QuadranasError(f"{path} does not cover the replaced layers of the network")
    table.require(architecture.ops() if architecture else ())
    table.require(space.specs() if space else ())
    return table


def _load_scores(path: Path, space: SearchSpace | None) -> GateScores:
    """Load the gate scores, and check that they fit the space."""
    if space is None:
        raise QuadranasError(f"{path} cannot be interpreted without {layout.SPACE}")
    return load_scores(path, space)


def _class_names(path: Path) -> tuple[str, ...]:
    names = read_json(path, "preprocessing").get("class_names")
    return tuple(map(str, names)) if isinstance(names, list) else ()
