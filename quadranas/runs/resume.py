"""Beginning or resuming a run: its folder, and whether the given options match it."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Generic

import torch
from torch import nn

from quadranas.acceleration.engine import Engine
from quadranas.data.dataset import Dataset
from quadranas.data.decoding import CorruptImageError
from quadranas.data.identity import EarlierData
from quadranas.data.preprocessing import Preprocessing
from quadranas.errors import ProcessesEndedError, QuadranasError, RunInterruptedError
from quadranas.files import file_name, refuse_links
from quadranas.reporter import Reporter
from quadranas.runs import layout
from quadranas.runs.conditions import (
    Conditions,
    left_out_note,
    load_conditions,
    note_corrupt,
)
from quadranas.runs.config import Config, SearchConfig, TrainingConfig, given_keys, merged
from quadranas.runs.config_file import (
    ConfigFile,
    absolute,
    is_place,
    read_config_file,
    same_place,
    with_header,
)
from quadranas.runs.lock import FolderInUseError
from quadranas.runs.next_command import resume_command, train_command
from quadranas.runs.run_folder import BYTES_PER_WEIGHT, RunFolder, next_name
from quadranas.validation import validate

COPIES_ON_DISK = 8
"""Maximum number of copies of a network's weights in a run folder: two checkpoints with weights
and two moments each, the initial and the final weights."""

COPIES_OF_THE_AVERAGE, COPIES_OF_THE_BEST = 2, 3
"""The same for the average of the weights and for the best epoch: one in each checkpoint, and a
file for the best epoch. The network that a search starts from is one more copy at most."""

MAY_DIFFER = ("verify", "workers", "accelerator", "tracking")
"""Keys of a configuration that may differ when a run is resumed: they affect the last bits of the
results at most."""


@dataclass(frozen=True)
class RunStart(Generic[Config]):
    """A run that begins or is resumed.

    Args:
        config: the given configuration, possibly partial; when resuming, that of the run.
        conditions: when resuming, those under which the run was begun, if they are recorded.
    """

    command: str
    folder: RunFolder
    config: Config
    reporter: Reporter
    resuming: bool
    conditions: Conditions | None = None

    @property
    def is_finished(self) -> bool:
        """Whether the run to resume is finished already."""
        return self.resuming and self.folder.is_finished

    @cached_property
    def earlier(self) -> EarlierData | None:
        """The images of a run to resume; None if it has none, or does not record them."""
        return None if self.conditions is None else self.conditions.earlier(self.folder.path)

    def create(
        self,
        config: Config,
        network: nn.Module,
        dataset: Dataset,
        engine: Engine,
        teacher: str | None = None,
    ) -> None:
        """Make the folder of a new run, or record what has changed in a resumed one.

        Args:
            config: the complete configuration.
            network: the network whose weights the checkpoints will hold.
            engine: the hardware that trains.
            teacher: identifier of the weights of the network to learn from.

        Raises:
            QuadranasError: the folder cannot be written, the disk is too full, or the data of the
                run or its teacher have changed.
        """
        content = with_header(self.command, config.model_dump(mode="json"))
        images = dataset.files.identity() if dataset.files and not self.earlier else None
        here = Conditions.here(images, engine, teacher)
        if not self.resuming:
            num_weights = sum(p.numel() for p in network.parameters())
            needed_bytes = num_weights * BYTES_PER_WEIGHT * _num_copies(config)
            self.folder.create(needed_bytes, content, here)
            _warn_without_locks(self.folder, self.reporter)
        self.folder.keep_preprocessing(Preprocessing.of(dataset))
        if self.resuming:
            conditions = self.conditions or here
            self._require_teacher(conditions, here)
            self._note_changes(dataset, conditions, engine)
            if with_header(self.command, self._recorded_keys()) != content:
                self.folder.write_config(content)

    def _require_teacher(self, begun: Conditions, here: Conditions) -> None:
        if begun.teacher is not None and begun.teacher != here.teacher:
            raise QuadranasError(
                f"the run in {self.folder.path} learned from a teacher whose weights have the "
                f"digest {begun.teacher}; the teacher now has {here.teacher}",
                "Restore the teacher's file, or begin a new run.",
            )

    def _note_changes(self, dataset: Dataset, conditions: Conditions, engine: Engine) -> None:
        """Record and print in which respects this is no longer the run that was begun."""
        left_out = dataset.files.skipped if dataset.files and self.earlier else ()
        notes = [left_out_note(left_out)] if left_out else []
        noted = conditions.with_notes(*conditions.changes(engine), *notes)
        if noted != self.conditions:
            noted.save(self.folder.path)
        for note in noted.notes:
            self.reporter.warning(note)

    def _recorded_keys(self) -> Mapping[str, Any]:
        return read_config_file(self.folder / layout.CONFIG).keys

    def checkpoint(self) -> dict[str, Any] | None:
        """The checkpoint to continue from; None to start at the beginning."""
        return self.folder.latest_checkpoint(self.reporter) if self.resuming else None


def _num_copies(config: Config) -> int:
    """Maximum number of copies of a network's weights in the folder of a run."""
    if not isinstance(config, TrainingConfig):
        return COPIES_ON_DISK
    average = COPIES_OF_THE_AVERAGE if config.weights.ema else 0
    best = COPIES_OF_THE_BEST if config.keep == "best" else 0
    initial = isinstance(config, SearchConfig) and config.init is not None
    return COPIES_ON_DISK + average + best + initial


