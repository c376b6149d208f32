"""search: train a supernet under a latency budget, decode it, fine-tune the network it found."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from quadranas import __version__
from quadranas.acceleration.engine import Engine, engine_for
from quadranas.acceleration.processes import Processes, together
from quadranas.conversion.own_pretrained import give_kept_weights, own_pretrained
from quadranas.conversion.pretrained_network import (
    PretrainedNetwork,
    kept_pretrained,
    open_pretrained,
)
from quadranas.data.identity import EarlierData
from quadranas.files import dump_yaml, write_atomically
from quadranas.measurement.verification import measure_network
from quadranas.network.skeleton import Network, build_subnet
from quadranas.network.weights import load_weights, save_tensors
from quadranas.reporter import Reporter
from quadranas.reports.run_report import write_report
from quadranas.runs import layout
from quadranas.runs.conditions import notes_of
from quadranas.runs.config import SearchConfig, combined
from quadranas.runs.config_file import OWN_INIT
from quadranas.runs.fronts import fronts_of
from quadranas.runs.pretrained_record import noted
from quadranas.runs.results import SearchResult, read_as
from quadranas.runs.resume import (
    RunStart,
    begin_or_resume,
    can_resume,
    choose_folder,
    resumable,
    run_name,
)
from quadranas.runs.run_device import keep_goals
from quadranas.runs.run_folder import RunFolder
from quadranas.seeds import derived_seed
from quadranas.space.architecture import Architecture, load_architecture
from quadranas.space.space_file import load_space
from quadranas.strategies.derivation import derive_architecture, judgement
from quadranas.strategies.exact import Decoded, decode_best
from quadranas.strategies.interface import RememberingJudge
from quadranas.strategies.pareto import Planned, judged, plan_networks
from quadranas.strategies.scores import GateScores
from quadranas.supernet.embedding import Embedding
from quadranas.supernet.supernet import Supernet, build_supernet
from quadranas.training.agreement import check_agreement, check_batch_size, check_command
from quadranas.training.inheritance import Inheritance, optimizer_for
from quadranas.training.initial_weights import InitialWeights, report_initial
from quadranas.training.loop import run_phase
from quadranas.training.network_phase import NetworkTraining
from quadranas.training.outcome import outcome
from quadranas.training.resolution_phase import equivalent_steps, train_network
from quadranas.training.search_setup import SearchSetup, prepare_search
from quadranas.training.supernet_phase import SupernetTraining
from quadranas.training.teacher import Teacher, open_teacher, pretrained_teacher
from quadranas.training.tracking import Tracker, check_tracking, tracking


def search(
    config: SearchConfig | None = None,
    *,
    output: str | Path | None = None,
    resume: bool = False,
    allow_commands: bool = False,
    reporter: Reporter | None = None,
    **keys: Any,
) -> SearchResult:
    """Find, train and test the best network within a latency budget, and write a report.

    Args:
        config: the given part of the configuration.
        output: the run folder; default: a new one under `runs/`.
        resume: continue the run in `output`, or the newest unfinished one under `runs/` that
            matches the given options.
        allow_commands: run the commands of the device's file to measure the network.
        reporter: receives messages and progress. Default: nothing is shown.
        keys: fields of `SearchConfig`; they take precedence over `config`.

    Raises:
        QuadranasError: an error that the user can fix; raised before the training if possible.
    """
    given = combined(SearchConfig, config, keys)
    with together() as processes:
        check_command(given, processes, output, resume, allow_commands)
        if not processes.is_main:
            return _follow(processes)
        reporter = reporter or Reporter(quiet=True)
        accept = (lambda path: can_resume("search", path, given)) if resume else None
        folder = RunFolder(Path(output)) if output else choose_folder(run_name(given), accept)
        with resumable("search", folder):
            start = begin_or_resume(
                *("search", given, folder, reporter),
                resume=resume,
                needed="" if given.device and given.budget else "--device and --budget",
            )
            named = (given.device is not None, "also" in given.model_fields_set)
            agreed = None
            if not start.is_finished:
                agreed = _Agreed.of(start, named, allow_commands)
            processes.from_main(agreed)
            if agreed is not None:
                _lead(agreed, start, processes)
            write_report(folder.path)
            return processes.from_main(read_as(SearchResult, folder.path))


@dataclass(frozen=True)
class _Agreed:
    """What all processes of a search have to know.

    Args:
        copies, earlier: see `prepare_search`.
        named: whether the caller named the main device, and the further ones.
        allow_commands: whether the commands of the devices may run.
        threads: number of threads of every process.
        pretrained: the network to start from; None to start from scratch.
    """

    config: SearchConfig
    copies: Path | None
    earlier: EarlierData | None
    named: tuple[bool, bool]
    allow_commands: bool
    threads: int
    pretrained: PretrainedNetwork | None

    @classmethod
    def of(
        cls, start: RunStart[SearchConfig], named: tuple[bool, bool], allow_commands: bool
    ) -> "_Agreed":
        copies = start.folder.path.absolute() if start.resuming else None
        threads = torch.get_num_threads()
        return cls(
            *(start.config, copies, start.earlier, named, allow_commands, threads),
            _pretrained(start),
        )

    def prepare(
        self, reporter: Reporter, processes: Processes
    ) -> tuple[SearchSetup, Engine, Teacher | None]:
        """Check everything that can be checked before training, and find the accelerator."""
        engine = engine_for(self.config.accelerator, self.config.precision, processes)
        if self.pretrained is not None:
            give_kept_weights(self.pretrained)
        setup = prepare_search(
            *(self.config, reporter, self.copies, self.earlier),
            is_device_named=self.named[0],
            are_further_named=self.named[1],
            pretrained=self.pretrained,
            allow_commands=self.allow_commands,
        )
        check_tracking(setup.config)
        check_batch_size(setup.config, processes)
        check_agreement(setup.config, setup.dataset, processes)
        about = (setup.config, setup.dataset, setup.augmenter(), engine)
        teacher = open_teacher(*about)
        if teacher is None and setup.initial is not None and setup.initial.uses_head:
            teacher = pretrained_teacher(setup.initial.network, *about)
        return setup, engine, teacher


def _lead(agreed: _Agreed, start: RunStart[SearchConfig], processes: Processes) -> None:
    """Train, decide and write, as the main process or the only one."""
    setup, engine, teacher = agreed.prepare(start.reporter, processes)
    supernet = _supernet(setup)
    if not start.resuming:  # before anything is written
        SupernetTraining(setup, supernet).check()
    inheritance = _inheritance(setup, supernet)
    taught_by = None if teacher is None else teacher.digest
    start.create(setup.config, supernet, setup.dataset, engine, taught_by)
    _keep_inputs(start.folder, setup)
    if setup.initial is not None and inheritance is not None:
        is_teacher = teacher is not None and setup.config.teacher is None
        _keep_initial(start, setup.initial, supernet, inheritance.embedding, is_teacher=is_teacher)
    training = SupernetTraining(setup, supernet, engine, teacher, inheritance)
    with tracking(setup.config, start.folder, start.reporter) as tracker:
        run = _SearchRun(setup, training, start.folder, start.reporter, tracker)
        run.train(processes.from_main(start.checkpoint()))


def _pretrained(start: RunStart[SearchConfig]) -> PretrainedNetwork | None:
    """The network to start from; when resuming, the copy in the run folder if there is one."""
    if start.config.init is None:
        return None
    kept = kept_pretrained(start.folder.path) if start.resuming else None
    if kept is not None:
        return kept
    if start.config.init == OWN_INIT:
        return own_pretrained(load_space(start.config.space))
    return open_pretrained(start.config.init)


def _supernet(setup: SearchSetup) -> Supernet:
    seed = derived_seed(setup.config.seed, "supernet")
    nested = setup.config.supernet.weights == "nested"
    return build_supernet(setup.space, seed=seed, nested=nested)


def _inheritance(setup: SearchSetup, supernet: Supernet) -> Inheritance | None:
    """Fill a new supernet with the weights of the pre-trained network, if there is one."""
    if setup.initial is None:
        return None
    return setup.initial.fill(supernet, setup.config.pretrained)


def _follow(processes: Processes) -> SearchResult:
    """Train along with the main process."""
    silent = Reporter(silent=True)
    agreed: _Agreed | None = processes.from_main()
    if agreed is not None:
        torch.set_num_threads(agreed.threads)
        setup, engine, teacher = agreed.prepare(silent, processes)
        supernet = _supernet(setup)
        inheritance = _inheritance(setup, supernet)
        training = SupernetTraining(setup, supernet, engine, teacher, inheritance)
        _SearchRun(setup, training, None, silent).train(processes.from_main())
    return processes.from_main()


def _keep_inputs(folder: RunFolder, setup: SearchSetup) -> None:
    """Copy tables, space and devices of one's own; copies that are there already stay."""
    keep_goals(setup.goals, folder.path)
    if not (folder / layout.SPACE).is_file():
        content = setup.space_file.model_dump(mode="json", exclude_defaults=True)
        write_atomically(folder / layout.SPACE, dump_yaml(content))


