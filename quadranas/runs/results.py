"""The results of search, derive and train: values that commands return and store on disk."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeAlias, TypeVar

from pydantic import Field, FiniteFloat

from quadranas.errors import QuadranasError
from quadranas.files import read_json
from quadranas.latency.contract import missed_budget
from quadranas.latency.goal import Goal
from quadranas.runs import layout
from quadranas.runs.config_file import recorded_command
from quadranas.runs.next_command import resume_command, train_command
from quadranas.runs.pretrained_record import PretrainedNote
from quadranas.runs.run_device import further_folder
from quadranas.space.architecture import Architecture
from quadranas.space.cost import count_macs, count_params
from quadranas.space.footprint import peak_bytes, weight_bytes
from quadranas.validation import CommandResult, Frozen, validate

if TYPE_CHECKING:
    from quadranas.commands.export import ExportResult
    from quadranas.commands.report import ReportResult
    from quadranas.latency.device import Device
    from quadranas.measurement.summary import Timing
    from quadranas.network.skeleton import Network


class TableNote(Frozen):
    """The latency table that a network was chosen with.

    Args:
        path: the copy in the run folder.
        method: `analytic` or `measured`.
        summary: the source of the table's numbers, in one line.
    """

    path: Path
    method: str
    summary: str


class StoredResult(CommandResult):
    """The result of a command that leaves a run folder with a network.

    Args:
        run: the folder.
        architecture: the architecture file in it.
        notes: what has changed in the run since it was begun, such as images that were left out.
        accuracy: top-1 accuracy on the test images, from 0 to 1; None if it was not tested.
        resolution: image size in that test, in pixels: the deployment resolution, for which MACs
            and latency are counted. None in runs of version 0.1.0, tested at the resolution of
            the training.
        trained_resolution: image size of the training, in pixels.
        accuracy_as_trained: accuracy of the same weights at that size, from 0 to 1.
        chance: accuracy of always naming the most frequent class, from 0 to 1.
        warnings: signs that the training failed, and what to change.
    """

    run: Path
    architecture: Path
    notes: tuple[str, ...] = ()
    accuracy: FiniteFloat | None = None
    resolution: int | None = None
    trained_resolution: int | None = None
    accuracy_as_trained: FiniteFloat | None = None
    chance: FiniteFloat | None = None
    warnings: tuple[str, ...] = ()

    def network(self) -> "Network":
        """The network with its weights, in training mode like any new module."""
        from quadranas.runs.stored_network import open_network

        stored = open_network(self.run)
        stored.require_weights()
        return stored.network()

    def export(self, **options: Any) -> "ExportResult":
        """Export the network as a bundle; the options are those of `quadranas.export`."""
        import quadranas

        return quadranas.export(self.run, **options)

    def report(self) -> "ReportResult":
        """Write the report of the run, as `quadranas.report` does."""
        import quadranas

        return quadranas.report(self.run)

    def content(self) -> dict[str, Any]:
        """The content of `result.json`."""
        return self.model_dump(mode="json")

    def moved_to(self, folder: Path) -> Self:
        """The same result for the folder in which it was found."""
        changes: dict[str, Any] = {"run": folder, "architecture": folder / layout.ARCHITECTURE}
        return self.model_copy(update=changes)


class TrainedResult(StoredResult):
    """The result of a run that trains and then writes its report.

    Args:
        accelerator: the hardware that trained, such as `cpu` or `cuda:0`.
        precision: `fp32`, or the type of automatic mixed precision.
        processes: number of processes that trained together.
        kept_epoch: index of the epoch whose weights are used, from 1; None if no images are held
            out.
        val_accuracy: accuracy after it on the held-out training images, from 0 to 1.
        report_path: the report of the run; None until it is written.
    """

    accelerator: str = "cpu"
    precision: str = "fp32"
    processes: int = 1
    kept_epoch: int | None = None
    val_accuracy: FiniteFloat | None = None
    report_path: Path | None = None

    def content(self) -> dict[str, Any]:
        """The content of `result.json`; the report is written after it."""
        return self.model_dump(mode="json", exclude={"report_path"})

    def moved_to(self, folder: Path) -> Self:
        """The same result for the folder in which it was found."""
        report = folder / layout.REPORT
        changes = {"report_path": report if report.is_file() else None}
        return super().moved_to(folder).model_copy(update=changes)


class TrainResult(TrainedResult):
    """The result of `quadranas train`.

    Args:
        params, macs: number of parameters and multiply-accumulates of the network.
    """

    params: int
    macs: int


class DeviceLatency(Frozen):
    """The latency of a network on a device, and the budget for it.

    Args:
        device: name of the deployment device.
        budget_ms: the latency budget.
        predicted_ms: latency of the network by the table.
        measured_ms: measured latency of the network; None if it was not measured.
        measured_p50_ms, measured_p95_ms: median and 95th percentile of the undisturbed calls.
        measured_dropped: share of calls that lost the processor to other processes and were
            dropped; None if unknown.
        not_measured: the reason; empty if it was measured.
        table: the latency table that the network was chosen with.
    """

    device: str
    budget_ms: FiniteFloat = Field(gt=0)
    predicted_ms: FiniteFloat
    measured_ms: FiniteFloat | None
    measured_p50_ms: FiniteFloat | None = None
    measured_p95_ms: FiniteFloat | None = None
    measured_dropped: FiniteFloat | None = None
    not_measured: str = ""
    table: TableNote

    @classmethod
    def on(
        cls, goal: Goal, architecture: Architecture, measured: "Timing | str", table: Path
    ) -> "DeviceLatency":
        """The latency of a network.

        Args:
            measured: the measured latency, or the reason why it was not measured.
            table: the copy of the table in the run folder.
        """
        timing = None if isinstance(measured, str) else measured
        header = goal.table.header
        return DeviceLatency(
            device=header.device,
            budget_ms=goal.contract.budget_ms,
            predicted_ms=goal.table.predict_ms(architecture),
            measured_ms=timing and timing.latency_ms,
            measured_p50_ms=timing and timing.median_ms,
            measured_p95_ms=timing and timing.p95_ms,
            measured_dropped=timing and timing.dropped,
            not_measured=measured if isinstance(measured, str) else "",
            table=TableNote(path=table, method=header.method, summary=header.summary()),
        )

    def missed_within(self, tolerance: float) -> str:
        """A description of how the latency misses the budget; empty if the budget is kept.

        Args:
            tolerance: allowed overshoot of the measured latency, as a fraction of the budget.
        """
        return missed_budget(
            *(self.budget_ms, tolerance),
            predicted_ms=self.predicted_ms,
            measured_ms=self.measured_ms,
        )

    def with_table(self, path: Path) -> Self:
        """The same latency with another place of the table."""
        return self.model_copy(update={"table": self.table.model_copy(update={"path": path})})


class DeriveResult(StoredResult, DeviceLatency):
    """The result of `quadranas derive`: a network within a latency budget.

    Args:
        also: latencies and budgets on further devices.
        confidence: probability that the measured latency is within the budget, from 0.5 to 1;
            None if not requested.
        tolerance: allowed overshoot of the measured latency, as a fraction of the budget.
        candidates: number of networks that were judged before this one was chosen.
        inherited_accuracy: its accuracy on held-out training images with the supernet's weights,
            from 0 to 1; None if the gates alone chose it.
        params, macs: number of parameters and multiply-accumulates of the network.
        weight_bytes: bytes of its weights in an exported fp32 file; None in results of earlier
            versions.
        memory_bytes: peak bytes of its activations at inference, in the precision of the device;
            None in results of earlier versions, and for a user's own model.
    """

    also: tuple[DeviceLatency, ...] = ()
    confidence: float | None
    tolerance: float
    candidates: int = 1
    inherited_accuracy: FiniteFloat | None = None
    params: int
    macs: int
    weight_bytes: int | None = None
    memory_bytes: int | None = None

    @classmethod
    def of(
        cls,
        folder: Path,
        architecture: Architecture,
        goals: Sequence[Goal],
        measured: "Sequence[Timing | str]",
        **more: Any,
    ) -> Self:
        """Describe the network that a run chose.

        Args:
            goals: the devices and budgets it was chosen for, the main one first.
            measured: per device the measured latency, or the reason why it was not measured.
            more: the other fields: those of the test, and those of a subclass.
        """
        main, *further = (
            DeviceLatency.on(goal, architecture, timing, path / layout.TABLE)
            for goal, timing, path in zip(goals, measured, _places(goals, folder), strict=True)
        )
        contract, ops = goals[0].contract, architecture.ops()
        precision = goals[0].table.header.precision
        return cls(
            run=folder,
            architecture=folder / layout.ARCHITECTURE,
            **dict(main),
            also=tuple(further),
            confidence=contract.confidence,
            tolerance=contract.tolerance,
            candidates=architecture.provenance.get("candidates", 1),
            inherited_accuracy=architecture.provenance.get("inherited_accuracy"),
            params=count_params(architecture),
            macs=count_macs(architecture),
            weight_bytes=sum(map(weight_bytes, ops)),
            memory_bytes=_memory_bytes(architecture, precision),
            **more,
        )

    @property
    def latencies(self) -> tuple[DeviceLatency, ...]:
        """The latencies on all devices, the main one first."""
        return (self, *self.also)

    @property
    def missed(self) -> str:
        """How the latencies miss their budgets; empty if all are kept."""
        found = [(one.device, one.missed_within(self.tolerance)) for one in self.latencies]
        if not self.also:
            return found[0][1]
        return "; ".join(f"{device}: {text}" for device, text in found if text)

    def moved_to(self, folder: Path) -> Self:
        """The same result for the folder in which it was found."""
        also = tuple(
            one.with_table(further_folder(folder, one.device) / layout.TABLE) for one in self.also
        )
        moved = super().moved_to(folder).with_table(folder / layout.TABLE)
        return moved.model_copy(update={"also": also})


def _memory_bytes(architecture: Architecture, precision: str) -> int | None:
    """Peak bytes of the activations; None for a user's own model, whose kernels are unknown."""
    if architecture.model is not None:
        return None
    return max(peak_bytes(op, precision) for op in architecture.ops())


