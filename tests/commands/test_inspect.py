"""Inspected runs: they train as others do, resume exactly, and are shown."""

import json
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer

import quadranas
from quadranas import InspectResult
from quadranas.commands.train import train
from quadranas.inspection.records import read_records
from quadranas.runs.config import TrainConfig
from quadranas.runs.results import TrainResult
from quadranas.runs.stored_network import open_network
from quadranas.space.architecture import load_architecture
from quadranas.training.network_phase import NetworkTraining
from tests.command_line import call, contents
from tests.typed_results import parsed

WEIGHTS = ("subnet.safetensors", "metrics.jsonl")


def run(stored: Path, output: Path, *, resume: bool = False, **keys: Any) -> TrainResult:
    return train(stored, TrainConfig(**keys), output=output, resume=resume)


@pytest.fixture(scope="module")
def inspected(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training of three epochs. Not to be changed."""
    folder = tmp_path_factory.mktemp("inspected") / "run"
    run(finished_run, folder, epochs=3, inspect=True)
    return folder


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "a <photo>.png"
    pixels = np.random.default_rng(0).integers(0, 256, (50, 40, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def test_a_run_ends_with_the_same_weights_inspected_or_not(
    inspected: Path, finished_run: Path, tmp_path: Path
) -> None:
    run(finished_run, tmp_path / "plain", epochs=3)
    assert contents(tmp_path / "plain", WEIGHTS) == contents(inspected, WEIGHTS)
    assert not (tmp_path / "plain" / "inspection.jsonl").exists()


def test_every_epoch_is_recorded(inspected: Path) -> None:
    records = read_records(inspected)
    assert [record.step for record in records] == [4, 8, 12]
    architecture = load_architecture(inspected / "architecture.json")
    kinds = [op.kind for op in architecture.ops()]
    assert len(records[0].layers) == kinds.count("quadratic_depthwise") > 0
    for layer in records[-1].layers.values():
        assert layer.second_order_energy
        assert set(layer.gradients) == set(layer.weights) == {"a", "b", "c"}


@pytest.mark.parametrize("stop", [6, 8, 9])
def test_a_resumed_run_is_as_if_it_had_never_stopped(
    inspected: Path,
    finished_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stop: int,
) -> None:
    """Stopped in the middle of an epoch, after the last checkpoint that was kept for long.

    TensorBoard orders the files that one process writes within a second by their numbers as text.
    """
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(10))
    step = NetworkTraining.step

    def stopping(training: NetworkTraining, number: int) -> Any:
        if number == stop:
            raise KeyboardInterrupt
        return step(training, number)

    folder = tmp_path / "run"
    given: dict[str, Any] = {"epochs": 3, "inspect": True, "checkpoint_seconds": 0}
    with monkeypatch.context() as patch:
        patch.setattr(NetworkTraining, "step", stopping)
        with pytest.raises(KeyboardInterrupt):
            run(finished_run, folder, **given)
    if stop == 9:  # the newest checkpoint is lost: the run goes back to the middle of epoch 2
        newest = sorted((folder / "checkpoints").iterdir())
        newest[-1].unlink()
    run(finished_run, folder, resume=True, **given)
    names = (*WEIGHTS, "inspection.jsonl")
    assert contents(folder, names) == contents(inspected, names)
    for one, other in zip(histograms(folder), histograms(inspected), strict=True):
        assert one == other


def histograms(folder: Path) -> list[tuple[str, int, float]]:
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"histograms": 0})
    events.Reload()
    return [
        (tag, event.step, event.histogram_value.sum)
        for tag in sorted(events.Tags()["histograms"])
        for event in events.Histograms(tag)
    ]


def test_tensorboard_holds_the_distributions(inspected: Path) -> None:
    layer, seen = next(iter(read_records(inspected)[-1].layers.items()))
    found = {(tag, step): total for tag, step, total in histograms(inspected)}
    weights = seen.weights["a"]
    assert found[f"{layer}/weights/a", 3] == pytest.approx(weights.mean * weights.num_values)
    assert {step for _, step in found} == {1, 2, 3}


class Page(HTMLParser):
    """Collects what a page would load, and its text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attrs if name in ("src", "xlink:href")]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_page_shows_terms_and_training(
    inspected: Path, photo: Path, tmp_path: Path, rendered: None
) -> None:
    target = tmp_path / "page.html"
    outcome = call("inspect", inspected, "--image", photo, "--output", target, "--json")
    assert outcome.code == 0, outcome.err
    result = outcome.json()
    assert result["page"] == str(target)
    names = list(read_records(inspected)[0].layers)
    assert [layer["layer"] for layer in result["layers"]] == names
    for layer in result["layers"]:
        first, second = layer["first_order_energy"], layer["second_order_energy"]
        assert layer["second_order_share"] == pytest.approx(second / (first + second))
    page = Page(target)
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in page.links)
    assert sum(link.startswith("data:") for link in page.links) > 3 * len(names)
    for text in ("run on a <photo>.png", *names, "Distributions", "second order"):
        assert text in page.text + target.read_text(encoding="utf-8")


