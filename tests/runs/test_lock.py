"""One writer per folder: the lock names its owner, and the owner's death releases it."""

import errno
import fcntl
import os
import re
import signal
from pathlib import Path

import pytest

from quadranas.errors import QuadranasError
from quadranas.runs.lock import FolderInUseError, FolderLock
from quadranas.runs.resume import choose_folder
from quadranas.runs.run_folder import RunFolder
from quadranas.runs.whole_folder import whole_folder
from tests.command_line import listing, until


@pytest.fixture
def lock(tmp_path: Path) -> FolderLock:
    return FolderLock(tmp_path / ".lock", tmp_path)


def test_a_second_writer_is_refused_until_the_first_ends(lock: FolderLock, tmp_path: Path) -> None:
    second = FolderLock(lock.path, tmp_path)
    with lock:
        owner = (
            rf"{re.escape(str(tmp_path))} is in use by process {os.getpid()} of user .+ on host"
        )
        with pytest.raises(
            FolderInUseError, match=rf"{owner} .+ since \d{{4}}-.* UTC\nWait until"
        ):
            second.acquire()
        assert f"process {os.getpid()} " in lock.path.read_text("utf-8")
        lock.acquire()  # it has it already
    assert listing(tmp_path) == []
    with second:
        assert second.is_held
    assert not second.is_held


def test_death_releases_the_lock(lock: FolderLock) -> None:
    child = os.fork()
    if not child:
        lock.acquire()
        signal.pause()
    until(lambda: lock.path.is_file() and bool(lock.path.read_text("utf-8")))
    with pytest.raises(FolderInUseError, match=f"process {child} "):
        lock.acquire()
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert f"process {child} " in lock.path.read_text("utf-8")  # nothing tidied up
    with lock:
        assert f"process {os.getpid()} " in lock.path.read_text("utf-8")


def test_a_lock_that_is_a_link_is_not_followed(lock: FolderLock, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine", encoding="utf-8")
    lock.path.symlink_to(tmp_path / "thesis.tex")
    with pytest.raises(QuadranasError, match=r"cannot write .*\.lock"):
        lock.acquire()
    assert (tmp_path / "thesis.tex").read_text("utf-8") == "mine"


def test_the_text_of_a_lock_is_printed_safely(lock: FolderLock, tmp_path: Path) -> None:
    with lock:
        lock.path.write_text("anna\x1b[2J\nroot" + "x" * 9999, encoding="utf-8")
        with pytest.raises(FolderInUseError) as caught:
            FolderLock(lock.path, tmp_path).acquire()
    assert "in use by anna?[2J?root" in caught.value.message
    assert len(caught.value.message) < 600


def test_a_file_system_without_locks(lock: FolderLock, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(handle: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    with lock:
        assert not lock.is_supported


def test_a_folder_in_the_making_has_one_writer(tmp_path: Path) -> None:
    with whole_folder(tmp_path / "new") as folder:
        (folder / "file").touch()
        with (
            pytest.raises(FolderInUseError, match="new is in use"),
            whole_folder(tmp_path / "new"),
        ):
            pass
    assert listing(tmp_path) == ["new", "new/file"]


def test_two_runs_are_not_begun_in_one_folder(tmp_path: Path) -> None:
    first, second = RunFolder(tmp_path / "run"), RunFolder(tmp_path / "run")
    first.create(0, {"seed": 0})
    with pytest.raises(QuadranasError, match="exists already"):
        second.create(0, {"seed": 1})
    (first / "config.yaml").unlink()  # as if it had not come to write it
    with pytest.raises(FolderInUseError):
        second.create(0, {"seed": 1})
    first.unlock()


def test_a_run_in_progress_is_not_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    older, newer = (RunFolder(Path("runs") / name) for name in ("older-1", "newer-1"))
    for age, folder in enumerate((newer, older)):
        folder.create(0, {})
        os.utime(folder / "config.yaml", (1e9 - age, 1e9 - age))
    older.unlock()
    chosen = choose_folder("", lambda path: True)
    assert chosen.path == older.path
    with pytest.raises(QuadranasError, match=r"unfinished: runs/newer-1 \(in use by process "):
        choose_folder("", lambda path: True)  # nor one that was just chosen
    for folder in (chosen, newer):
        folder.unlock()