def _keep_initial(
    start: RunStart[SearchConfig],
    initial: InitialWeights,
    supernet: Supernet,
    embedding: Embedding,
    *,
    is_teacher: bool,
) -> None:
    """Say what was used of the pre-trained network, and copy it, if it is not there already."""
    if not (start.folder / layout.PRETRAINED).is_file():
        note = initial.note(supernet, embedding, is_teacher=is_teacher)
        report_initial(note, initial.network.notes, start.reporter)
        initial.network.keep(start.folder.path, note)


@dataclass(frozen=True)
class _SearchRun:
    """The phases of a search, each of which continues from the files in the run folder.

    Args:
        folder: None in a process that follows the main one.
        tracker: receives the metrics too.
    """

    setup: SearchSetup
    supernet_training: SupernetTraining
    folder: RunFolder | None
    reporter: Reporter
    tracker: Tracker | None = None

    def train(self, checkpoint: Mapping[str, Any] | None) -> None:
        """Run both phases, from the start or from a checkpoint, and write the result."""
        seconds = self.setup.config.checkpoint_seconds
        num_metrics = 0
        if checkpoint is None or checkpoint["phase"] == SupernetTraining.name:
            num_metrics = run_phase(
                *(self.supernet_training, self.folder, self.reporter, checkpoint),
                checkpoint_seconds=seconds,
                later_steps=self._later_steps,
                tracker=self.tracker,
            )
            checkpoint = None
            architecture = self._derive()
        else:
            derived = None
            if self.folder is not None:
                derived = load_architecture(self.folder / layout.ARCHITECTURE)
            architecture = self.engine.processes.from_main(derived)
        finetuning = self._finetuning(architecture)
        train_network(
            *(finetuning, self.folder, self.reporter, checkpoint),
            num_images=self.setup.config.schedule.resolution_images,
            checkpoint_seconds=seconds,
            num_metrics=num_metrics,
            tracker=self.tracker,
        )
        self._finish(architecture, finetuning.network)

    @property
    def engine(self) -> Engine:
        """The hardware that trains."""
        return self.supernet_training.engine

    @property
    def supernet(self) -> Supernet:
        """The supernet that is trained."""
        return self.supernet_training.supernet

    @property
    def _later_steps(self) -> int:
        """Number of steps of the supernet that cost about as much as training the network.

        A step of the search costs twice as much as one of the network: it trains gates too.
        """
        config, dataset = self.setup.config, self.setup.dataset
        per_epoch = max(1, len(dataset.train) // config.batch_size)
        steps = config.schedule.finetune_epochs * per_epoch + equivalent_steps(
            dataset,
            self.setup.space.resolution,
            batch_size=config.batch_size,
            num_images=config.schedule.resolution_images,
        )
        return steps // 2

    def _derive(self) -> Architecture:
        """Decode the gates and judge candidates; write gates, supernet, architecture last."""
        setup, folder, supernet = self.setup, self.folder, self.supernet
        scores = supernet.gates.scores(setup.space)
        preferred = None
        if folder is not None:
            scores.save(folder / layout.GATES)
            save_tensors(supernet.state_dict(), folder / layout.SUPERNET)
            preferred = decode_best(
                *(setup.space, scores, setup.table, setup.limits),
                setup.config.candidates,
            )
        found: list[Decoded] = self.engine.processes.from_main(preferred)
        evaluator = self.supernet_training.evaluator()
        judge = RememberingJudge(setup.space, evaluator.accuracies)
        architecture = derive_architecture(
            *(setup.space, scores, setup.goals, found),
            judge_all=judge.all if setup.config.candidates > 1 else None,
        )
        self._judge_fronts(scores, found, judge)
        evaluator.calibrate(setup.space.choices_of(architecture))
        if folder is not None:
            save_tensors(supernet.subnet_tensors(architecture), folder / layout.INHERITED)
            architecture.save(folder / layout.ARCHITECTURE)
            if judgement(architecture):
                self.reporter.message(judgement(architecture))
        return architecture

    def _judge_fronts(
        self, scores: GateScores, candidates: list[Decoded], judge: RememberingJudge
    ) -> None:
        """Judge networks for budgets over the reachable range of every device; write the fronts.

        Args:
            candidates: networks for the budget of the search, of which one is chosen.
        """
        setup, tables = self.setup, [goal.table for goal in self.setup.goals]
        planned = None
        if self.folder is not None:
            planned = plan_networks(setup.space, scores, tables, setup.limits)
        networks: list[Planned] = self.engine.processes.from_main(planned)
        if setup.config.candidates > 1:
            networks += [Planned(choices=one.choices, found=()) for one in candidates]
        judge.all([one.choices for one in networks])  # together, which is faster
        found = list(judged(setup.space, tables, networks, judge))
        if self.folder is not None:
            fronts_of(setup.space, tables, found).save(self.folder.path)

    def _finetuning(self, architecture: Architecture) -> NetworkTraining:
        """The training of the derived network, which starts from the weights it inherits."""
        config = self.setup.config
        network, inheritance = build_subnet(architecture), self.supernet_training.inheritance
        if self.folder is not None:
            load_weights(network, self.folder / layout.INHERITED)
        if inheritance is not None:
            inheritance.freeze(network)
        return NetworkTraining.configured(
            *("finetune", network, self.setup.dataset, config),
            num_epochs=config.schedule.finetune_epochs,
            engine=self.engine,
            teacher=self.supernet_training.teacher,
            make_optimizer=optimizer_for(inheritance),
        )

    def _finish(self, architecture: Architecture, network: Network) -> None:
        """Save the weights, test once, measure if the device is connected, write the result."""
        setup, folder = self.setup, self.folder
        if folder is not None:
            save_tensors(network.state_dict(), folder / layout.WEIGHTS)
        tested = outcome(
            *(network, setup.dataset, setup.augmenter(), folder, self.reporter, self.engine),
            keep=setup.config.keep,
        )
        if folder is None:
            return
        plain = build_subnet(architecture)
        load_weights(plain, folder / layout.WEIGHTS)
        measured = [
            measure_network(architecture, plain, goal.device, goal.priced, self.reporter)
            for goal in setup.goals
        ]
        result = SearchResult.of(
            *(folder.path, architecture, setup.goals, measured),
            **tested,
            pretrained=noted(folder.path),
            notes=notes_of(folder.path),
            seed=setup.config.seed,
            versions={"quadranas": __version__, "torch": torch.__version__},
        )
        folder.write_result(result.content())
