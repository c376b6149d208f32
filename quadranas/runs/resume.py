"""Resuming: which run is continued, and whether what is given agrees with it."""

import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from quadranas.errors import QuadranasError
from quadranas.files import read_yaml
from quadranas.runs.config import Config, DataConfig, SearchConfig, TrainConfig, merged
from quadranas.runs.run_folder import RunFolder
from quadranas.validation import validate

VERBS: dict[type[DataConfig], str] = {SearchConfig: "search", TrainConfig: "train"}


def run_name(overrides: Mapping[str, Any]) -> str:
    """What a search is called by default: space, device and budget, as far as they are given."""
    parts = []
    for key in ("space", "device", "budget"):
        text = "".join(str(overrides.get(key) or "").split())
        parts.append(Path(text).stem if text.endswith((".yaml", ".yml")) else text)
    return "-".join(filter(None, parts))


def matching_config(
    model: type[Config], output: Path, given: Mapping[str, Any], source: str | Path
) -> dict[str, Any]:
    """The configuration of a run that is to be continued, if nothing given contradicts it.

    Raises:
        QuadranasError: a contradiction, or the run of another verb.
    """
    path = output / "config.yaml"
    stored = read_yaml(path, "configuration")
    for other, verb in VERBS.items():
        if other is not model and set(stored) == set(other.model_fields):
            raise QuadranasError(
                f"{output} is a run of `quadranas {verb}`, not of `quadranas {VERBS[model]}`",
                f"Continue it with: {resume_command(verb, output)}",
            )
    there = validate(model, stored, path)
    wanted = validate(model, merged(stored, given), source)
    difference = _first_difference(there.model_dump(), wanted.model_dump())
    if difference is not None:
        key, old, new = difference
        raise QuadranasError(
            f"cannot resume {output}: {key} is {old!r} there, not {new!r}",
            "Leave the option out, or start a new run with another --output.",
        )
    return stored


def can_resume(model: type[Config], output: Path, given: Mapping[str, Any]) -> bool:
    """Whether a folder holds a run that could be continued with what is given."""
    try:
        matching_config(model, output, given, "command line")
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


def resume_command(verb: str, output: Path) -> str:
    """The command that continues a run."""
    folder = shlex.quote(str(output))
    argument = f" {folder}" if verb == "train" else ""
    return f"quadranas {verb}{argument} --resume --output {folder}"


def choose_folder(name: str, accept: Callable[[Path], bool] | None = None) -> Path:
    """A folder under `runs/`: a new one, or the newest unfinished one that can be resumed.

    Args:
        name: of a new one; a number is added.
        accept: when resuming: whether a run is one of those asked for.

    Raises:
        QuadranasError: there is nothing to resume.
    """
    runs = Path("runs")
    if accept is None:
        number = 1
        while (runs / f"{name}-{number}").exists():
            number += 1
        return runs / f"{name}-{number}"
    found = sorted(runs.glob("*/config.yaml"), key=lambda path: path.stat().st_mtime)
    unfinished = [p.parent for p in reversed(found) if not RunFolder(p.parent).is_finished]
    chosen = next(filter(accept, unfinished), None)
    if chosen is None:
        others = ", ".join(str(path) for path in unfinished)
        raise QuadranasError(
            f"no unfinished run under {runs}/ agrees with what is given; "
            f"unfinished: {others or 'none'}",
            "Name the run with --output, or leave out --resume to start one.",
        )
    return chosen
