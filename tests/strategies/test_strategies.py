"""The contract of a strategy, on a problem whose best network is known from a table."""

import math
import multiprocessing
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from quadranas.errors import QuadranasError
from quadranas.latency.table_files import find_table
from quadranas.space.cost import count_macs, count_params
from quadranas.space.footprint import peak_bytes, weight_bytes
from quadranas.space.search_space import SKIPPED, Choices
from quadranas.space.space_file import load_space
from quadranas.strategies.interface import Problem, Trial, ranked
from quadranas.strategies.limits import DeviceBudget, Limits, reachable_ms
from quadranas.strategies.registry import STRATEGIES, load_strategy
from tests.strategies.made_up import all_choices, equal_scores

SPACE = load_space("toy")
TABLE = find_table(SPACE, "vpu")
LOW, HIGH = reachable_ms(SPACE, TABLE)
OTHER = find_table(SPACE, "cpu")
OTHER_MS = sum(reachable_ms(SPACE, OTHER)) / 2.2
TRIALS = 150
"""Of the 400 networks of the space."""


def accuracy_of(choices: Choices) -> float:
    """Larger kernels and expansions help, the more the earlier; a block helps more by itself."""
    total = 0.0
    for place, (name, choice) in enumerate(sorted(choices.items())):
        if name.endswith(("entry", "head")):
            continue
        total += -0.3 / (place + 1) if choice is SKIPPED else sum(choice) / (place + 1)
    return 1 / (1 + math.exp(-total))


def scores_of_the_truth() -> Any:
    """Gates that have learnt which candidates help."""
    scores = equal_scores(SPACE)
    blocks = {}
    for place, (name, block) in enumerate(sorted(scores.blocks.items())):
        slots = tuple(tuple(i / (place + 2) for i in range(len(s))) for s in block.slots)
        keep = 0.3 / (place + 2) if block.skip is not None else 0.0
        blocks[name] = block.model_copy(update={"keep": keep, "slots": slots})
    return scores.model_copy(update={"blocks": blocks})


def problem_of(**limits: Any) -> Problem:
    given = {"budget_ms": LOW + 0.5 * (HIGH - LOW), **limits}
    return Problem(
        space=SPACE,
        table=TABLE,
        limits=Limits(**given),
        judge=accuracy_of,
        scores=scores_of_the_truth(),
    )


def best_of(problem: Problem) -> float:
    return max(accuracy_of(c) for c in all_choices(SPACE) if problem.excess(c) is None)


def explored(name: str, problem: Problem, *, trials: int = TRIALS, seed: int = 0) -> list[Trial]:
    found: list[Trial] = []
    if name == "gates":  # the first ones are the best
        trials = min(trials, 10)
    load_strategy(name)().explore(problem, trials=trials, seed=seed, report=found.append)
    return found


@pytest.fixture(params=STRATEGIES)
def name(request: pytest.FixtureRequest) -> str:
    if STRATEGIES[request.param].package:
        pytest.importorskip(STRATEGIES[request.param].package)
    return str(request.param)


LIMITS: list[Mapping[str, Any]] = [
    {},
    {"budget_ms": LOW},
    {"budget_ms": 10 * HIGH},
    {"max_params": count_params(SPACE.extreme(count_params, largest=False)) + 500},
    {"max_macs": count_macs(SPACE.extreme(count_macs, largest=False))},
    {"max_size": 30_000, "max_memory": 8_000},
    {"also": (DeviceBudget(table=OTHER, budget_ms=OTHER_MS),)},
]


@pytest.mark.parametrize("limits", LIMITS, ids=str)
def test_every_network_that_is_judged_is_within_the_limits(
    name: str, limits: Mapping[str, Any]
) -> None:
    problem = problem_of(**limits)
    found = explored(name, problem, trials=30)
    assert 1 <= len(found) <= 30
    for trial in found:
        network = SPACE.architecture(trial.choices)
        assert trial.latency_ms == TABLE.predict_ms(network) <= problem.limits.budget_ms
        assert count_params(network) <= (problem.limits.max_params or math.inf)
        assert count_macs(network) <= (problem.limits.max_macs or math.inf)
        assert sum(map(weight_bytes, network.ops())) <= (problem.limits.max_size or math.inf)
        memory = max(peak_bytes(op, TABLE.header.precision) for op in network.ops())
        assert memory <= (problem.limits.max_memory or math.inf)
        for budget in problem.limits.also:
            assert budget.table.predict_ms(network) <= budget.budget_ms
        assert trial.accuracy == accuracy_of(trial.choices)


def test_a_good_network_is_found(name: str) -> None:
    problem = problem_of()
    networks = sorted(accuracy_of(c) for c in all_choices(SPACE) if problem.excess(c) is None)
    found = ranked(explored(name, problem))[0].accuracy
    better = sum(accuracy > found for accuracy in networks)
    assert better / len(networks) <= 0.01
    assert found <= networks[-1] == best_of(problem)


def test_the_seed_decides(name: str) -> None:
    first, again = (explored(name, problem_of(), trials=40) for _ in range(2))
    assert first == again
    other = explored(name, problem_of(), trials=40, seed=1)
    assert (other == first) == (name == "gates")


def test_the_number_of_trials_is_kept(name: str) -> None:
    for trials in (1, 2, 7, 60):
        assert len(explored(name, problem_of(), trials=trials)) <= trials