def _places(goals: Sequence[Goal], folder: Path) -> Iterator[Path]:
    """Per device the place of its files in a run folder."""
    yield folder
    for goal in goals[1:]:
        yield further_folder(folder, goal.name)


class SearchResult(DeriveResult, TrainedResult):
    """The result of `quadranas search`: a network within a latency budget, trained and tested.

    Args:
        seed: random seed of the run; None in results of version 0.1.0.
        pretrained: how it used the network that it started from; None if it started from scratch.
        versions: versions of the packages that affect the result.
    """

    seed: int | None = None
    pretrained: PretrainedNote | None = None
    versions: dict[str, str] = Field(default_factory=dict)

    def derive(
        self, *, device: "str | Path | Device", budget: str, **options: Any
    ) -> DeriveResult:
        """Decode the trained supernet again; the options are those of `quadranas.derive`."""
        import quadranas

        return quadranas.derive(self.run, device=device, budget=budget, **options)


Result: TypeAlias = SearchResult | DeriveResult | TrainResult
AnyResult = TypeVar("AnyResult", bound=StoredResult)


def read_result(folder: Path) -> Result:
    """Read the `result.json` of a run folder.

    Raises:
        QuadranasError: unreadable, incomplete, or with an impossible value.
    """
    return read_as(_model_of(read_json(folder / layout.RESULT, "result")), folder)


