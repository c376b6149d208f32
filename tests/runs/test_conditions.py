"""A resumed run is the same run: its images, its number of threads, and what may change."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml

import quadranas.training.network_phase
from quadranas.runs.run_folder import RunFolder
from tests.command_line import Outcome, call, contents
from tests.killing import Moment, at, killed

FILES = ("architecture.json", "metrics.jsonl", "result.json", "subnet.safetensors")
TEST_IMAGE = "own/test/cat/1.png"
TRAINING_IMAGE = "own/train/dog/3.png"


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory, finished_run: Path, pictures: Path) -> Path:
    """A folder with images and a training that was killed in its second epoch."""
    folder = tmp_path_factory.mktemp("begun") / "work"
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        shutil.copytree(pictures, "own")
        shutil.copy(finished_run / "architecture.json", "network.json")
        Path("c.yaml").write_text("checkpoint_seconds: 0\nbatch_size: 4\n", encoding="utf-8")
        moment = Moment(quadranas.training.network_phase, "weight_step", "*", 6, "after")
        killed(moment, "train", "network.json", "--data", "own", *BEGIN)
    return folder


BEGIN = ("--config", "c.yaml", "--epochs", "2", "--output", "run")
RESUME = ("train", "--resume", "--output", "run")


@pytest.fixture
def here(begun: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The killed training and its images, in the working folder."""
    folder = tmp_path / "work"
    shutil.copytree(begun, folder)
    monkeypatch.chdir(folder)
    config = Path("run/config.yaml")
    config.write_text(config.read_text("utf-8").replace(str(begun), str(folder)), "utf-8")
    return folder


