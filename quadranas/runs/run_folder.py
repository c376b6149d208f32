"""The run folder: results of a search or a training, and checkpoints to resume it.

Checkpoints are torch files with a digest in their name, loaded without executing code. The newest
two are kept: if the last one is damaged, the one before it is used.
"""

import hashlib
import io
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

import torch

from quadranas.data.preprocessing import Preprocessing, load_preprocessing
from quadranas.errors import QuadranasError, refuse_unwritable
from quadranas.files import (
    TEMPORARY,
    cannot_write,
    dump_yaml,
    missing_folders,
    read_text,
    remove_empty,
    write_atomically,
    write_json,
)
from quadranas.inspection.records import StepRecord
from quadranas.reporter import Reporter
from quadranas.runs import layout
from quadranas.runs.conditions import Conditions
from quadranas.runs.lock import FolderInUseError, FolderLock

CHECKPOINT = re.compile(r"^(\d{9})-([0-9a-f]{16})\.pt$")
KEPT_CHECKPOINTS = 2
DIGEST_LENGTH = 16
BYTES_PER_WEIGHT = 4
THEN_RESUME = "then continue with --resume"
"""The end of the hint of an error that interrupts a run."""

CHECKPOINT_KEYS = {"phase", "step", "num_metrics", "sums", "counts", "state"}


class OutputExistsError(QuadranasError):
    """The folder for new results has content."""


def next_name(path: Path) -> Path:
    """The next free path of a numbered series: `x-2` after `x-1`."""
    name, _, number = path.name.rpartition("-")
    following = (path.with_name(f"{name}-{n}") for n in count(int(number) + 1))
    return next(place for place in following if not place.exists())


