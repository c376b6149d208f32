"""Beginning or resuming a run: its folder, and whether the given options match it."""

import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic

from torch import nn

from quadranas.data.preprocessing import Preprocessing
from quadranas.errors import QuadranasError, RunInterruptedError
from quadranas.reporter import Reporter
from quadranas.runs import layout
from quadranas.runs.config import Config, SearchConfig, given_keys, merged
from quadranas.runs.config_file import ConfigFile, read_config_file, with_header
from quadranas.runs.run_folder import BYTES_PER_WEIGHT, RunFolder
from quadranas.validation import validate

COPIES_ON_DISK = 8
"""Maximum number of copies of a network's weights in a run folder: two checkpoints with weights
and two moments each, the initial and the final weights."""

WITHOUT_EFFECT = ("verify",)
"""Keys of a configuration that do not affect results and may differ when a run is resumed."""


@dataclass(frozen=True)
class RunStart(Generic[Config]):
    """A run that begins or is resumed.

    Args:
        config: the given configuration, possibly partial; when resuming, that of the run.
    """

    command: str
    folder: RunFolder
    config: Config
    resuming: bool

    @property
    def is_finished(self) -> bool:
        """Whether the run to resume is finished already."""
        return self.resuming and self.folder.is_finished

    def create(self, config: Config, network: nn.Module, preprocessing: Preprocessing) -> None:
        """Make the folder of a new run, or check that the data of a resumed run are unchanged.

        Args:
            config: the complete configuration.
            network: the network whose weights the checkpoints will hold.

        Raises:
            QuadranasError: the folder cannot be written, the disk is too full, or the data of the
                run have changed.
        """
        if not self.resuming:
            num_weights = sum(p.numel() for p in network.parameters())
            needed_bytes = num_weights * BYTES_PER_WEIGHT * COPIES_ON_DISK
            keys = config.model_dump(mode="json")
            self.folder.create(needed_bytes, with_header(self.command, keys))
        self.folder.keep_preprocessing(preprocessing)

    def checkpoint(self, reporter: Reporter) -> dict[str, Any] | None:
        """The checkpoint to continue from; None to start at the beginning."""
        return self.folder.latest_checkpoint(reporter) if self.resuming else None


def begin_or_resume(
    command: str,
    given: Config,
    folder: RunFolder,
    reporter: Reporter,
    *,
    resume: bool,
    is_enough: bool = True,
) -> RunStart[Config]:
    """Decide whether a run begins or is resumed; nothing is written for a new one yet.

    Args:
        resume: resume the run in the folder, or begin one if it holds none.
        is_enough: whether the given options suffice to begin a run.

    Raises:
        QuadranasError: the folder holds something else, or a run that does not match the given
            options.
    """
    if resume and folder.is_run:
        config = matching_config(command, folder.path, given)
        if folder.is_finished:
            reporter.message(f"{folder.path} is finished already")
        else:
            folder.tidy()
        return RunStart(command, folder, config, resuming=True)
    folder.refuse_content()
    if resume and not is_enough:
        raise QuadranasError(
            f"{folder.path} holds no run to continue",
            "Name another folder with --output, or begin one with --device and --budget.",
        )
    if resume:
        reporter.message(f"{folder.path} holds no run to continue; beginning one")
    return RunStart(command, folder, given, resuming=False)


@contextmanager
def resumable(command: str, folder: RunFolder) -> Iterator[None]:
    """Turn an interrupt into an error that names the command to resume the run.

    Raises:
        RunInterruptedError: in place of a `KeyboardInterrupt`.
    """
    try:
        yield
    except KeyboardInterrupt as error:
        if not folder.is_run:
            raise RunInterruptedError(
                "interrupted before the run began; nothing was written"
            ) from error
        raise RunInterruptedError(
            f"interrupted; the run in {folder.path} can be continued",
            f"Continue with: {layout.resume_command(command, folder.path)}",
        ) from error


def run_name(given: SearchConfig) -> str:
    """The default name of a search: space, device and budget, if they are given."""
    keys = given_keys(given)
    parts = []
    for key in ("space", "device", "budget"):
        text = "".join((keys.get(key) or "").split())
        parts.append(Path(text).stem if text.endswith((".yaml", ".yml")) else text)
    return "-".join(filter(None, parts))


def matching_config(command: str, folder: Path, given: Config) -> Config:
    """The configuration of a run to resume, if the given options match it.

    Raises:
        QuadranasError: an option that differs, or a folder that another command wrote.
    """
    model = type(given)
    file = read_config_file(folder / layout.CONFIG)
    _check_command(command, folder, file)
    there = validate(model, file.keys, file.path)
    keys = {key: value for key, value in given_keys(given).items() if key not in WITHOUT_EFFECT}
    wanted = validate(model, merged(there.model_dump(), keys), file.path)
    difference = _first_difference(there.model_dump(), wanted.model_dump())
    if difference is not None:
        key, old, new = difference
        raise QuadranasError(
            f"cannot resume {folder}: the run has {key} {old!r}, got {new!r}",
            "Omit the option, or start a new run with another --output.",
        )
    return there.model_copy(update={key: getattr(given, key) for key in WITHOUT_EFFECT})


def _check_command(command: str, folder: Path, file: ConfigFile) -> None:
    if file.command == command:
        return
    if file.command in layout.RESUMABLE:
        raise QuadranasError(
            f"{folder} is a run of `quadranas {file.command}`, not of `quadranas {command}`",
            f"Continue it with: {layout.resume_command(file.command, folder)}",
        )
    writer = f"`quadranas {file.command}`" if file.command else "another command"
    raise QuadranasError(
        f"{folder} was written by {writer} and holds no run of `quadranas {command}`",
        f"Train its network with: quadranas train {shlex.quote(str(folder))}"
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


def _first_difference(
    one: Mapping[str, Any], other: Mapping[str, Any], prefix: str = ""
) -> tuple[str, Any, Any] | None:
    """The first key path at which two nested mappings with the same keys differ, both values."""
    for key, value in one.items():
        if isinstance(value, Mapping):
            found = _first_difference(value, other[key], f"{prefix}{key}.")
            if found is not None:
                return found
        elif value != other[key]:
            return f"{prefix}{key}", value, other[key]
    return None


def choose_folder(name: str, accept: Callable[[Path], bool] | None = None) -> Path:
    """A folder under `runs/`: a new one, or the newest unfinished one that can be resumed.

    Args:
        name: name of a new folder; a number is appended.
        accept: when resuming, a function that returns whether a run may be chosen.

    Raises:
        QuadranasError: no run can be resumed.
    """
    runs = Path("runs")
    if accept is None:
        number = 1
        while (runs / f"{name}-{number}").exists():
            number += 1
        return runs / f"{name}-{number}"
    found = sorted(runs.glob(f"*/{layout.CONFIG}"), key=lambda path: path.stat().st_mtime)
    unfinished = [p.parent for p in reversed(found) if not RunFolder(p.parent).is_finished]
    chosen = next(filter(accept, unfinished), None)
    if chosen is None:
        others = ", ".join(str(path) for path in unfinished)
        raise QuadranasError(
            f"no unfinished run under {runs}/ matches the given options; "
            f"unfinished: {others or 'none'}",
            "Name the run with --output, or omit --resume to start a new one.",
        )
    return chosen
