"""Damaged files of every format: read as valid data, or refused with one clear error.

The fast tests damage every format a few times. `make test-slow` does it hundreds of times, and
with QUADRANAS_FUZZ_EXAMPLES=5000 as often as that; the damage is the same in every run.
"""

import ast
import os
import resource
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from quadranas.errors import QuadranasError
from quadranas.files import PACKAGE
from tests.fuzzing.damage import File, files
from tests.fuzzing.readers import READERS, Reader

MANY = int(os.environ.get("QUADRANAS_FUZZ_EXAMPLES", "150"))
FEW = 4
MAX_SECONDS, MAX_GROWTH_KB, MAX_MESSAGE = 20, 1_500_000, 5_000
"""Limits on reading one file: CPU time, growth of the peak memory, and length of the error."""

FORBIDDEN = (
    *("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "socket.connect"),
    *("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.symlink", "shutil.rmtree"),
)
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC

INDIRECT = {
    "load_complete": "calls load_table",
    "load_convnext": "gets tensors",
    "load_own_code": "runs the code that the command line names",
    "load_published_tensors": "gets tensors",
    "load_strategy": "gets a name",
    "load_timm": "gets a name",
    "load_tensors": "gets tensors",
    "open_device": "opens a device",
    "open_device_argument": "calls load_device",
    "open_watch": "opens a file of the kernel",
    "open_bench": "opens a device",
    "open_backend": "opens a device",
    "open_data": "calls load_dataset",
    "open_test_images": "calls load_dataset",
    "open_export_images": "calls load_dataset",
    "open_searched": "calls load_scores and the other readers of a run",
    "open_study": "opens a storage of Optuna",
    "open_writer": "opens a runtime",
    "open_work": "calls open_bundle's writer",
    "open_launch": "reads no file",
    "read_here": "gets numbers",
}
"""Functions with the name of a reader that need none in READERS, and why."""

watched: list[str] | None = None
"""What a reader did apart from reading; None while nothing is watched."""


def watch(event: str, arguments: tuple[Any, ...]) -> None:
    if watched is None:
        return
    if event in FORBIDDEN:
        watched.append(f"{event} {arguments[:2]}")
    elif event == "open" and "__pycache__" not in str(arguments[0]):
        mode, flags = arguments[1], arguments[2]
        if set(mode or "") & set("wax+") or flags & WRITING:
            watched.append(f"opened {arguments[0]} to write")


sys.addaudithook(watch)


class TooSlowError(Exception):
    """A file took longer to read than `MAX_SECONDS` of CPU time."""


@contextmanager
def limits(reader: Reader) -> Iterator[None]:
    """Fail if a reader takes too long or too much memory, or writes or starts anything."""

    def stop(*_: object) -> None:
        raise TooSlowError

    global watched
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    previous = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, MAX_SECONDS)
    watched = None if reader.writes else []
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, previous)
        done, watched = watched, None
    assert not done
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MAX_GROWTH_KB


def read(reader: Reader, path: Path) -> None:
    with limits(reader):
        try:
            reader.read(path)
            text = "valid"
        except QuadranasError as error:
            text = str(error)
    assert 0 < len(text) <= MAX_MESSAGE


def place(reader: Reader, folder: Path, run: Path) -> tuple[Path, Callable[[bytes], None]]:
    """Write a valid file; returns it, and a function that reads other content in its place."""
    original = folder / "original"
    original.mkdir()
    path = reader.make(original, run).relative_to(original)
    used = folder / "used"
    shutil.copytree(original, used)

    def check(content: bytes) -> None:
        if reader.writes:
            shutil.rmtree(used)
            shutil.copytree(original, used)
        (used / path).write_bytes(content)
        read(reader, used / path)

    return original / path, check


def fuzz(reader: Reader, folder: Path, run: Path, max_examples: int) -> None:
    valid, check = place(reader, folder, run)

    @settings(
        max_examples=max_examples,
        phases=[Phase.generate],  # shrinking takes longer than all examples
        suppress_health_check=list(HealthCheck),
    )
    @given(file=files(valid.read_bytes(), reader.spoil))
    def damage(file: File) -> None:
        try:
            check(file.content)
        except Exception as error:
            kept = folder / f"failing{valid.suffix}"
            kept.write_bytes(file.content)
            error.add_note(f"the file is kept as {kept}")
            raise

    damage()


@pytest.mark.parametrize("name", READERS)
def test_a_valid_file_is_read(name: str, tmp_path: Path, finished_run: Path) -> None:
    path = READERS[name].make(tmp_path, finished_run)
    READERS[name].read(path)


@pytest.mark.parametrize("name", READERS)
def test_attacks_do_no_harm(name: str, tmp_path: Path, finished_run: Path) -> None:
    _, check = place(READERS[name], tmp_path, finished_run)
    for content in (b"", *READERS[name].attacks):
        check(content() if callable(content) else content)


@pytest.mark.parametrize("name", READERS)
def test_damaged_files(name: str, tmp_path: Path, finished_run: Path) -> None:
    fuzz(READERS[name], tmp_path, finished_run, FEW)


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_many_damaged_files(name: str, tmp_path: Path, finished_run: Path) -> None:
    fuzz(READERS[name], tmp_path, finished_run, MANY)


def test_every_reader_is_registered() -> None:
    covered = {function for reader in READERS.values() for function in reader.functions}
    found = {
        definition.name
        for file in PACKAGE.rglob("*.py")
        for definition in ast.parse(file.read_text(encoding="utf-8")).body
        if isinstance(definition, ast.FunctionDef)
        and definition.name.startswith(("load_", "open_", "read_"))
    }
    missing = sorted(found - covered - set(INDIRECT))
    assert not missing, f"add {', '.join(missing)} to READERS in tests/fuzzing/readers.py"
    assert set(INDIRECT) | covered <= found, "remove names that no longer exist"