def begin_or_resume(
    command: str,
    given: Config,
    folder: RunFolder,
    reporter: Reporter,
    *,
    resume: bool,
    needed: str = "",
) -> RunStart[Config]:
    """Decide whether a run begins or is resumed; nothing is written for a new one yet.

    Args:
        resume: resume the run in the folder, or begin one if it holds none.
        needed: what the given options lack to begin a run.

    Raises:
        QuadranasError: the folder holds something else, or a run that is in use or does not match
            the given options.
    """
    if resume and folder.is_run:
        return _resume(command, given, folder, reporter)
    if not folder.is_numbered:
        folder.refuse_content()
    if resume and needed:
        raise QuadranasError(
            f"{folder.path} holds no run to continue",
            f"Name another folder with --output, or begin one with {needed}.",
        )
    if resume:
        reporter.message(f"{folder.path} holds no run to continue; beginning one")
    return RunStart(command, folder, given, reporter, resuming=False)


def _resume(
    command: str, given: Config, folder: RunFolder, reporter: Reporter
) -> RunStart[Config]:
    """Resume the run in a folder; errors as in `begin_or_resume`."""
    if not folder.is_finished:
        folder.lock()
        _warn_without_locks(folder, reporter)
    conditions = load_conditions(folder.path)
    moves = conditions is not None and conditions.images is not None
    config = matching_config(command, folder.path, given, moves=moves)
    if folder.is_finished:  # perhaps by the process that had the lock before
        reporter.message(f"{folder.path} is finished already")
    else:
        folder.tidy()
        _require_data(command, folder.path, config)
        _restore_threads(conditions, reporter)
    return RunStart(command, folder, config, reporter, resuming=True, conditions=conditions)


def _warn_without_locks(folder: RunFolder, reporter: Reporter) -> None:
    if not folder.is_protected:
        reporter.warning(
            f"the file system of {folder.path} has no locks; do not resume this run while it runs"
        )


def _require_data(command: str, folder: Path, config: Config) -> None:
    """Refuse to resume without the images, with a hint for images that were moved."""
    for key in ("data", "val"):
        place = getattr(config, key)
        if place and not Path(place).exists():
            raise QuadranasError(
                f"cannot resume {folder}: its images are no longer at {place}",
                "If they were moved, name the new place: "
                f"{resume_command(command, folder)} --{key} PLACE",
            )


def _restore_threads(conditions: Conditions | None, reporter: Reporter) -> None:
    """Compute with as many threads as when the run was begun, so that the bits are the same."""
    here = torch.get_num_threads()
    if conditions is None:
        reporter.message(f"this run does not record its number of threads; continuing with {here}")
    elif conditions.threads != here:
        torch.set_num_threads(conditions.threads)
        reporter.message(
            f"continuing with {conditions.threads} threads as before instead of {here}, for the "
            "same bits"
        )


@contextmanager
def resumable(command: str, folder: RunFolder, network: str = "") -> Iterator[None]:
    """Hold the lock of a run until its end, and turn interrupts and system errors into messages.

    Args:
        network: the arguments that name the network of a training.

    Raises:
        RunInterruptedError: in place of a `KeyboardInterrupt`.
        QuadranasError: in place of an `OSError`.
    """
    threads = torch.get_num_threads()
    try:
        yield
    except KeyboardInterrupt as error:
        if not folder.is_run:
            raise RunInterruptedError(
                "interrupted before the run began; nothing was written"
            ) from error
        raise RunInterruptedError(
            f"interrupted; the run in {folder.path} can be continued",
            f"Continue with: {resume_command(command, folder.path, network)}",
        ) from error
    except ProcessesEndedError as error:
        if folder.is_run:
            error.hint = f"Continue with: {resume_command(command, folder.path, network)}"
        raise
    except CorruptImageError as error:
        with suppress(QuadranasError):  # the image is the error to report
            note_corrupt(folder.path, error.members)
        raise
    except OSError as error:
        raise QuadranasError(
            f"cannot read or write {error.filename or folder.path}: {error.strerror or error}",
            "Remove the cause, then repeat the command with --resume.",
        ) from error
    finally:
        folder.unlock()
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)


