"""derive: decode a trained supernet again, for any device and budget."""

from dataclasses import dataclass
from pathlib import Path

from quadranas.acceleration.engine import Engine
from quadranas.data.augmentation import Augmenter
from quadranas.data.preprocessing import Preprocessing, load_preprocessing
from quadranas.errors import QuadranasError
from quadranas.files import refuse_links
from quadranas.latency.budget import parse_budget
from quadranas.latency.contract import DEFAULT_TOLERANCE, Contract
from quadranas.latency.device import Device, is_shipped, load_device
from quadranas.latency.table import build_command
from quadranas.latency.table_files import find_priced
from quadranas.measurement.verification import measure_network
from quadranas.network.modes import batch_norms
from quadranas.network.skeleton import build_subnet
from quadranas.network.weights import load_tensors, load_weights, save_tensors
from quadranas.reporter import Reporter
from quadranas.runs import layout
from quadranas.runs.conditions import load_conditions
from quadranas.runs.config import SearchConfig, open_data
from quadranas.runs.config_file import read_config_file
from quadranas.runs.next_command import resume_command
from quadranas.runs.results import DeriveResult
from quadranas.runs.run_device import keep_device
from quadranas.runs.run_folder import RunFolder
from quadranas.runs.stored_network import StoredNetwork
from quadranas.runs.whole_folder import whole_folder
from quadranas.space.search_space import SearchSpace
from quadranas.space.space_file import load_whole_space, space_files
from quadranas.strategies.derivation import (
    decoding_limits,
    derive_architecture,
    judgement,
)
from quadranas.strategies.exact import decode_best
from quadranas.strategies.limits import feasibility
from quadranas.strategies.scores import GateScores, load_scores
from quadranas.supernet.evaluation import SubnetEvaluator
from quadranas.supernet.supernet import Supernet, build_supernet
from quadranas.training.supernet_phase import search_halves
from quadranas.validation import validate

NEEDED = (layout.CONFIG, layout.SPACE, layout.PREPROCESSING, layout.GATES, layout.SUPERNET)
"""The files of a search that a derivation reads."""


def derive(
    run: str | Path,
    *,
    device: str | Path | Device,
    budget: str,
    output: str | Path | None = None,
    table: str | Path | None = None,
    max_params: int | None = None,
    max_macs: int | None = None,
    confidence: float | None = None,
    tolerance: float = DEFAULT_TOLERANCE,
    candidates: int | None = None,
    reporter: Reporter | None = None,
) -> DeriveResult:
    """Decode the best network of a trained supernet for a device and a budget.

    The network inherits its weights from the supernet; `quadranas train` on the output trains
    it further.

    Args:
        run: the folder of a search whose supernet is trained.
        device: a device's name, its YAML file, or one already loaded; one that is not shipped is
            also written to the output.
        budget: latency budget, such as "30ms".
        output: a new folder; default: `RUN/derived/DEVICE-BUDGET`.
        table: latency table to use instead of the default one.
        max_params, max_macs: upper limits on the network.
        confidence: probability that the measured latency is within the budget.
        tolerance: allowed overshoot of the measured latency, as a fraction of the budget.
        candidates: number of networks that the gates prefer most, of which the one with the best
            accuracy on held-out images of the search is chosen; 1: the gates choose. Default: as
            in the search.
        reporter: receives messages and progress. Default: nothing is shown.

    Raises:
        QuadranasError: no trained supernet, an infeasible budget, or an output that exists.
    """
    contract = Contract(budget_ms=parse_budget(budget), confidence=confidence, tolerance=tolerance)
    opened = load_device(device)
    default = Path(run) / layout.DERIVED / f"{opened.name}-{''.join(budget.split())}"
    folder = Path(output) if output else default
    request = _Request(
        device=opened,
        device_argument=_device_argument(device, folder),
        contract=contract,
        table=None if table is None else Path(table),
        max_params=max_params,
        max_macs=max_macs,
        candidates=candidates,
    )
    RunFolder(folder).refuse_content()
    return request.answer(_open_searched(Path(run)), folder, reporter or Reporter(quiet=True))


@dataclass(frozen=True)
class _Searched:
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

    def evaluator(
        self, supernet: Supernet, number: int, reporter: Reporter
    ) -> SubnetEvaluator | None:
        """Judges sub-networks on the images of the search; None if they are not needed or gone.

        Raises:
            QuadranasError: the images have changed since the search.
        """
        if number == 1 and not batch_norms(supernet):
            return None
        places = filter(None, (self.config.data, self.config.val))
        missing = [place for place in places if not Path(place).exists()]
        if missing:
            reporter.message(
                f"the images of the search are no longer at {missing[0]}; the gates alone choose"
            )
            return None
        conditions = load_conditions(self.folder.path)
        earlier = conditions.earlier(self.folder.path) if conditions else None
        given = self.config.model_copy(update={"skip_corrupt": True})
        dataset = open_data(given, self.space.resolution, earlier=earlier)
        weight_half, gate_half = search_halves(dataset, self.config.seed)
        return SubnetEvaluator(
            *(supernet, dataset.train, Augmenter.of(dataset), Engine()),
            held_out=gate_half,
            trained_on=weight_half,
        )


@dataclass(frozen=True, kw_only=True)
class _Request:
    """A request to decode a trained supernet.

    Args:
        device_argument: the device as named on the command line.
    """

    device: Device
    device_argument: str
    contract: Contract
    table: Path | None
    max_params: int | None
    max_macs: int | None
    candidates: int | None

    def answer(self, searched: _Searched, output: Path, reporter: Reporter) -> DeriveResult:
        """Decode the supernet, measure the network if possible, and write the folder."""
        contract = self.contract
        priced = find_priced(
            searched.space,
            self.device,
            self.table,
            own=searched.folder / layout.TABLE,
            command=build_command(searched.space_argument, self.device_argument),
        )
        reporter.message(feasibility(searched.space, priced, contract))
        limits = decoding_limits(
            contract, priced.table, max_params=self.max_params, max_macs=self.max_macs
        )
        number = self.candidates or searched.config.candidates
        preferred = decode_best(searched.space, searched.scores, priced.table, limits, number)
        supernet = searched.supernet()
        evaluator = searched.evaluator(supernet, number, reporter)
        architecture = derive_architecture(
            *(searched.space, searched.scores, priced.table, contract, preferred),
            judge=evaluator.accuracy if evaluator and number > 1 else None,
        )
        if judgement(architecture):
            reporter.message(judgement(architecture))
        if evaluator:
            evaluator.calibrate(searched.space.choices_of(architecture))
        inherited = supernet.subnet_tensors(architecture)
        network = build_subnet(architecture)
        load_tensors(network, inherited, str(searched.folder / layout.SUPERNET))
        measured = measure_network(architecture, network, self.device, priced, reporter)
        result = DeriveResult.of(output, architecture, priced, contract, measured)
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
            target.write_result(result.content())
        return result


def _device_argument(device: str | Path | Device, folder: Path) -> str:
    """The device as named on the command line; if it is not shipped, its file in the folder."""
    if not isinstance(device, Device):
        return str(device)
    return device.name if is_shipped(device) else str(folder / layout.DEVICE)


def _open_searched(run: Path) -> _Searched:
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
    return _Searched(
        folder=folder,
        config=validate(SearchConfig, config.keys, config.path),
        space=space,
        scores=load_scores(folder / layout.GATES, space),
        preprocessing=preprocessing,
    )
