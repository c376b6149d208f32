"""Strategies by Optuna: its samplers, and its storages, which many processes can share.

Every choice of the space is a categorical parameter. A suggestion that exceeds a limit is
repaired, and the repaired network is judged in its place.
"""

import os
import re
import socket
from collections import Counter
from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager, suppress
from json import JSONDecodeError
from pathlib import Path
from random import Random
from typing import Any, final

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from optuna.trial import TrialState

from quadranas.errors import QuadranasError
from quadranas.files import FULL, cannot_write, require_readable
from quadranas.space.search_space import SKIPPED
from quadranas.strategies.interface import Problem, Report, Trial

Choice = tuple[int, ...] | None

NO_STUDY = (
    *(JSONDecodeError, UnicodeDecodeError, LookupError, TypeError, AttributeError),
    AssertionError,
)
"""What Optuna raises for files that it has not written."""

STUDY = "quadranas"
SQLITE = "sqlite:///"
FIRST = b'{"op_code"'
"""The beginning of a journal of Optuna."""

TPE_CANDIDATES = 8
"""Suggestions of which TPE takes the best one; with Optuna's 24, trials take longer."""

LOCK_SECONDS = 10
"""Age of a journal's lock after which its process counts as dead; it is held for milliseconds."""

PROBLEM, WORKER, LATENCY = "problem", "worker", "latency_ms"
"""Attributes of a study and of its trials."""


@final
class Tpe:
    """Tree-structured Parzen estimators (Bergstra et al., NeurIPS 2011), by Optuna."""

    def explore(self, problem: Problem, *, trials: int, seed: int, report: Report) -> None:
        """See `Strategy.explore`."""
        explore_study(problem, open_study("tpe", problem, seed), trials=trials, report=report)


@final
class Nsga2:
    """NSGA-II (Deb et al., 2002), by Optuna: accuracy and latency are two objectives."""

    def explore(self, problem: Problem, *, trials: int, seed: int, report: Report) -> None:
        """See `Strategy.explore`."""
        explore_study(problem, open_study("nsga2", problem, seed), trials=trials, report=report)


@final
class InStorage:
    """A strategy by Optuna whose trials are in a storage, which other processes may share.

    The trials of all processes are reported, those of the others at the end.

    Args:
        name: `tpe` or `nsga2`.
        storage: see `open_study`.
    """

    def __init__(self, name: str, storage: str) -> None:
        self.name, self.storage = name, storage

    def explore(self, problem: Problem, *, trials: int, seed: int, report: Report) -> None:
        """See `Strategy.explore`; `trials` counts those of all processes."""
        study = open_study(self.name, problem, seed, self.storage)
        own = explore_study(problem, study, trials=trials, report=report, storage=self.storage)
        with _naming(self.storage):
            others = trials_of(problem, study, without=own)
        for trial in others:
            report(trial)


