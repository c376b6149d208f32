"""The run folder: results of a search or a training, and checkpoints to resume it.

Checkpoints are torch files with a digest in their name, loaded without executing code. The newest
two are kept: if the last one is damaged, the one before it is used.
"""

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import yaml

from quadranas.data.preprocessing import Preprocessing, load_preprocessing
from quadranas.errors import QuadranasError
from quadranas.files import TEMPORARY, read_text, write_atomically, write_json
from quadranas.inspection.records import StepRecord
from quadranas.reporter import Reporter
from quadranas.runs import layout

CHECKPOINT = re.compile(r"^(\d{9})-([0-9a-f]{16})\.pt$")
KEPT_CHECKPOINTS = 2
BYTES_PER_WEIGHT = 4


class RunFolder:
    """A folder with `config.yaml`, `metrics.jsonl`, `checkpoints/` and results."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metrics = path / layout.METRICS
        self.inspection = path / layout.RECORDS
        self.checkpoints = path / layout.CHECKPOINTS

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

    def create(self, needed_bytes: int, config: Mapping[str, Any]) -> None:
        """Make the folder with its `config.yaml`, which marks it as a run that can be resumed.

        Args:
            needed_bytes: approximate number of bytes that the run will write.
            config: the content of `config.yaml` (`with_header`).

        Raises:
            QuadranasError: the folder exists with content or cannot be written, or the disk is
                too full; nothing is left behind.
        """
        self.refuse_content()
        new = [p for p in (self.checkpoints, self.path, *self.path.parents) if not p.exists()]
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
            self.write_config(config)
            self.tidy()
        except QuadranasError:
            with suppress(OSError):
                for made in new:
                    made.rmdir()
            raise

    def refuse_content(self) -> None:
        """Refuse a folder with content; remnants of an interrupted `create` are allowed.

        Raises:
            QuadranasError: the folder has content, or cannot be read.
        """
        try:
            if not self.path.exists():
                return
            if self.path.is_dir() and all(map(self._is_remnant, self.path.iterdir())):
                return
        except OSError as error:
            raise QuadranasError(
                f"cannot read the output {self.path}: {error.strerror}", "Choose another --output."
            ) from error
        raise QuadranasError(
            f"the output {self.path} exists already",
            "Add --resume to continue it, or choose another --output."
            if self.is_run and not self.is_finished
            else "Choose another --output.",
        )

    def _is_remnant(self, path: Path) -> bool:
        if path == self.checkpoints:
            return path.is_dir() and not any(path.iterdir())
        return path.match(f".{layout.CONFIG}.*{TEMPORARY}")

    def tidy(self) -> None:
        """Remove the temporary files of a process that was killed."""
        for pattern in (f".*{TEMPORARY}", f"checkpoints/*{TEMPORARY}"):
            for left in self.path.glob(pattern):
                left.unlink(missing_ok=True)

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Write `config.yaml`; the content is made by `with_header`."""
        write_atomically(self / layout.CONFIG, yaml.safe_dump(dict(config), sort_keys=False))

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
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        temporary = self.checkpoints / f"unfinished{TEMPORARY}"
        newest = next(iter(self._checkpoint_files()), None)
        number = 1 + (int(newest.name[:9]) if newest else 0)
        try:
            torch.save(dict(state), temporary)
            digest = _digest(temporary)
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(self.checkpoints / f"{number:09d}-{digest}.pt")
        except (OSError, RuntimeError) as error:
            temporary.unlink(missing_ok=True)
            raise QuadranasError(
                f"cannot write a checkpoint to {self.checkpoints}: {error}",
                "Free some space, then continue with --resume.",
            ) from error
        for old in self._checkpoint_files()[KEPT_CHECKPOINTS:]:
            old.unlink(missing_ok=True)

    def latest_checkpoint(self, reporter: Reporter) -> dict[str, Any] | None:
        """The newest complete checkpoint, or None; removes damaged ones with a warning."""
        remaining = self._checkpoint_files()
        while remaining:
            path = remaining.pop(0)
            if _digest(path) == path.stem.partition("-")[2]:
                state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
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


def _append_line(path: Path, line: Mapping[str, Any]) -> None:
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise QuadranasError(
            f"cannot write {path}: {error.strerror}",
            "Free some space, then continue with --resume.",
        ) from error


def _keep_lines(path: Path, num_lines: int) -> None:
    if path.exists():
        lines = read_text(path, "record of the run").splitlines(keepends=True)[:num_lines]
        write_atomically(path, "".join(lines))


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
