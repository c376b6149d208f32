"""The run folder: what a search or a training leaves behind, and what it needs to continue.

Checkpoints are torch files with a digest in their name, loaded without executing anything; the
newest two are kept, so that a torn one falls back to the one before.
"""

import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save
from torch import Tensor

from quadranas.errors import QuadranasError
from quadranas.files import read_json, read_text, write_atomically, write_json
from quadranas.reporter import Reporter

CHECKPOINT = re.compile(r"^(\d{9})-([0-9a-f]{16})\.pt$")
KEPT_CHECKPOINTS = 2
BYTES_PER_WEIGHT = 4


class RunFolder:
    """A folder with `config.yaml`, `metrics.jsonl`, `checkpoints/` and results."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metrics = path / "metrics.jsonl"
        self.checkpoints = path / "checkpoints"

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def create(self, needed_bytes: int) -> None:
        """Make the folder, and see that it can be written and has room.

        Raises:
            QuadranasError: it exists with content, cannot be written, or the disk is too full.
        """
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise QuadranasError(
                f"the output {self.path} exists already",
                "Add --resume to continue it, or choose another --output.",
            )
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
            self.checkpoints.rmdir()
            raise QuadranasError(
                f"the disk of {self.path} has {free / 2**20:.0f} MiB free; this run needs about "
                f"{needed_bytes / 2**20:.0f} MiB",
                "Free some space or choose another --output.",
            )

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Write the resolved configuration."""
        write_atomically(self / "config.yaml", yaml.safe_dump(dict(config), sort_keys=False))

    def append_metrics(self, line: Mapping[str, Any]) -> None:
        """Add one line to `metrics.jsonl`."""
        try:
            with self.metrics.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise QuadranasError(f"cannot write {self.metrics}: {error.strerror}") from error

    def keep_metrics(self, num_lines: int) -> None:
        """Drop the lines written after a checkpoint was taken."""
        if self.metrics.exists():
            lines = read_text(self.metrics, "metrics").splitlines(keepends=True)[:num_lines]
            write_atomically(self.metrics, "".join(lines))

    def save_checkpoint(self, state: Mapping[str, Any]) -> None:
        """Write a checkpoint; the one before stays, older ones go.

        Raises:
            QuadranasError: it cannot be written; the checkpoints before are untouched.
        """
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        temporary = self.checkpoints / "unfinished.tmp"
        newest = next(iter(self._checkpoint_files()), None)
        number = 1 + (int(newest.name[:9]) if newest else 0)
        try:
            torch.save(dict(state), temporary)
            digest = _digest(temporary)
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
        """The newest whole checkpoint, or none; says so when it passes over a torn one."""
        for path in self._checkpoint_files():
            if _digest(path) == CHECKPOINT.fullmatch(path.name).group(2):  # type: ignore[union-attr]
                state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
                return state
            reporter.warning(f"checkpoint {path} is torn; falling back to the one before")
        return None

    def _checkpoint_files(self) -> list[Path]:
        """Newest first."""
        found = self.checkpoints.glob("*.pt") if self.checkpoints.is_dir() else []
        return sorted((p for p in found if CHECKPOINT.fullmatch(p.name)), reverse=True)

    def result(self) -> dict[str, Any]:
        """The content of `result.json`.

        Raises:
            QuadranasError: the run is unfinished, or this is no run folder.
        """
        path = self / "result.json"
        if not path.is_file():
            raise QuadranasError(
                f"{self.path} holds no finished run: result.json is missing",
                f"Continue it with: quadranas search --resume --output {self.path}",
            )
        return read_json(path, "result")

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Write `result.json`: the sign that the run is finished."""
        write_json(self / "result.json", dict(result))


def choose_folder(name: str, resume: bool) -> Path:
    """A folder under `runs/`: a new one, or the newest unfinished one to resume.

    Raises:
        QuadranasError: there is nothing to resume.
    """
    runs = Path("runs")
    taken = [p for p in runs.glob(f"{name}*") if p.is_dir()] if runs.is_dir() else []
    if resume:
        unfinished = [p for p in taken if not (p / "result.json").is_file()]
        if not unfinished:
            raise QuadranasError(
                f"no unfinished run {name!r} under {runs}", "Name it with --output."
            )
        return max(unfinished, key=lambda path: path.stat().st_mtime)
    number = 1
    while (runs / f"{name}-{number}").exists():
        number += 1
    return runs / f"{name}-{number}"


def agreed(stored: dict[str, Any], given: Mapping[str, Any], output: Path) -> dict[str, Any]:
    """The stored configuration, if nothing given contradicts it."""
    for key, value in given.items():
        if not isinstance(value, dict) and stored.get(key) != value:
            raise QuadranasError(
                f"cannot resume {output}: {key} is {stored.get(key)!r} there, not {value!r}",
                "Leave the option out, or start a new run with another --output.",
            )
    return stored


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write named tensors as safetensors, atomically."""
    write_atomically(path, save({name: t.contiguous() for name, t in tensors.items()}))


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