def open_study(
    strategy: str, problem: Problem, seed: int, storage: str | None = None
) -> optuna.Study:
    """The study of a strategy, in memory or in a storage that is shared.

    Args:
        storage: the path of a journal file, or the URL of a database such as `sqlite:///x.db`.

    Raises:
        QuadranasError: the storage cannot be reached, or holds the study of another problem.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    is_nsga2 = strategy == "nsga2"
    sampler: optuna.samplers.BaseSampler = (
        optuna.samplers.NSGAIISampler(seed=seed)
        if is_nsga2
        else optuna.samplers.TPESampler(
            seed=seed, n_ei_candidates=TPE_CANDIDATES, constant_liar=storage is not None
        )
    )
    with _naming(storage):
        study = optuna.create_study(
            study_name=STUDY,
            storage=_storage(storage),
            sampler=sampler,
            directions=["maximize", "minimize"] if is_nsga2 else ["maximize"],
            load_if_exists=True,
        )
        _require_same(study, strategy, problem, storage)
    return study


@contextmanager
def _naming(storage: str | None) -> Iterator[None]:
    """Raise errors of a storage as `QuadranasError`; of Optuna, a driver, or the file system."""
    try:
        yield
    except (QuadranasError, UpdateFinishedTrialError):
        raise
    except Exception as error:
        if storage is None:
            raise
        if isinstance(error, OSError) and error.errno in FULL:
            then = "then run the same command again; the trials so far are kept"
            raise cannot_write(_shown(storage), error, then) from error
        kind = type(error).__name__
        lines = str(error).strip().splitlines()
        reason = lines[0] if lines else kind
        if isinstance(error, NO_STUDY):
            reason = f"it is not a storage of Optuna, or damaged ({kind})"
        raise QuadranasError(
            f"cannot use the storage {_shown(storage)}: {reason}",
            "Name a journal file, such as study.journal, or the URL of a database that is "
            "running, such as sqlite:///study.db.",
        ) from error


def _shown(storage: str) -> str:
    """The name of a storage without its password, for messages."""
    return re.sub(r"(://[^/@:]*):[^@]*@", r"\1:***@", storage)


def _storage(storage: str | None) -> Any:
    path = storage and storage.removeprefix(SQLITE)
    if path and "://" not in path and Path(path).exists():
        require_readable(path, "storage")
    if storage is None or "://" in storage:
        return storage
    lock = JournalFileSymlinkLock(storage, grace_period=LOCK_SECONDS)
    _repair(Path(storage), lock)
    backend = JournalFileBackend(storage, lock_obj=lock)
    return optuna.storages.JournalStorage(backend)


def _repair(path: Path, lock: JournalFileSymlinkLock) -> None:
    """Remove the incomplete last line that a full disk leaves, before the next is added to it."""
    if not path.exists():
        return
    lock.acquire()
    try:
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if content.startswith(FIRST) and 0 < whole < len(content):
            os.truncate(path, whole)
    finally:
        lock.release()


def _require_same(
    study: optuna.Study, strategy: str, problem: Problem, storage: str | None
) -> None:
    """Note the problem in a new study; refuse one of another problem.

    Raises:
        QuadranasError: names what differs.
    """
    limits = problem.limits
    wanted = {
        "strategy": strategy,
        "space": f"{problem.space.name} {problem.space.digest}",
        "device": problem.table.header.device,
        "budget_ms": limits.budget_ms,
        "max_params": limits.max_params,
        "max_macs": limits.max_macs,
        "max_size": limits.max_size,
        "max_memory": limits.max_memory,
        "also": {budget.device: budget.budget_ms for budget in limits.also},
    }
    there = study.user_attrs.get(PROBLEM)
    if there is None:
        return study.set_user_attr(PROBLEM, wanted)
    for key, value in wanted.items():
        # Studies of earlier versions lack the newer limits.
        if there.get(key, {} if key == "also" else None) != value:
            raise QuadranasError(
                f"the study in {_shown(storage or '')} is of another problem: its {key} is "
                f"{there.get(key)!r}, not {value!r}",
                "Name another storage, or explore what the study is of.",
            )


def explore_study(
    problem: Problem,
    study: optuna.Study,
    *,
    trials: int,
    report: Report,
    storage: str | None = None,
) -> set[int]:
    """Judge networks until a study has a number of finished trials, from all its processes.

    Args:
        storage: names the storage of the study in errors.

    Returns: the numbers of those of this process.
    """
    random, own = Random(0), set()
    with _naming(storage):
        retry_dead(study)
    while _has_fewer(study, trials, storage):
        # SQLite locks no rows, so two processes may take the same queued trial. The one that is
        # later finds it finished.
        with suppress(UpdateFinishedTrialError):
            with _naming(storage):
                asked = study.ask()
                asked.set_user_attr(WORKER, f"{socket.gethostname()} {os.getpid()}")
                choices = _suggested(problem, asked)
            trial = problem.trial(problem.repaired(choices, random))
            with _naming(storage):
                _tell(study, asked, trial)
            own.add(asked.number)
            report(trial)
    return own


def _has_fewer(study: optuna.Study, trials: int, storage: str | None) -> bool:
    with _naming(storage):
        return _num_begun(study) < trials


def _tell(study: optuna.Study, asked: optuna.Trial, trial: Trial) -> None:
    """Store the result of a trial.

    Raises:
        UpdateFinishedTrialError: another process has done it.
    """
    asked.set_user_attr("choices", dict(trial.choices))
    asked.set_user_attr(LATENCY, trial.latency_ms)
    is_one = len(study.directions) == 1
    try:
        study.tell(asked, trial.accuracy if is_one else [trial.accuracy, trial.latency_ms])
    except ValueError as error:  # Optuna's, if it reads the state first
        raise UpdateFinishedTrialError(str(error)) from error


def _num_begun(study: optuna.Study) -> int:
    states = (TrialState.COMPLETE, TrialState.RUNNING)
    return len(study.get_trials(deepcopy=False, states=states))


def _suggested(problem: Problem, trial: optuna.Trial) -> dict[str, Choice]:
    """The choices of a trial: how many blocks of each stage are kept, and candidates of all slots.

    Those of skipped blocks are asked for too: every trial then has the same parameters, which
    samplers draw together, in about half the time.
    """
    blocks = problem.space.blocks
    optional = Counter(block.stage for block in blocks if block.optional)
    left = {stage: trial.suggest_int(f"{stage}.depth", 0, n) for stage, n in optional.items()}
    choices: dict[str, Choice] = {}
    for block in blocks:
        picked = tuple(
            trial.suggest_categorical(f"{block.name}.{number}", list(range(len(slot.candidates))))
            if len(slot.candidates) > 1
            else 0
            for number, slot in enumerate(block.slots)
        )
        if block.optional:
            left[block.stage] -= 1
        is_skipped = block.optional and left[block.stage] < 0
        choices[block.name] = SKIPPED if is_skipped else picked
    return choices


def retry_dead(study: optuna.Study) -> int:
    """Fail the trials of processes of this machine that have died, and queue them again.

    Returns: their number.
    """
    dead = [
        trial
        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        if _is_dead(trial.user_attrs.get(WORKER, ""))
    ]
    num_retried = 0
    for trial in dead:
        # Another process may have done it, before the state is read here or after.
        with suppress(UpdateFinishedTrialError, ValueError):
            study.tell(trial.number, state=TrialState.FAIL)
            study.enqueue_trial(trial.params)
            num_retried += 1
    return num_retried


def _is_dead(worker: object) -> bool:
    """Whether a worker, named by host and process, has ended; False for other machines."""
    host, _, process = str(worker).rpartition(" ")
    if host != socket.gethostname() or not re.fullmatch("[0-9]{1,9}", process):
        return False
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def trials_of(
    problem: Problem, study: optuna.Study, *, without: Container[int] = ()
) -> list[Trial]:
    """The finished trials of all processes of a study, in their order, without some numbers.

    Trials that another program has added, with other attributes, are left out.
    """
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    read = (_read(problem, trial) for trial in trials if trial.number not in without)
    return [trial for trial in read if trial is not None]


def _read(problem: Problem, trial: optuna.trial.FrozenTrial) -> Trial | None:
    """A stored trial; None if it does not hold a network of the space within the limits."""
    accuracy, stored = (trial.values or [None])[0], trial.user_attrs.get("choices")
    if not isinstance(accuracy, float) or not isinstance(stored, Mapping):
        return None
    try:
        choices = {name: None if c is None else tuple(c) for name, c in stored.items()}
        network = problem.space.architecture(choices)
        is_ours = problem.space.choices_of(network) == choices
        is_within = is_ours and problem.excess(choices) is None
    except (LookupError, TypeError, ValueError, AssertionError, QuadranasError):
        return None
    if not is_within:
        return None
    latency_ms = problem.table.predict_ms(network)
    return Trial(choices=choices, accuracy=accuracy, latency_ms=latency_ms)
