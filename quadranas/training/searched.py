"""A search that is over, from whose supernet networks are chosen for any device and budget."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from quadranas.acceleration.engine import Engine
from quadranas.data.preprocessing import Preprocessing, load_preprocessing
from quadranas.errors import QuadranasError
from quadranas.files import file_name, refuse_links, write_atomically
from quadranas.latency.budget import parse_budget
from quadranas.latency.contract import Contract
from quadranas.latency.device import Device, is_shipped
from quadranas.latency.goal import Goal
from quadranas.latency.table import LatencyTable, build_command
from quadranas.latency.table_files import PricedTable, find_priced
from quadranas.measurement.verification import measure_network
from quadranas.network.skeleton import build_subnet
from quadranas.network.weights import load_tensors, load_weights, save_tensors
from quadranas.reporter import Reporter
from quadranas.runs import layout
from quadranas.runs.conditions import load_conditions
from quadranas.runs.config import LimitsConfig, SearchConfig, open_data
from quadranas.runs.config_file import read_config_file
from quadranas.runs.next_command import resume_command
from quadranas.runs.results import DeriveResult
from quadranas.runs.run_device import (
    find_device_run,
    keep_goals,
    open_device_argument,
    table_of,
    table_place,
)
from quadranas.runs.run_folder import RunFolder
from quadranas.runs.stored_network import StoredNetwork
from quadranas.runs.whole_folder import whole_folder
from quadranas.space.architecture import Architecture
from quadranas.space.search_space import SearchSpace
from quadranas.space.space_file import load_whole_space, space_files
from quadranas.strategies.derivation import decoding_limits
from quadranas.strategies.limits import Limits, feasibility
from quadranas.strategies.scores import GateScores, load_scores
from quadranas.supernet.evaluation import SubnetEvaluator
from quadranas.supernet.supernet import Supernet, build_supernet
from quadranas.training.further_goals import all_goals
from quadranas.training.held_out import hold_out
from quadranas.training.supernet_phase import subnet_evaluator
from quadranas.validation import validate

NEEDED = (layout.CONFIG, layout.SPACE, layout.PREPROCESSING, layout.GATES, layout.SUPERNET)
"""The files of a search that a derivation reads."""


@dataclass(frozen=True)
class Searched:
    """The parts of a search that a derivation needs."""

    folder: RunFolder
    config: SearchConfig
    space: SearchSpace
    scores: GateScores
    preprocessing: Preprocessing

    @property
    def space_argument(self) -> str:
        """The space as named on the command line."""
        if self.config.space in space_files():
            return self.config.space
        return str(self.folder / layout.SPACE)

    def own_table(self, device: Device, argument: str | Path | Device) -> Path:
        """The copy of a table in the run that names the device, if it fits, or in the search's.

        Args:
            argument: the device as named on the command line, perhaps by the folder of a run.
        """
        run = find_device_run(argument)
        table = table_of(run) if run is not None else None
        if run is not None and table is not None:
            is_of_space = table.header.space_digest == self.space.digest
            if is_of_space and not table.header.differences(device):
                return run / layout.TABLE
        return table_place(self.folder.path, device.name)

    def build_command(self, device: Device, argument: str | Path | Device, folder: Path) -> str:
        """The command that makes the table of a device; a run folder stands for the file in it.

        Args:
            folder: the new run folder, for a device that is loaded already.
        """
        run = find_device_run(argument)
        described = device_argument_of(argument, folder)
        if run is not None and not is_shipped(device):
            described = str(run / layout.DEVICE)
        return build_command(self.space_argument, described)

    def priced(
        self,
        device: Device,
        argument: str | Path | Device,
        folder: Path,
        table: Path | None = None,
    ) -> PricedTable:
        """The table of a device; errors as `find_priced`.

        Args:
            folder: the new run folder.
            table: latency table to use instead of the default one.
        """
        return find_priced(
            self.space,
            device,
            table,
            own=self.own_table(device, argument),
            command=self.build_command(device, argument, folder),
        )

    def supernet(self) -> Supernet:
        """The trained supernet."""
        nested = self.config.supernet.weights == "nested"
        supernet = build_supernet(self.space, seed=0, nested=nested)
        load_weights(supernet, self.folder / layout.SUPERNET)
        return supernet

    def require_images(self) -> None:
        """Check that the images of the search are there.

        Raises:
            QuadranasError: they are not.
        """
        if self.missing_images:
            raise QuadranasError(
                f"the images of the search are no longer at {self.missing_images}",
                "Put them back: networks are judged on them.",
            )

    @property
    def missing_images(self) -> str | None:
        """The place of the images of the search, if they are no longer there."""
        places = filter(None, (self.config.data, self.config.val))
        return next((place for place in places if not Path(place).exists()), None)

    def evaluator(self, supernet: Supernet) -> SubnetEvaluator:
        """Judges sub-networks on images of the search.

        Raises:
            QuadranasError: the images have changed since the search, or are not there.
        """
        conditions = load_conditions(self.folder.path)
        earlier = conditions.earlier(self.folder.path) if conditions else None
        given = self.config.model_copy(update={"skip_corrupt": True})
        dataset = open_data(given, self.space.resolution, earlier=earlier)
        dataset = hold_out(dataset, self.config, Reporter(silent=True))
        return subnet_evaluator(supernet, dataset, self.config.seed, Engine())


class Choice(NamedTuple):
    """What a network is chosen from.

    Args:
        goals: the devices with their tables and budgets, the main device first.
    """

    searched: Searched
    supernet: Supernet
    goals: tuple[Goal, ...]
    limits: Limits
    reporter: Reporter

    @property
    def table(self) -> LatencyTable:
        """The latency table of the main device."""
        return self.goals[0].table


@dataclass(frozen=True)
class Chosen:
    """The network that was chosen.

    Args:
        more: fields of the result besides those of `DeriveResult`.
        trials: the networks that were judged, as plain data.
    """

    architecture: Architecture
    more: Mapping[str, Any] = field(default_factory=dict)
    trials: Sequence[Mapping[str, Any]] = ()


Choose = Callable[[Choice], Chosen]
AnyDerived = TypeVar("AnyDerived", bound=DeriveResult)


@dataclass(frozen=True, kw_only=True)
class Request:
    """A request to decode a trained supernet.

    Args:
        device: the main device.
        argument: the device as named on the command line.
        folder: the new run folder.
        table: latency table to use instead of the default one.
    """

    device: Device
    argument: str | Path | Device
    contract: Contract
    limits: LimitsConfig
    folder: Path
    table: Path | None

    @classmethod
    def of(
        cls,
        device: str | Path | Device,
        budget: str,
        limits: Mapping[str, Any],
        place: Callable[[str], Path],
        output: str | Path | None = None,
        *,
        table: str | Path | None = None,
        allow_commands: bool = False,
    ) -> "Request":
        """The request of a command, checked as far as it can be without the search.

        Args:
            device: a device's name, its YAML file, the folder of a run for the run's device, or a
                device already loaded.
            limits: keys of `LimitsConfig`.
            place: the default of `output` for a name of device and budget.
            allow_commands: whether the commands of the devices may run.

        Raises:
            QuadranasError: an unknown device, an impossible limit, or a folder with content.
        """
        checked = validate(LimitsConfig, dict(limits), "arguments")
        contract = checked.contract(parse_budget(budget))
        opened = open_device_argument(device)
        opened = opened.allowing_commands() if allow_commands else opened
        name = "-".join((opened.name, *("".join(b.split()) for b in (budget, *checked.also))))
        folder = Path(output) if output else place(file_name(name))
        RunFolder(folder).refuse_content()
        return cls(
            device=opened,
            argument=device,
            contract=contract,
            limits=checked,
            folder=folder,
            table=None if table is None else Path(table),
        )

    def answer(
        self, searched: Searched, reporter: Reporter, choose: Choose, model: type[AnyDerived]
    ) -> AnyDerived:
        """Choose a network, measure it if possible, and write the folder.

        Args:
            choose: chooses the architecture, and gives the other fields of the result.
            model: the class of the result.
        """
        goals = self._goals(searched)
        reporter.message(feasibility(searched.space, goals))
        limits = decoding_limits(goals, **self.limits.ceilings)
        supernet = searched.supernet()
        chosen = choose(Choice(searched, supernet, goals, limits, reporter))
        architecture = chosen.architecture
        inherited = supernet.subnet_tensors(architecture)
        network = build_subnet(architecture)
        load_tensors(network, inherited, str(searched.folder / layout.SUPERNET))
        measured = [
            measure_network(architecture, network, goal.device, goal.priced, reporter)
            for goal in goals
        ]
        result = model.of(self.folder, architecture, goals, measured, **chosen.more)
        with whole_folder(self.folder) as target:
            save_tensors(inherited, target / layout.WEIGHTS)
            keep_goals(goals, target.path)
            self._hand_on(searched, architecture, target)
            architecture.save(target / layout.ARCHITECTURE)
            if chosen.trials:
                lines = [json.dumps(trial) + "\n" for trial in chosen.trials]
                write_atomically(target / layout.TRIALS, "".join(lines))
            target.write_result(result.content())
        return result

    def _hand_on(self, searched: Searched, architecture: Architecture, target: RunFolder) -> None:
        """Write configuration and preprocessing of the derived network."""
        derived = StoredNetwork(
            architecture, searched.folder.path, preprocessing=searched.preprocessing
        )
        derived.hand_on(
            target,
            "derive",
            device=device_argument_of(self.argument, self.folder),
            budget=f"{self.contract.budget_ms!r}ms",
            table=None,
            **self.limits.model_dump(mode="json"),
        )

    def _goals(self, searched: Searched) -> tuple[Goal, ...]:
        """The goals on all devices, with their tables."""

        def opened(argument: str | Path | Device) -> Device:
            device = open_device_argument(argument)
            return device.allowing_commands() if self.device.allows_commands else device

        def priced(device: Device, argument: str | Path | Device) -> PricedTable:
            return searched.priced(device, argument, self.folder)

        main = searched.priced(self.device, self.argument, self.folder, self.table)
        goal = Goal(self.device, main, self.contract)
        return all_goals(goal, self.limits, opened, priced)


def device_argument_of(device: str | Path | Device, folder: Path) -> str:
    """The device as named on the command line; if it is not shipped, its file in the folder."""
    if find_device_run(device) is not None:
        device = open_device_argument(device)
    if not isinstance(device, Device):
        return str(device)
    return device.name if is_shipped(device) else str(folder / layout.DEVICE)


def open_searched(run: Path) -> Searched:
    """Read a search's folder.

    Raises:
        QuadranasError: a file is missing or broken.
    """
    folder = RunFolder(run)
    if run.is_dir():
        refuse_links(run)
    for name in NEEDED:
        if not (folder / name).is_file():
            unfinished = folder.is_run and not folder.is_finished
            raise QuadranasError(
                f"{run} holds no trained supernet: {name} is missing",
                f"Finish it with: {resume_command('search', run)}"
                if unfinished
                else "Name the folder of a run of `quadranas search`.",
            )
    preprocessing = load_preprocessing(folder / layout.PREPROCESSING)
    space = load_whole_space(folder / layout.SPACE)
    space = space.with_num_classes(len(preprocessing.class_names))
    config = read_config_file(folder / layout.CONFIG)
    return Searched(
        folder=folder,
        config=validate(SearchConfig, config.keys, config.path),
        space=space,
        scores=load_scores(folder / layout.GATES, space),
        preprocessing=preprocessing,
    )
