"""A search that is over, from whose supernet networks are chosen for any device and budget."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from quadranas.acceleration.engine import Engine
from quadranas.data.preprocessing import Preprocessing, load_preprocessing
from quadranas.errors import QuadranasError
from quadranas.files import refuse_links, write_atomically
from quadranas.latency.contract import Contract
from quadranas.latency.device import Device, is_shipped
from quadranas.latency.table import LatencyTable, build_command
from quadranas.latency.table_files import find_priced
from quadranas.measurement.verification import measure_network
from quadranas.network.skeleton import build_subnet
from quadranas.network.weights import load_tensors, load_weights, save_tensors
from quadranas.reporter import Reporter
from quadranas.runs import layout
from quadranas.runs.conditions import load_conditions
from quadranas.runs.config import SearchConfig, open_data
from quadranas.runs.config_file import read_config_file
from quadranas.runs.next_command import resume_command
from quadranas.runs.results import DeriveResult
from quadranas.runs.run_device import (
    find_device_run,
    keep_device,
    open_device_argument,
    table_of,
)
from quadranas.runs.run_folder import RunFolder
from quadranas.runs.stored_network import StoredNetwork
from quadranas.runs.whole_folder import whole_folder
from quadranas.space.architecture import Architecture
from quadranas.space.search_space import SearchSpace
from quadranas.space.space_file import load_whole_space, space_files
from quadranas.strategies.derivation import (
    decoding_limits,
)
from quadranas.strategies.limits import Limits, feasibility
from quadranas.strategies.scores import GateScores, load_scores
from quadranas.supernet.evaluation import SubnetEvaluator
from quadranas.supernet.supernet import Supernet, build_supernet
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

    def supernet(self) -> Supernet:
        """The trained supernet."""
        nested = self.config.supernet.weights == "nested"
        supernet = build_supernet(self.space, seed=0, nested=nested)
        load_weights(supernet, self.folder / layout.SUPERNET)
        return supernet

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
        contract: the budget as it was given.
    """

    searched: Searched
    supernet: Supernet
    table: LatencyTable
    limits: Limits
    contract: Contract
    reporter: Reporter


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
        device_argument: the device as named on the command line.
        device_run: the run folder that the device was named by; None if it was named otherwise.
    """

    device: Device
    device_argument: str
    device_run: Path | None
    contract: Contract
    table: Path | None
    max_params: int | None
    max_macs: int | None

    @classmethod
    def of(
        cls,
        device: str | Path | Device,
        contract: Contract,
        folder: Path,
        *,
        table: str | Path | None,
        max_params: int | None,
        max_macs: int | None,
        allow_commands: bool = False,
    ) -> "Request":
        """The request of a command.

        Args:
            device: a device's name, its YAML file, the folder of a run for the run's device, or a
                device already loaded.
            folder: the output.
            allow_commands: whether the commands of the device may run.
        """
        opened, device_run = open_device_argument(device), find_device_run(device)
        opened = opened.allowing_commands() if allow_commands else opened
        return cls(
            device=opened,
            device_argument=device_argument_of(opened if device_run else device, folder),
            device_run=device_run,
            contract=contract,
            table=None if table is None else Path(table),
            max_params=max_params,
            max_macs=max_macs,
        )

    def answer(
        self,
        searched: Searched,
        output: Path,
        reporter: Reporter,
        choose: Choose,
        model: type[AnyDerived],
    ) -> AnyDerived:
        """Choose a network, measure it if possible, and write the folder.

        Args:
            choose: chooses the architecture, and gives the other fields of the result.
            model: the class of the result.
        """
        contract = self.contract
        priced = find_priced(
            searched.space,
            self.device,
            self.table,
            own=self._own_table(searched),
            command=build_command(searched.space_argument, self._described_device),
        )
        reporter.message(feasibility(searched.space, priced, contract))
        limits = decoding_limits(
            contract, priced.table, max_params=self.max_params, max_macs=self.max_macs
        )
        supernet = searched.supernet()
        chosen = choose(Choice(searched, supernet, priced.table, limits, contract, reporter))
        architecture = chosen.architecture
        inherited = supernet.subnet_tensors(architecture)
        network = build_subnet(architecture)
        load_tensors(network, inherited, str(searched.folder / layout.SUPERNET))
        measured = measure_network(architecture, network, self.device, priced, reporter)
        result = model.of(*(output, architecture, priced, contract, measured), **chosen.more)
        derived = StoredNetwork(
            architecture, searched.folder.path, preprocessing=searched.preprocessing
        )
        with whole_folder(output) as target:
            save_tensors(inherited, target / layout.WEIGHTS)
            keep_device(self.device, target.path)
            priced.table.save(target / layout.TABLE)
            derived.hand_on(
                target,
                "derive",
                device=self.device_argument,
                budget=f"{contract.budget_ms!r}ms",
                table=None,
                confidence=contract.confidence,
                tolerance=contract.tolerance,
                max_params=self.max_params,
                max_macs=self.max_macs,
            )
            architecture.save(target / layout.ARCHITECTURE)
            if chosen.trials:
                lines = [json.dumps(trial) + "\n" for trial in chosen.trials]
                write_atomically(target / layout.TRIALS, "".join(lines))
            target.write_result(result.content())
        return result

    @property
    def _described_device(self) -> str:
        """The device as `build-lut` takes it: a run folder stands for the file in it."""
        if self.device_run is None or is_shipped(self.device):
            return self.device_argument
        return str(self.device_run / layout.DEVICE)

    def _own_table(self, searched: Searched) -> Path:
        """The copy of a table in the run that names the device, if it fits, or in the search's."""
        table = table_of(self.device_run) if self.device_run is not None else None
        if self.device_run is not None and table is not None:
            is_of_space = table.header.space_digest == searched.space.digest
            if is_of_space and not table.header.differences(self.device):
                return self.device_run / layout.TABLE
        return searched.folder / layout.TABLE


def device_argument_of(device: str | Path | Device, folder: Path) -> str:
    """The device as named on the command line; if it is not shipped, its file in the folder."""
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