def test_no_network_is_judged_twice(name: str) -> None:
    judged: list[Any] = []

    def judge(choices: Choices) -> float:
        judged.append(tuple(SPACE.architecture(choices).ops()))
        return accuracy_of(choices)

    problem = problem_of()
    problem = Problem(
        space=SPACE, table=TABLE, limits=problem.limits, judge=judge, scores=problem.scores
    )
    explored(name, problem, trials=60)
    assert len(set(judged)) == len(judged)


def test_unknown_strategies_and_missing_gates_are_refused() -> None:
    with pytest.raises(QuadranasError, match=r"unknown strategy 'evolutoin'.*evolution"):
        load_strategy("evolutoin")
    bare = Problem(space=SPACE, table=TABLE, limits=problem_of().limits, judge=accuracy_of)
    with pytest.raises(QuadranasError, match="needs the gates"):
        explored("gates", bare)


def work(path: str, trials: int) -> None:
    from quadranas.strategies.studies import explore_study, open_study

    problem = problem_of()
    study = open_study("tpe", problem, os.getpid(), path)
    explore_study(problem, study, trials=trials, report=lambda trial: None)


def die(path: str) -> None:
    """Begin a trial and end without a word, as a killed process does."""
    from quadranas.strategies.studies import WORKER, _suggested, open_study

    study = open_study("tpe", problem_of(), 0, path)
    asked = study.ask()
    asked.set_user_attr(WORKER, f"{os.uname().nodename} {os.getpid()}")
    _suggested(problem_of(), asked)
    os._exit(1)


@pytest.mark.parametrize("storage", ["study.journal", "sqlite:///study.db"])
def test_processes_share_a_study_and_a_dead_one_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, storage: str
) -> None:
    pytest.importorskip("optuna")
    from optuna.trial import TrialState

    from quadranas.strategies.studies import explore_study, open_study, trials_of

    monkeypatch.chdir(tmp_path)
    context = multiprocessing.get_context("fork")
    dead = context.Process(target=die, args=(storage,))
    dead.start()
    dead.join()
    workers = [context.Process(target=work, args=(storage, 20)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    problem = problem_of()
    study = open_study("tpe", problem, 0, storage)
    explore_study(problem, study, trials=24, report=lambda trial: None)
    found = trials_of(problem, study)
    assert 24 <= len(found) <= 25  # two processes may begin the last one at the same time
    assert not study.get_trials(states=(TrialState.RUNNING,))
    failed = study.get_trials(states=(TrialState.FAIL,))
    assert len(failed) == 1
    retried = [
        t
        for t in study.get_trials(states=(TrialState.COMPLETE,))
        if t.params.items() >= failed[0].params.items()
    ]
    assert retried
    assert all(problem.excess(trial.choices) is None for trial in found)


def test_storages_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    from quadranas.strategies.studies import open_study

    problem = problem_of()
    path = str(tmp_path / "study.journal")
    open_study("tpe", problem, 0, path)
    other = problem_of(budget_ms=HIGH)
    with pytest.raises(QuadranasError, match="of another problem: its budget_ms is"):
        open_study("tpe", other, 0, path)
    with pytest.raises(QuadranasError, match="of another problem: its strategy is 'tpe'"):
        open_study("nsga2", problem, 0, path)
    for bad in (str(tmp_path / "no" / "x.journal"), "nosuchdb://host/x", "sqlite:////no/x.db"):
        with pytest.raises(QuadranasError, match="cannot use the storage") as caught:
            open_study("tpe", problem, 0, bad)
        assert "journal file" in caught.value.hint
    os.mkfifo(tmp_path / "pipe.journal")
    (tmp_path / "zeros.db").symlink_to("/dev/zero")
    for endless in (str(tmp_path / "pipe.journal"), f"sqlite:///{tmp_path}/zeros.db"):
        with pytest.raises(QuadranasError, match=r"cannot read storage .*, not a file"):
            open_study("tpe", problem, 0, endless)
    for content in ("text\n", '{"op_code": 99}\n', "[1]\n", '{"op_code": 0}\n', "\xff\n"):
        (tmp_path / "other").write_text(content, "latin-1")
        with pytest.raises(QuadranasError, match="it is not a storage of Optuna, or damaged"):
            open_study("tpe", problem, 0, str(tmp_path / "other"))
    with pytest.raises(QuadranasError, match=r"the storage nosuchdb://me:\*\*\*@host/x: "):
        open_study("tpe", problem, 0, "nosuchdb://me:secret@host/x")


def test_trials_of_other_programs_are_left_out(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    from optuna.trial import create_trial

    from quadranas.strategies.studies import explore_study, open_study, trials_of

    problem, path = problem_of(), str(tmp_path / "study.journal")
    study = open_study("tpe", problem, 0, path)
    explore_study(problem, study, trials=2, report=lambda trial: None, storage=path)
    ours = trials_of(problem, study)
    assert len(ours) == 2
    stored = dict(ours[0].choices)
    changed = {name: [99] for name in stored}
    for choices in (None, "text", {}, {"nothing": [0]}, changed, stored | {"more": [0]}):
        study.add_trial(create_trial(value=0.9, user_attrs={"choices": choices}))
    study.ask().set_user_attr("worker", f"{os.uname().nodename} x")
    study.ask().set_user_attr("worker", 7)
    with Path(path).open("a", encoding="utf-8") as file:
        file.write('{"op_code": 4, "wor')  # the disk was full here
    assert trials_of(problem, open_study("tpe", problem, 0, path)) == ours
    study = open_study("tpe", problem, 0, path)
    explore_study(problem, study, trials=11, report=ours.append, storage=path)
    assert len(ours) == 3
