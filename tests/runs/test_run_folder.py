"""The run folder: made whole or not at all, checkpoints that can be trusted, folders by name."""

import json
import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from quadranas.data.preprocessing import Preprocessing
from quadranas.errors import QuadranasError
from quadranas.network.weights import save_tensors
from quadranas.reporter import Reporter
from quadranas.runs.resume import choose_folder
from quadranas.runs.run_folder import RunFolder
from quadranas.runs.whole_folder import whole_folder
from tests.command_line import listing

CONFIG = {"seed": 0}


class Warnings(Reporter):
    """Keeps what it is told."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.texts: list[str] = []

    def warning(self, text: str) -> None:
        self.texts.append(text)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    made = RunFolder(tmp_path / "run")
    made.create(0, CONFIG)
    made.unlock()
    return made


def state(number: int) -> dict[str, Any]:
    tensors: dict[str, Tensor] = {"weights": torch.full((100,), float(number))}
    return {
        "phase": "train",
        "step": number,
        "num_metrics": 0,
        "sums": {},
        "counts": {},
        "state": tensors,
    }


def files(folder: RunFolder) -> list[Path]:
    return sorted(folder.checkpoints.iterdir())


def tear(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def test_create_makes_a_run(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "a" / "b" / "run")
    assert not folder.is_run
    folder.create(0, CONFIG)
    assert folder.is_run
    assert not folder.is_finished
    assert listing(tmp_path) == [
        "a",
        "a/b",
        "a/b/run",
        "a/b/run/.lock",
        "a/b/run/checkpoints",
        "a/b/run/config.yaml",
    ]
    folder.write_result({"accuracy": 1.0})
    assert folder.is_finished
    assert json.loads((folder / "result.json").read_text("utf-8")) == {"accuracy": 1.0}


def test_content_is_refused(tmp_path: Path, folder: RunFolder) -> None:
    with pytest.raises(QuadranasError, match="exists already\nAdd --resume to continue it, or"):
        folder.create(0, CONFIG)
    folder.write_result({})
    with pytest.raises(
        QuadranasError, match="exists already\nRemove it, or choose another --output"
    ):
        folder.create(0, CONFIG)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    with pytest.raises(
        QuadranasError, match="exists already\nRemove it, or choose another --output"
    ):
        RunFolder(tmp_path / "other").create(0, CONFIG)
    with pytest.raises(QuadranasError, match="exists already"):
        RunFolder(tmp_path / "other" / "thesis.tex").create(0, CONFIG)
    assert listing(tmp_path / "other") == ["thesis.tex"]


def test_a_folder_whose_name_cannot_be_recorded_is_refused(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9")
    with pytest.raises(QuadranasError, match=r"the output '.*caf\\udce9' is not UTF-8"):
        RunFolder(path).create(0, {})
    with pytest.raises(QuadranasError, match="is not UTF-8"), whole_folder(path):
        pass
    assert listing(tmp_path) == []


def test_what_an_interrupted_create_leaves_is_no_content(tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / ".config.yaml.abcd1234.tmp").touch()
    RunFolder(tmp_path / "run").create(0, CONFIG)
    assert listing(tmp_path / "run") == [".lock", "checkpoints", "config.yaml"]


@pytest.mark.parametrize("fault", ["full", "file", "configuration"])
def test_a_failed_create_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    def no_space(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    needed_bytes = 2**62 if fault == "full" else 0
    if fault == "file":
        monkeypatch.setattr("tempfile.TemporaryFile", no_space)
    if fault == "configuration":
        monkeypatch.setattr("tempfile.mkstemp", no_space)
    message = "this run needs about" if fault == "full" else "cannot write .*: No space left"
    with pytest.raises(QuadranasError, match=message):
        RunFolder(tmp_path / "a" / "run").create(needed_bytes, CONFIG)
    assert listing(tmp_path) == []


def test_tidy_removes_temporary_files_only(folder: RunFolder) -> None:
    kept = {"mine.tmp", "checkpoints/000000001-0123456789abcdef.pt", ".hidden"}
    left = {".table.json.12345678.tmp", "checkpoints/unfinished.tmp"}
    for name in kept | left:
        (folder / name).touch()
    folder.tidy()
    assert set(listing(folder.path)) == kept | {"checkpoints", "config.yaml"}


def test_metrics_are_cut_to_a_checkpoint(folder: RunFolder) -> None:
    folder.keep_metrics(0)
    assert not folder.metrics.exists()
    for number in range(3):
        folder.append_metrics({"epoch": number})
    with folder.metrics.open("a", encoding="utf-8") as file:
        file.write('{"epoch": 3, "lo')  # the process was killed here
    folder.keep_metrics(2)
    text = folder.metrics.read_text(encoding="utf-8")
    assert [json.loads(line) for line in text.splitlines()] == [{"epoch": 0}, {"epoch": 1}]


def test_metrics_that_cannot_be_written(folder: RunFolder) -> None:
    folder.metrics.mkdir()
    with pytest.raises(QuadranasError, match="Is a directory\nRemove the cause, then continue"):
        folder.append_metrics({})


def test_two_checkpoints_are_kept(folder: RunFolder) -> None:
    reporter = Warnings()
    assert folder.latest_checkpoint(reporter) is None
    for number in range(1, 5):
        folder.save_checkpoint(state(number))
        latest = folder.latest_checkpoint(reporter)
        assert latest is not None
        assert latest["step"] == number
        assert torch.equal(latest["state"]["weights"], state(number)["state"]["weights"])
    assert [path.name[:10] for path in files(folder)] == ["000000003-", "000000004-"]
    assert reporter.texts == []


def test_a_torn_checkpoint_gives_way_to_the_one_before(folder: RunFolder) -> None:
    for number in (1, 2):
        folder.save_checkpoint(state(number))
    older, newer = files(folder)
    tear(newer)
    reporter = Warnings()
    latest = folder.latest_checkpoint(reporter)
    assert latest is not None
    assert latest["step"] == 1
    assert reporter.texts == [f"checkpoint {newer} is damaged; falling back to {older.name}"]
    folder.save_checkpoint(state(3))  # the torn one counts no longer
    assert files(folder)[0] == older
    tear(files(folder)[1])
    again = folder.latest_checkpoint(Warnings())
    assert again is not None
    assert again["step"] == 1


def test_with_all_torn_there_is_none(folder: RunFolder) -> None:
    for number in (1, 2):
        folder.save_checkpoint(state(number))
    for path in files(folder):
        tear(path)
    reporter = Warnings()
    assert folder.latest_checkpoint(reporter) is None
    first, second = reporter.texts
    assert "is damaged; falling back to 000000001-" in first
    assert second.endswith("is damaged; beginning again")
    assert files(folder) == []


def test_foreign_files_are_no_checkpoints(folder: RunFolder) -> None:
    (folder.checkpoints / "model.pt").touch()
    (folder.checkpoints / "unfinished.tmp").touch()
    assert folder.latest_checkpoint(Warnings()) is None


@pytest.mark.parametrize("fault", [OSError(28, "No space left on device"), RuntimeError("torch")])
def test_a_checkpoint_that_cannot_be_written_leaves_the_others(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    def save(content: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise fault

    for number in (1, 2):
        folder.save_checkpoint(state(number))
    before = files(folder)
    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(QuadranasError, match="Free some space, then continue with --resume"):
        folder.save_checkpoint(state(3))
    assert files(folder) == before


def test_checkpoints_execute_nothing(folder: RunFolder, tmp_path: Path) -> None:
    """A file with the right digest and a payload counts as damaged; nothing in it is run."""

    class Payload:
        def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
            return os.mkdir, (str(tmp_path / "harm"),)

    folder.save_checkpoint({"step": Payload()})
    reporter = Warnings()
    assert folder.latest_checkpoint(reporter) is None
    assert "is damaged; beginning again" in reporter.texts[0]
    assert not (tmp_path / "harm").exists()


def preprocessing(*class_names: str) -> Preprocessing:
    third = (0.1 + 0.2, 1 / 3, 0.3)
    return Preprocessing(class_names=class_names, mean=third, std=third, resolution=32)


def test_other_images_are_noticed(folder: RunFolder) -> None:
    folder.keep_preprocessing(preprocessing("cat", "dog"))
    folder.keep_preprocessing(preprocessing("cat", "dog"))
    with pytest.raises(QuadranasError, match="its data have changed since it was begun"):
        folder.keep_preprocessing(preprocessing("cat", "cow"))


def test_new_folders_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert choose_folder("toy").path == Path("runs/toy-1")
    for name in ("toy-1", "toy-3"):
        (tmp_path / "runs" / name).mkdir(parents=True)
    (tmp_path / "runs" / "toy-2").touch()
    assert choose_folder("toy").path == Path("runs/toy-4")


def _names(wanted: str, path: Path) -> bool:
    return wanted in path.name


def test_the_newest_unfinished_folder_is_continued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for age, name in enumerate(("done-1", "new-1", "old-1", "older-1")):
        folder = RunFolder(Path("runs") / name)
        folder.create(0, CONFIG)
        folder.unlock()
        os.utime(folder / "config.yaml", (1e9 - age, 1e9 - age))
    RunFolder(Path("runs/done-1")).write_result({})
    (tmp_path / "runs" / "never-begun-1").mkdir()
    for wanted, name in (("", "new-1"), ("old", "old-1")):
        chosen = choose_folder("", partial(_names, wanted))
        assert chosen.path == Path("runs") / name
        chosen.unlock()
    message = "unfinished: runs/new-1, runs/old-1, runs/older-1\nName the run with --output"
    with pytest.raises(QuadranasError, match=message):
        choose_folder("", lambda path: False)


def test_a_whole_folder_appears_at_the_end(tmp_path: Path) -> None:
    target = tmp_path / "new"
    (tmp_path / ".new.tmp").mkdir()
    (tmp_path / ".new.tmp" / "left").touch()
    with whole_folder(target) as folder:
        (folder / "file").touch()
        assert not target.exists()
    assert listing(tmp_path) == ["new", "new/file"]
    with pytest.raises(QuadranasError, match="exists already"), whole_folder(target):
        pass
    with pytest.raises(KeyboardInterrupt), whole_folder(tmp_path / "other"):
        raise KeyboardInterrupt
    assert listing(tmp_path) == ["new", "new/file"]
    with (
        pytest.raises(
            QuadranasError, match=re.escape(f"cannot write to the output {target}/file/x")
        ),
        whole_folder(target / "file" / "x"),
    ):
        pass


def test_tensors_are_saved_in_any_layout(tmp_path: Path) -> None:
    tensor = torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    save_tensors({"x": tensor, "t": tensor[0, 0].t()}, tmp_path / "x.safetensors")
    loaded = load_file(tmp_path / "x.safetensors")
    assert torch.equal(loaded["x"], tensor)
    assert torch.equal(loaded["t"], tensor[0, 0].t())


def test_a_folder_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "bundle"
    for turn in "ab":
        with whole_folder(path, replace=True) as folder:
            (folder / turn).write_text(turn, encoding="utf-8")
    assert listing(tmp_path) == ["bundle", "bundle/b"]
    with pytest.raises(ZeroDivisionError), whole_folder(path, replace=True):
        raise ZeroDivisionError
    assert listing(tmp_path) == ["bundle", "bundle/b"]


@pytest.mark.parametrize("moved", [False, True])
def test_a_replacement_that_was_killed_is_undone_or_finished(tmp_path: Path, moved: bool) -> None:
    path, old = tmp_path / "bundle", tmp_path / ".bundle.old.tmp"
    old.mkdir()
    (old / "a").touch()
    if moved:
        path.mkdir()
        (path / "b").touch()
    with pytest.raises(ZeroDivisionError), whole_folder(path, replace=True):
        raise ZeroDivisionError
    assert listing(tmp_path) == ["bundle", "bundle/b" if moved else "bundle/a"]
    with pytest.raises(QuadranasError, match="exists already"), whole_folder(path):
        pass


@pytest.mark.parametrize("is_begun", [False, True])
def test_of_two_runs_at_once_the_second_takes_the_next_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_begun: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    first, second = (choose_folder("toy-cpu-1ms", None) for _ in range(2))
    assert first.path == second.path == Path("runs/toy-cpu-1ms-1")
    first.create(0, CONFIG)
    if not is_begun:  # it has the lock, and is about to write its configuration
        (first / "config.yaml").unlink()
    second.create(0, CONFIG)
    assert second.path == Path("runs/toy-cpu-1ms-2")
    assert (second / "config.yaml").is_file()
    assert (second.metrics, second.checkpoints.parent) == (second / "metrics.jsonl", second.path)
    with pytest.raises(QuadranasError, match=r"toy-cpu-1ms-1 (is in use|exists already)"):
        RunFolder(first.path).create(0, CONFIG)  # the name was given
    for folder in (first, second):
        folder.unlock()