def test_the_function_gives_what_the_command_prints(
    inspected: Path, photo: Path, tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    outcome = call("inspect", inspected, "--image", photo, "--output", page, "--json")
    first = page.read_bytes()
    result = quadranas.inspect(open_network(inspected), image=str(photo), output=page)
    assert parsed(outcome, InspectResult) == result
    assert page.read_bytes() == first
    copied = tmp_path / "run"
    shutil.copytree(inspected, copied)
    default = quadranas.inspect(copied, image=photo)
    assert default.page == copied / "inspection.html"
    assert default.layers == result.layers


def test_a_run_without_records_says_how_to_get_some(
    finished_run: Path, photo: Path, tmp_path: Path
) -> None:
    pages = [tmp_path / "one.html", tmp_path / "other.html"]
    for page in pages:
        outcome = call("inspect", finished_run, "--image", photo, "--output", page)
        assert outcome.code == 0, outcome.err
        assert "share of the second-order term from" in outcome.out
    assert "--inspect" in Page(pages[0]).text
    assert pages[0].read_bytes() == pages[1].read_bytes()


def test_the_report_has_a_section_for_inspected_runs_alone(
    inspected: Path, finished_run: Path, tmp_path: Path
) -> None:
    for source, shown in ((inspected, True), (finished_run, False)):
        folder = tmp_path / source.name
        shutil.copytree(source, folder)
        assert call("report", folder).code == 0
        text = Page(folder / "report.html").text
        assert ("Inside the layers" in text) is shown
        assert ("Norm of the larger gradient of a factor" in text) is shown


def test_alarms_reach_the_user_and_the_report(
    inspected: Path, finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quadranas.inspection.alarms.VANISHING_RATIO", 1e9)
    folder = tmp_path / "run"
    outcome = call(
        "train", finished_run, "--epochs", "2", "--inspect", "--quiet", "--output", folder
    )
    assert outcome.code == 0, outcome.err
    assert outcome.err.count("the second-order gradient is vanishing") == 5
    num_alarms = len(read_records(folder)[0].alarms)
    assert f"{num_alarms - 5} more such alarms in inspection.jsonl" in outcome.err
    assert call("report", folder).code == 0
    assert Page(folder / "report.html").text.count("gradient is vanishing") == num_alarms


def test_torn_lines_are_left_out(inspected: Path, tmp_path: Path) -> None:
    lines = (inspected / "inspection.jsonl").read_text(encoding="utf-8").splitlines()
    torn = [lines[0], lines[1][:100], json.dumps({"step": "x"}), "[1]"]
    (tmp_path / "inspection.jsonl").write_text("\n".join(torn), encoding="utf-8")
    assert [record.step for record in read_records(tmp_path)] == [4]
    assert read_records(tmp_path / "elsewhere") == ()


def test_faults_are_explained(inspected: Path, photo: Path, tmp_path: Path) -> None:
    def message(*argv: str | Path) -> str:
        outcome = call("inspect", *argv, "--output", tmp_path / "page.html")
        assert outcome.code == 2
        assert not (tmp_path / "page.html").exists()
        return outcome.err

    text = tmp_path / "text.png"
    text.write_text("no picture", encoding="utf-8")
    assert "text.png: not an image Pillow can read" in message(inspected, "--image", text)
    nothing = tmp_path / "nothing.png"
    assert "nothing.png: No such file" in message(inspected, "--image", nothing)
    untrained = tmp_path / "untrained"
    shutil.copytree(inspected, untrained)
    (untrained / "subnet.safetensors").unlink()
    assert "holds no trained weights" in message(untrained, "--image", photo)
    bare = tmp_path / "bare"
    shutil.copytree(inspected, bare)
    (bare / "preprocessing.json").unlink()
    assert "has no preprocessing.json" in message(bare, "--image", photo)
