"""Commands killed at a moment: what then lies on disk is what a killed process leaves there.

A process that is killed flushes no buffer and tidies nothing up, so the folder is copied at the
moment, and what happens to the folder afterwards does not count. `Server.start` is for those tests
in which a process really dies.
"""

import fnmatch
import os
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import pytest

from tests.command_line import KilledError, Outcome, call

When: TypeAlias = Literal["before", "after", "torn"]


@dataclass(frozen=True)
class Moment:
    """The nth call of a function whose last argument matches a pattern.

    Args:
        owner: the module or class, and the name of the function there.
        when: before the call, after it, or after it with the end of the file torn off that it
            writes.
    """

    owner: Any
    name: str
    pattern: str = "*"
    nth: int = 1
    when: When = "before"


def at(moment: Moment, patch: pytest.MonkeyPatch, react: Callable[[], None]) -> None:
    """Have something done at a moment."""
    real = getattr(moment.owner, moment.name)
    calls = 0

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        matches = fnmatch.fnmatch(str(args[-1]), moment.pattern)
        calls += matches
        now = matches and calls == moment.nth
        if now and moment.when == "before":
            react()
        result = real(*args, **kwargs)
        if now and moment.when == "after":
            react()
        if now and moment.when == "torn":
            with torn(Path(getattr(args[0], "path", args[-1]))):
                react()
        return result

    patch.setattr(moment.owner, moment.name, wrapper)


@contextmanager
def torn(path: Path) -> Iterator[None]:
    """Half of a file's last 100 bytes is missing for a while."""
    content = path.read_bytes()
    os.truncate(path, len(content) - min(50, len(content) // 2))
    yield
    path.write_bytes(content)


def snapshots(moments: Mapping[str, Moment], kept: Path, *command: str | Path) -> None:
    """Run a command; `kept` gets a copy of the working folder as it is at each of the moments."""

    def copy_to(folder: Path) -> Callable[[], None]:
        def copy() -> None:
            shutil.copytree(Path.cwd(), folder)

        return copy

    with pytest.MonkeyPatch.context() as patch:
        for name, moment in moments.items():
            at(moment, patch, copy_to(kept / name))
        outcome = call(*command)
    assert outcome.code == 0, outcome.err
    assert {path.name for path in kept.iterdir()} == set(moments)


def killed(moment: Moment, *command: str | Path) -> Outcome:
    """Run a command and kill it at a moment, with what that leaves in the working folder."""
    folder = Path.cwd()
    kept = folder.with_name(f"{folder.name}-killed")

    def kill() -> None:
        shutil.copytree(folder, kept)
        raise KilledError

    with pytest.MonkeyPatch.context() as patch:
        at(moment, patch, kill)
        outcome = call(*command)
    assert outcome.code == -signal.SIGKILL, outcome.err
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.copytree(kept, folder, dirs_exist_ok=True)
    shutil.rmtree(kept)
    return outcome