def run_name(given: SearchConfig) -> str:
    """The default name of a search: space, device and budget, if they are given."""
    keys = given_keys(given)
    parts = []
    for key in ("space", "device", "budget"):
        text = "".join((keys.get(key) or "").split())
        parts.append(Path(text).stem if text.endswith((".yaml", ".yml")) else text)
    return "-".join(filter(None, parts))


def matching_config(command: str, folder: Path, given: Config, *, moves: bool = False) -> Config:
    """The configuration of a run to resume, if the given options match it.

    Paths match if they lead to the same place. Corrupt images may be skipped from now on.

    Args:
        moves: also accept another place of the images, whose content is compared later.

    Raises:
        QuadranasError: an option that differs, a folder that another command wrote, or a link out
            of the folder.
    """
    model = type(given)
    refuse_links(folder)
    file = read_config_file(folder / layout.CONFIG)
    _check_command(command, folder, file)
    there = validate(model, file.keys, file.path)
    keys = {key: value for key, value in given_keys(given).items() if key not in MAY_DIFFER}
    wanted = validate(model, merged(there.model_dump(), keys), file.path)
    changes = {key: getattr(given, key) for key in MAY_DIFFER}
    for key, old, new in _differences(there.model_dump(), wanted.model_dump()):
        if is_place(key, old) and is_place(key, new) and same_place(old, new):
            continue
        if key == "also" and absolute(key, old) == absolute(key, new):
            continue
        is_moved = moves and key in ("data", "val") and old and new
        if not is_moved and (key, new) != ("skip_corrupt", True):
            raise QuadranasError(
                f"cannot resume {folder}: the run has {key} {old!r}, got {new!r}",
                "Omit the option, or start a new run with another --output.",
            )
        changes[key] = new
    return there.model_copy(update=changes)


def _check_command(command: str, folder: Path, file: ConfigFile) -> None:
    if file.command == command:
        return
    if file.command in layout.RESUMABLE:
        raise QuadranasError(
            f"{folder} is a run of `quadranas {file.command}`, not of `quadranas {command}`",
            f"Continue it with: {resume_command(file.command, folder)}",
        )
    writer = f"`quadranas {file.command}`" if file.command else "another command"
    raise QuadranasError(
        f"{folder} was written by {writer} and holds no run of `quadranas {command}`",
        f"Train its network with: {train_command(folder)}"
        if file.command
        else "Start a new run with another --output.",
    )


def can_resume(command: str, folder: Path, given: Config) -> bool:
    """Whether a folder holds a run that matches the given options."""
    try:
        matching_config(command, folder, given)
    except QuadranasError:
        return False
    return True


def _differences(
    one: Mapping[str, Any], other: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    """The key paths at which two nested mappings with the same keys differ, both values."""
    for key, value in one.items():
        if isinstance(value, Mapping):
            yield from _differences(value, other[key], f"{prefix}{key}.")
        elif value != other[key]:
            yield f"{prefix}{key}", value, other[key]


def choose_folder(name: str, accept: Callable[[Path], bool] | None = None) -> RunFolder:
    """A folder under `runs/`: a new one, or the newest unfinished one that can be resumed.

    A run to resume is returned locked; runs that another process works on are passed over.

    Args:
        name: name of a new folder; a number is appended.
        accept: when resuming, a function that returns whether a run may be chosen.

    Raises:
        QuadranasError: no run can be resumed.
    """
    runs, name = Path("runs"), file_name(name)
    if accept is None:
        return RunFolder(next_name(runs / f"{name}-0"), is_numbered=True)
    unfinished, in_use = _unfinished(runs), {}
    for folder in filter(lambda folder: accept(folder.path), unfinished):
        try:
            folder.lock()
        except FolderInUseError as error:
            in_use[folder.path] = error.message.removeprefix(f"{folder.path} is ")
            continue
        if not folder.is_finished:
            return folder
        folder.unlock()
    others = ", ".join(
        f"{folder.path} ({in_use[folder.path]})" if folder.path in in_use else str(folder.path)
        for folder in unfinished
    )
    raise QuadranasError(
        f"no unfinished run under {runs}/ matches the given options; "
        f"unfinished: {others or 'none'}",
        "Name the run with --output, or omit --resume to start a new one.",
    )


def _unfinished(runs: Path) -> list[RunFolder]:
    """The unfinished runs in a folder, newest first."""
    found = sorted(runs.glob(f"*/{layout.CONFIG}"), key=lambda path: path.stat().st_mtime)
    folders = [RunFolder(path.parent) for path in reversed(found)]
    return [folder for folder in folders if not folder.is_finished]