@pytest.fixture(scope="module")
def whole(begun: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The results of the same training when nothing disturbs it."""
    folder = tmp_path_factory.mktemp("whole") / "work"
    shutil.copytree(begun, folder)
    shutil.rmtree(folder / "run")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert call("train", "network.json", "--data", "own", *BEGIN).code == 0
        return contents(Path("run"), FILES)


@pytest.fixture
def threads() -> Iterator[int]:
    """Another number of threads than that of the run, for the time of a test."""
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    yield before
    torch.set_num_threads(before)


def resume(*options: str | Path) -> Outcome:
    outcome = call(*RESUME, *options)
    assert outcome.code == 0, outcome.err
    return outcome


def refused(*options: str | Path) -> str:
    outcome = call(*RESUME, *options)
    assert outcome.code == 2
    assert "Traceback" not in outcome.err
    return outcome.err


def spoil(path: Path) -> None:
    """Break the pixels, but neither the header nor the end of the file."""
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 50] = bytes(50)
    path.write_bytes(content)


@pytest.mark.usefixtures("here")
def test_a_training_resumes_without_its_network_being_named(whole: dict[str, bytes]) -> None:
    resume()
    assert contents(Path("run"), FILES) == whole


@pytest.mark.usefixtures("here")
def test_the_number_of_threads_is_restored(whole: dict[str, bytes], threads: int) -> None:
    outcome = resume()
    said = f"continuing with {threads} threads as before instead of {threads + 1}"
    assert said in outcome.err
    assert torch.get_num_threads() == threads + 1
    assert contents(Path("run"), FILES) == whole


def test_a_run_resumes_from_another_folder(
    here: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = yaml.safe_load(Path("run/config.yaml").read_text("utf-8"))
    assert config["data"] == str(here / "own")
    Path("else").mkdir()
    monkeypatch.chdir("else")
    (here / "link").symlink_to(here / "own")
    outcome = call("train", "--resume", "--output", "../run", "--data", here / "link")
    assert outcome.code == 0, outcome.err
    assert contents(here / "run", FILES[:2]) == {name: whole[name] for name in FILES[:2]}


def test_images_that_were_moved_are_named_anew(here: Path, whole: dict[str, bytes]) -> None:
    Path("own").rename("moved")
    error = refused()
    assert f"cannot resume run: its images are no longer at {here}/own" in error
    assert "quadranas train --resume --output run --data PLACE" in error
    resume("--data", "moved")
    config = yaml.safe_load(Path("run/config.yaml").read_text("utf-8"))
    assert config["data"] == str(here / "moved")
    assert contents(Path("run"), FILES) == whole


@pytest.mark.parametrize("image", [TRAINING_IMAGE, TEST_IMAGE])
@pytest.mark.usefixtures("here")
def test_replaced_images_are_noticed(image: str) -> None:
    shutil.copy(image.replace("3", "4").replace("1", "2"), image)
    name = image.removeprefix("own/")
    error = refused()
    assert f"its data have changed since it was begun; images: 1 changed ({name})" in error
    Path(image).unlink()
    assert f"1 missing ({name})" in refused("--skip-corrupt")
    shutil.copytree("own", "other")
    assert f"1 missing ({name})" in refused("--data", "other")


@pytest.mark.parametrize("remedy", ["remove", "replace", "skip"])
@pytest.mark.usefixtures("here")
def test_a_corrupt_image_found_late_does_not_end_the_run(
    begun: Path, monkeypatch: pytest.MonkeyPatch, remedy: str
) -> None:
    """The image is decoded at the end, when it has become unreadable."""
    with monkeypatch.context() as patch:
        patch.setattr("quadranas.runs.resume.EarlierData.split", _split_then_spoil())
        assert "corrupt image test/cat/1.png" in refused()
    options: tuple[str, ...] = ()
    if remedy == "remove":
        Path(TEST_IMAGE).unlink()
    elif remedy == "replace":
        shutil.copy(begun / "own/test/cat/2.png", TEST_IMAGE)
    else:
        options = ("--skip-corrupt",)
    outcome = resume("--json", *options)
    note = "1 corrupt image was left out after the run was begun: test/cat/1.png"
    notes = [] if remedy == "replace" else [note]
    assert outcome.json()["notes"] == notes
    assert (note in outcome.err) == bool(notes)
    assert json.loads(Path("run/result.json").read_text("utf-8"))["notes"] == notes
    assert call("report", "run").code == 0
    assert (note in Path("run/report.html").read_text("utf-8")) == bool(notes)
    assert call("eval", "run").code == 0


def _split_then_spoil() -> object:
    from quadranas.data.identity import EarlierData

    real = EarlierData.split

    def split(self: EarlierData, listing: object) -> object:
        found = real(self, listing)  # type: ignore[arg-type]
        spoil(Path(TEST_IMAGE))
        return found

    return split


@pytest.mark.usefixtures("here")
def test_another_processor_is_noted() -> None:
    path = Path("run/conditions.json")
    path.write_text(path.read_text("utf-8").replace('"processor":"', '"processor":"old '), "utf-8")
    outcome = resume("--json")
    (note,) = outcome.json()["notes"]
    assert note.startswith("resumed with processor ")
    assert "may differ in their last bits" in note
    assert f"warning: {note}" in outcome.err


@pytest.mark.usefixtures("here")
def test_a_run_without_recorded_conditions_resumes(whole: dict[str, bytes]) -> None:
    Path("run/conditions.json").unlink()
    assert "this run does not record its number of threads" in resume().err
    assert contents(Path("run"), FILES) == whole
    assert Path("run/conditions.json").is_file()


@pytest.mark.usefixtures("here")
def test_a_run_in_progress_is_not_resumed(whole: dict[str, bytes]) -> None:
    errors = []
    with pytest.MonkeyPatch.context() as patch:
        moment = Moment(quadranas.training.network_phase, "weight_step", "*", 1, "after")
        at(moment, patch, lambda: errors.append(refused()))
        resume()
    assert "error: run is in use by process " in errors[0]
    assert contents(Path("run"), FILES) == whole
    assert not Path("run/.lock").exists()


@pytest.mark.usefixtures("here")
def test_a_system_error_is_a_message(
    monkeypatch: pytest.MonkeyPatch, whole: dict[str, bytes]
) -> None:
    def tidy(self: RunFolder) -> None:
        raise OSError(30, "Read-only file system", "run/.x.tmp")

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "tidy", tidy)
        error = refused()
    assert "error: cannot read or write run/.x.tmp: Read-only file system" in error
    resume()
    assert contents(Path("run"), FILES) == whole


@pytest.mark.usefixtures("here")
def test_a_checkpoint_of_another_network_is_a_message() -> None:
    folder = RunFolder(Path("run"))
    state = max(folder.checkpoints.iterdir())
    content = torch.load(state, weights_only=True)
    content["state"]["network"].popitem()
    folder.save_checkpoint(content)
    assert "the newest checkpoint in run/checkpoints does not fit the run" in refused()


def test_a_training_needs_a_network_or_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for options, message in (
        ((), "no network to train"),
        (("--resume",), "no unfinished run under runs/ matches"),
        (("--resume", "--output", "x"), "x holds no run to continue"),
    ):
        outcome = call("train", *options)
        assert outcome.code == 2
        assert f"error: {message}" in outcome.err
    assert not list(tmp_path.iterdir())