class RunFolder:
    """A folder with `config.yaml`, `metrics.jsonl`, `checkpoints/` and results.

    Args:
        is_numbered: whether the name ends with a number that was chosen here: then `create` takes
            the next free one if another process has made the folder in the meantime.
    """

    def __init__(self, path: Path, *, is_numbered: bool = False) -> None:
        self.is_numbered = is_numbered
        self._move_to(path)

    def _move_to(self, path: Path) -> None:
        self.path = path
        self.metrics = path / layout.METRICS
        self.inspection = path / layout.RECORDS
        self.checkpoints = path / layout.CHECKPOINTS
        self._lock = FolderLock(path / layout.LOCK, path)

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    @property
    def is_run(self) -> bool:
        """Whether the folder holds a run, finished or not."""
        return (self / layout.CONFIG).is_file()

    @property
    def is_finished(self) -> bool:
        """Whether the run is finished."""
        return (self / layout.RESULT).is_file()

    @property
    def is_protected(self) -> bool:
        """Whether a lock excludes other writers; False where the file system has no locks."""
        return self._lock.is_supported

    def lock(self) -> None:
        """Become the only process that writes to the folder; see `FolderLock.acquire`."""
        self._lock.acquire()

    def unlock(self) -> None:
        """Let other processes write to the folder."""
        self._lock.release()

    def create(
        self, needed_bytes: int, config: Mapping[str, Any], conditions: Conditions | None = None
    ) -> None:
        """Make and lock the folder; its `config.yaml` marks it as a run that can be resumed.

        A numbered folder that another process has made in the meantime is left to that process.

        Args:
            needed_bytes: approximate number of bytes that the run will write.
            config: the content of `config.yaml` (`with_header`).

        Raises:
            QuadranasError: the folder exists with content, is in use or cannot be written, or the
                disk is too full; nothing is left behind.
        """
        while True:
            try:
                return self._create(needed_bytes, config, conditions)
            except (FolderInUseError, OutputExistsError):
                if not self.is_numbered:
                    raise
                self._move_to(next_name(self.path))

    def _create(
        self, needed_bytes: int, config: Mapping[str, Any], conditions: Conditions | None
    ) -> None:
        self.refuse_content()
        new = missing_folders(self.checkpoints)
        try:
            try:
                self.checkpoints.mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryFile(dir=self.path) as probe:
                    probe.write(b"0")
                free = shutil.disk_usage(self.path).free
            except OSError as error:
                raise QuadranasError(
                    f"cannot write to the output {self.path}: {error.strerror}",
                    "Choose another --output.",
                ) from error
            if free < needed_bytes:
                raise QuadranasError(
                    f"the disk of {self.path} has {free / 2**20:.1f} MiB free; this run needs "
                    f"about {needed_bytes / 2**20:.1f} MiB",
                    "Free some space or choose another --output.",
                )
            self.lock()
            self.refuse_content()  # of a process that made the folder at the same time
            if conditions is not None:
                conditions.save(self.path)
            self.write_config(config)
            self.tidy()
        except FolderInUseError:
            raise
        except QuadranasError:
            with suppress(OSError):
                if self._lock.is_held and not self.is_run:
                    (self / layout.CONDITIONS).unlink(missing_ok=True)
                self.unlock()
            remove_empty(new)
            raise

    def refuse_content(self) -> None:
        """Refuse a folder with content; remnants of an interrupted `create` are allowed.

        Raises:
            QuadranasError: the folder has content, or cannot be read.
        """
        refuse_unwritable(str(self.path.absolute()), "the output")
        try:
            if not self.path.exists():
                return
            if self.path.is_dir() and all(map(self._is_remnant, self.path.iterdir())):
                return
        except OSError as error:
            raise QuadranasError(
                f"cannot read the output {self.path}: {error.strerror}", "Choose another --output."
            ) from error
        raise OutputExistsError(
            f"the output {self.path} exists already",
            "Add --resume to continue it, or choose another --output."
            if self.is_run and not self.is_finished
            else "Remove it, or choose another --output.",
        )

    def _is_remnant(self, path: Path) -> bool:
        if path == self.checkpoints:
            return path.is_dir() and not any(path.iterdir())
        begun = (layout.CONFIG, layout.CONDITIONS)
        return path.name in (layout.LOCK, layout.CONDITIONS) or any(
            path.match(f".{name}.*{TEMPORARY}") for name in begun
        )

    def tidy(self) -> None:
        """Remove the temporary files of a process that was killed."""
        for pattern in (f".*{TEMPORARY}", f"checkpoints/*{TEMPORARY}"):
            for left in self.path.glob(pattern):
                left.unlink(missing_ok=True)

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Write `config.yaml`; the content is made by `with_header`."""
        write_atomically(self / layout.CONFIG, dump_yaml(dict(config)))

    def keep_preprocessing(self, preprocessing: Preprocessing) -> None:
        """Write the preprocessing of the images, or compare it with the file that exists.

        Raises:
            QuadranasError: the file was written for other images.
        """
        path = self / layout.PREPROCESSING
        if not path.is_file():
            preprocessing.save(path)
        elif load_preprocessing(path) != preprocessing:
            raise QuadranasError(
                f"cannot resume {self.path}: its data have changed since it was begun",
                "Restore the images, or start a new run with another --output.",
            )

    def append_metrics(self, line: Mapping[str, Any]) -> None:
        """Add one line to `metrics.jsonl`."""
        _append_line(self.metrics, line)

    def append_inspection(self, record: StepRecord) -> None:
        """Add one line to the file of inspections."""
        _append_line(self.inspection, record.model_dump(mode="json"))

    def keep_metrics(self, num_lines: int) -> None:
        """Drop the lines of metrics written after a checkpoint was taken."""
        _keep_lines(self.metrics, num_lines)

    def keep_inspections(self, num_lines: int) -> None:
        """Drop the lines of inspections written after a checkpoint was taken."""
        _keep_lines(self.inspection, num_lines)

    def save_checkpoint(self, state: Mapping[str, Any]) -> None:
        """Write a checkpoint; keep the previous one and remove older ones.

        Raises:
            QuadranasError: it cannot be written; earlier checkpoints are untouched.
        """
        temporary = self.checkpoints / f"unfinished{TEMPORARY}"
        newest = next(iter(self._checkpoint_files()), None)
        number = 1 + (int(newest.name[:9]) if newest else 0)
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            torch.save(dict(state), temporary)
            digest = _digest(temporary)
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(self.checkpoints / f"{number:09d}-{digest}.pt")
            for old in self._checkpoint_files()[KEPT_CHECKPOINTS:]:
                old.unlink(missing_ok=True)
        except (OSError, RuntimeError) as error:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise cannot_write(
                f"a checkpoint to {self.checkpoints}", error, THEN_RESUME
            ) from error

    def latest_checkpoint(self, reporter: Reporter) -> dict[str, Any] | None:
        """The newest complete checkpoint, or None; removes damaged ones with a warning."""
        remaining = self._checkpoint_files()
        while remaining:
            path = remaining.pop(0)
            state = _read_checkpoint(path)
            if state is not None:
                return state
            path.unlink()
            instead = f"falling back to {remaining[0].name}" if remaining else "beginning again"
            reporter.warning(f"checkpoint {path} is damaged; {instead}")
        return None

    def _checkpoint_files(self) -> list[Path]:
        """The checkpoints, newest first."""
        found = self.checkpoints.glob("*.pt") if self.checkpoints.is_dir() else []
        return sorted(
            (p for p in found if CHECKPOINT.fullmatch(p.name) and p.is_file()), reverse=True
        )

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Write `result.json`, which marks the run as finished."""
        write_json(self / layout.RESULT, dict(result))


def _read_checkpoint(path: Path) -> dict[str, Any] | None:
    """The content of a checkpoint; None if it is damaged, or holds more than tensors."""
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest()[:DIGEST_LENGTH] != path.stem.partition("-")[2]:
        return None
    try:
        # From memory, since torch raises an OSError for a damaged file too.
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception:  # torch's reader has no common error class
        return None
    return state if isinstance(state, dict) and state.keys() >= CHECKPOINT_KEYS else None


def _append_line(path: Path, line: Mapping[str, Any]) -> None:
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(_finite(line), allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise cannot_write(path, error, THEN_RESUME) from error


def _finite(content: Any) -> Any:
    """Plain data with None for numbers that JSON does not have, as of a training that diverges."""
    if isinstance(content, Mapping):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def _keep_lines(path: Path, num_lines: int) -> None:
    if path.exists():
        lines = read_text(path, "record of the run").splitlines(keepends=True)[:num_lines]
        write_atomically(path, "".join(lines))


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:DIGEST_LENGTH]