def read_as(model: type[AnyResult], folder: Path) -> AnyResult:
    """Read the `result.json` of a run folder whose command is known; errors as `read_result`."""
    path = folder / layout.RESULT
    content = read_json(path, "result")
    known = {key: value for key, value in content.items() if key in model.model_fields}
    return validate(model, known, path).moved_to(folder)


def _model_of(content: Mapping[str, Any]) -> type[SearchResult | DeriveResult | TrainResult]:
    """The class of a result by its keys, since the file does not name its command."""
    if content.keys() & {"seed", "versions"}:
        return SearchResult
    return DeriveResult if "device" in content else TrainResult


def open_run(path: str | Path) -> Result:
    """Open a finished run of search, derive or train.

    Raises:
        QuadranasError: the folder holds no run, or an unfinished one.
    """
    folder = Path(path)
    if (folder / layout.RESULT).is_file():
        return read_result(folder)
    command = recorded_command(folder)
    if command is None:
        raise QuadranasError(
            f"{folder} is not a run folder", "Name the --output of a search or a training."
        )
    raise QuadranasError(
        f"the run in {folder} is not finished: it has no {layout.RESULT}",
        f"Continue it with: {resume_command(command, folder)}"
        if command in layout.RESUMABLE
        else f"Train it with: {train_command(folder)}",
    )
