"""explore: let a strategy choose among the sub-networks of a trained supernet."""

from functools import partial
from pathlib import Path
from typing import Any

from quadranas.errors import QuadranasError
from quadranas.latency.device import Device
from quadranas.reporter import Reporter
from quadranas.runs import layout
from quadranas.runs.results import DeriveResult
from quadranas.strategies.derivation import Provenance, check_limits, named_architecture
from quadranas.strategies.interface import Problem, Strategy, Trial, ranked
from quadranas.strategies.registry import STRATEGIES, load_strategy
from quadranas.training.searched import Choice, Chosen, Request, open_searched
from quadranas.validation import check_seed

DEFAULT_TRIALS = 100


class ExploreResult(DeriveResult):
    """The result of `quadranas explore`: the best network that a strategy has judged.

    Args:
        strategy: name of the strategy.
        trials: number of networks that were judged, the same one counted every time.
        trials_path: the file with all of them, one JSON object a line.
    """

    strategy: str
    trials: int
    trials_path: Path

    def moved_to(self, folder: Path) -> "ExploreResult":
        """The same result for the folder in which it was found."""
        changes = {"trials_path": folder / layout.TRIALS}
        return super().moved_to(folder).model_copy(update=changes)


def explore(
    run: str | Path,
    *,
    strategy: str,
    device: str | Path | Device,
    budget: str,
    trials: int = DEFAULT_TRIALS,
    storage: str | None = None,
    seed: int = 0,
    output: str | Path | None = None,
    table: str | Path | None = None,
    allow_commands: bool = False,
    reporter: Reporter | None = None,
    **limits: Any,
) -> ExploreResult:
    """Judge sub-networks of a trained supernet, and write the best one.

    Every network is within the budget. It is judged with the weights of the supernet, on training
    images that these were not trained on.

    Args:
        run: the folder of a search whose supernet is trained.
        strategy: name of a strategy (`quadranas.strategies.registry.STRATEGIES`).
        device, budget, table, allow_commands, limits: as for `derive`.
        trials: number of networks to judge at most, by all processes that share a storage.
        storage: the path of a journal file, or the URL of a database, through which processes
            share the trials of a strategy by Optuna.
        seed: random seed of the strategy.
        output: a new folder; default: `RUN/explored/STRATEGY-DEVICE-BUDGET`.
        reporter: receives messages and progress. Default: nothing is shown.

    Raises:
        QuadranasError: no trained supernet, missing images, an infeasible budget, a storage that
            cannot be used, or an output that exists.
    """
    check_seed(seed)
    method = _open_strategy(strategy, storage)
    request = Request.of(
        *(device, budget, limits),
        *(lambda name: Path(run) / layout.EXPLORED / f"{strategy}-{name}", output),
        table=table,
        allow_commands=allow_commands,
    )
    searched = open_searched(Path(run))
    searched.require_images()
    choose = partial(_choose, strategy, method, trials, seed)
    reporter = reporter or Reporter(quiet=True)
    return request.answer(searched, reporter, choose, ExploreResult)


def _open_strategy(name: str, storage: str | None) -> Strategy:
    """The strategy, with its storage.

    Raises:
        QuadranasError: there is no such strategy, or it has no storage.
    """
    found = load_strategy(name)
    if storage is None:
        return found()
    if not STRATEGIES[name].has_storage:
        those = ", ".join(key for key, facts in STRATEGIES.items() if facts.has_storage)
        raise QuadranasError(
            f"the strategy {name} has no --storage", f"Strategies with a storage: {those}."
        )
    from quadranas.strategies.studies import InStorage

    return InStorage(name, storage)


def _choose(strategy: str, method: Strategy, number: int, seed: int, choice: Choice) -> Chosen:
    searched, supernet = choice.searched, choice.supernet
    check_limits(searched.space, choice.table, choice.limits)
    evaluator = searched.evaluator(supernet)
    problem = Problem(
        space=searched.space,
        table=choice.table,
        limits=choice.limits,
        judge=evaluator.accuracy,
        scores=searched.scores,
    )
    trials: list[Trial] = []
    handle = choice.reporter.phase(strategy, number, 0)

    def report(trial: Trial) -> None:
        trials.append(trial)
        choice.reporter.advance(handle, min(len(trials), number))

    method.explore(problem, trials=number, seed=seed, report=report)
    best = ranked(trials)[0]
    evaluator.calibrate(best.choices)
    made: dict[str, Provenance] = {
        "strategy": strategy,
        "candidates": len(trials),
        "inherited_accuracy": best.accuracy,
    }
    architecture = named_architecture(searched.space, choice.goals, best.choices, made)
    return Chosen(
        architecture,
        {"strategy": strategy, "trials": len(trials), "trials_path": Path(layout.TRIALS)},
        [_plain(trial) for trial in trials],
    )


def _plain(trial: Trial) -> dict[str, Any]:
    return {
        "accuracy": trial.accuracy,
        "latency_ms": trial.latency_ms,
        "choices": {name: choice for name, choice in trial.choices.items() if choice != (0,)},
    }
