"""train and eval: where networks start, what they inherit, what they are tested on."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from quadranas.commands.evaluate import evaluate
from quadranas.commands.train import train
from quadranas.errors import QuadranasError
from quadranas.runs.config import TrainConfig
from quadranas.runs.results import TrainResult
from quadranas.space.architecture import load_architecture
from tests.command_line import call, contents, listing
from tests.pictures import truncate, write_classes

STANDSTILL = {"learning_rate": 1e-12, "weight_decay": 0.0}
DECIDED = ("architecture.json", "metrics.jsonl", "subnet.safetensors")


def run(stored: Path | str, output: Path, **keys: Any) -> TrainResult:
    return train(stored, TrainConfig(**keys), output=output)


def config(folder: Path) -> dict[str, Any]:
    content = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    assert isinstance(content, dict)
    return content


def near(one: Path, other: Path) -> bool:
    """Whether two files hold nearly the same weights."""
    ours, theirs = load_file(one), load_file(other)
    return set(ours) == set(theirs) and all(
        torch.allclose(ours[name], theirs[name], atol=1e-6) for name in ours
    )


def test_a_run_is_trained_on_from_its_weights(finished_run: Path, tmp_path: Path) -> None:
    result = run(finished_run, tmp_path / "new", epochs=1, weights=STANDSTILL)
    assert near(tmp_path / "new" / "subnet.safetensors", finished_run / "subnet.safetensors")
    assert result.accuracy == 1.0
    assert set(contents(tmp_path / "new", ("inherited.safetensors", *DECIDED))) > set(DECIDED)
    inherited = config(tmp_path / "new")
    assert inherited["data"] == config(finished_run)["data"]
    assert inherited["batch_size"] == 4
    assert inherited["weights"]["learning_rate"] == 1e-12
    assert inherited["weights"]["label_smoothing"] == 0.1


def test_keys_of_the_configuration_are_no_file_of_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(QuadranasError, match="weights must be the path of a file, got dict"):
        train("quadranet36_t", weights=STANDSTILL, epochs=1)  # type: ignore[arg-type]
    assert listing(tmp_path) == []


def test_an_architecture_is_trained_from_scratch(
    finished_run: Path, pictures: Path, tmp_path: Path
) -> None:
    stored = finished_run / "architecture.json"
    given = {"data": str(pictures), "epochs": 1, "batch_size": 4, "weights": STANDSTILL}
    run(stored, tmp_path / "one", **given)
    assert not near(tmp_path / "one" / "subnet.safetensors", finished_run / "subnet.safetensors")
    assert not (tmp_path / "one" / "inherited.safetensors").exists()
    run(stored, tmp_path / "same", **given)
    assert contents(tmp_path / "same", DECIDED) == contents(tmp_path / "one", DECIDED)
    run(stored, tmp_path / "other", **given, seed=1)
    here, there = contents(tmp_path / "other", DECIDED), contents(tmp_path / "one", DECIDED)
    assert here["subnet.safetensors"] != there["subnet.safetensors"]


def test_the_head_takes_the_classes_of_the_data(finished_run: Path, tmp_path: Path) -> None:
    """From scratch: the digits have ten."""
    (tmp_path / "config.yaml").write_text("{epochs: 1, batch_size: 256}", encoding="utf-8")
    outcome = call(
        *("train", finished_run / "architecture.json", "--config", tmp_path / "config.yaml"),
        *("--output", tmp_path / "new", "--json"),
    )
    assert outcome.code == 0, outcome.err
    assert load_architecture(tmp_path / "new" / "architecture.json").num_classes == 10
    assert call("eval", tmp_path / "new", "--json").json() == {
        "model": "toy-cpu-800us",
        "data": "digits",
        "num_images": 359,
        "accuracy": outcome.json()["accuracy"],
        "num_skipped": None,
        "resolution": 32,
        "trained_resolution": 32,
    }


def test_weights_may_be_named(
    finished_run: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    weights = tmp_path / "weights.safetensors"
    shutil.copy(finished_run / "subnet.safetensors", weights)
    (tmp_path / "still.yaml").write_text("weights: {learning_rate: 1.0e-12, weight_decay: 0}")
    architecture = finished_run / "architecture.json"
    given = (architecture, "--weights", weights, "--data", pictures)
    tested = call("eval", *given, "--json")
    assert tested.json()["accuracy"] == 1.0
    trained = call("train", *given, "--epochs", "1", "--config", "still.yaml", "--json")
    assert trained.code == 0, trained.err
    assert trained.json()["run"] == "runs/train-architecture-1"
    assert near(tmp_path / "runs/train-architecture-1/subnet.safetensors", weights)
    again = call("train", *given, "--epochs", "1", "--json")
    assert again.json()["run"] == "runs/train-architecture-2"


def test_other_data_bring_their_own_test_images(
    finished_run: Path, pictures: Path, tmp_path: Path
) -> None:
    """What the run's data decided is not inherited: test images, resolution, augmentation."""
    searched = tmp_path / "run"
    shutil.copytree(finished_run, searched)
    stored = config(searched)
    stored |= {"data": str(pictures / "train"), "val": str(pictures / "test")}
    (searched / "config.yaml").write_text(yaml.safe_dump(stored), encoding="utf-8")
    assert evaluate(searched).num_images == 8
    classes = tmp_path / "classes"
    shutil.copytree(pictures / "train", classes)
    measured = evaluate(searched, data=classes)
    assert (measured.data, measured.num_images) == ("classes", 4)
    run(searched, tmp_path / "new", data=str(classes), epochs=1)
    assert config(tmp_path / "new")["val"] is None
    assert config(tmp_path / "new")["batch_size"] == 4


def test_the_images_are_described_before_training(finished_run: Path, tmp_path: Path) -> None:
    for split, count in (("train", 4), ("test", 2)):
        write_classes(tmp_path / "pets" / split, count=count, size=32)
    Image.new("RGB", (32, 32)).save(tmp_path / "pets" / "train" / "cat" / "000.png")
    (tmp_path / "pets" / "test" / "dog" / "x.png").symlink_to("/nowhere/x.png")
    given = (
        *("train", finished_run / "architecture.json", "--data", tmp_path / "pets"),
        *("--epochs", "1", "--output", tmp_path / "run"),
    )
    outcome = call(*given, "--verify", "full")
    assert outcome.code == 0
    lines = outcome.err.splitlines()
    assert lines[0] == "data pets: 8 training and 4 test images, 2 classes, at 32 pixels"
    assert lines[1] == f"warning: left out of {tmp_path / 'pets'}: 1 link that leads nowhere"
    assert lines[2].startswith("warning: 1 of 12 images is of one colour only (train/cat/000.png")
    assert call(*given, "--resume").code == 0
    outcome = call(*given[:-1], tmp_path / "other", "--verify", "some")
    assert outcome.code == 2
    assert "verify: Input should be 'ends' or 'full'" in outcome.err


def test_corrupt_test_images_are_found_before_a_folder_is_made(
    finished_run: Path, tmp_path: Path
) -> None:
    root = write_classes(tmp_path / "pets", size=32)
    for split in ("train", "test"):
        shutil.copytree(root, tmp_path / "data" / split)
    for name in ("cat/003.png", "dog/001.png"):
        truncate(tmp_path / "data" / "test" / name)
    given = ("train", finished_run / "architecture.json", "--data", tmp_path / "data")
    outcome = call(*given, "--epochs", "1", "--output", tmp_path / "run")
    assert outcome.code == 2
    assert "2 of 20 images cannot be used:\n  corrupt image test/cat/003.png in " in outcome.err
    assert "skip corrupt images with --skip-corrupt" in outcome.err
    assert not (tmp_path / "run").exists()


def test_the_run_folder_is_complete(finished_run: Path, tmp_path: Path) -> None:
    result = run(finished_run, tmp_path / "new", epochs=2)
    assert {path.name for path in (tmp_path / "new").iterdir()} == {
        *("architecture.json", "checkpoints", "config.yaml", "inherited.safetensors"),
        *("conditions.json", "metrics.jsonl", "preprocessing.json", "result.json"),
        "subnet.safetensors",
        *("report.html", "table.json", "tensorboard"),
    }
    assert json.loads((tmp_path / "new" / "result.json").read_text("utf-8")) == result.content()
    assert result.report_path == tmp_path / "new" / "report.html"
    text = (tmp_path / "new" / "metrics.jsonl").read_text(encoding="utf-8")
    metrics = [json.loads(line) for line in text.splitlines()]
    assert [(line["phase"], line["epoch"], line["step"]) for line in metrics] == [
        ("train", 1, 4),
        ("train", 2, 8),
    ]
    assert call("report", tmp_path / "new").code == 0


def test_unfinished_runs_have_no_weights(finished_run: Path, tmp_path: Path) -> None:
    searched, trained = tmp_path / "searched", tmp_path / "trained"
    shutil.copytree(finished_run, searched)
    run(finished_run, trained, epochs=1)
    for folder, command in (
        (searched, f"quadranas search --resume --output {searched}"),
        (trained, f"quadranas train --resume --output {trained}"),
    ):
        (folder / "subnet.safetensors").unlink()
        for verb in ("eval", "export"):
            outcome = call(verb, folder)
            assert outcome.code == 2
            assert f"{folder} holds no trained weights" in outcome.err
            assert outcome.err.endswith(f"continue it with: {command}\n")
        (folder / "architecture.json").unlink()
        outcome = call("profile", folder)
        assert f"{folder} contains no architecture.json" in outcome.err
        again = command.replace("train --resume", "train MODEL --resume")
        assert f"continue it with: {again}" in outcome.err


def test_resume_without_a_folder_takes_the_training_of_that_network(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished_run, "toy.v2")
    for _ in range(2):
        assert call("train", "toy.v2", "--epochs", "1", "--quiet").code == 0
    assert listing(tmp_path / "runs")[0] == "train-toy.v2-1"
    done = contents(tmp_path / "runs" / "train-toy.v2-1", DECIDED)
    refused = call("train", "toy.v2", "--resume")
    assert "no unfinished run under runs/ matches the given options" in refused.err
    (tmp_path / "runs" / "train-toy.v2-1" / "result.json").unlink()
    other = call("train", "quadranet36_t", "--resume")
    assert "unfinished: runs/train-toy.v2-1" in other.err
    other = call("train", "toy.v2", "--resume", "--epochs", "3")
    assert other.code == 2
    resumed = call("train", "toy.v2", "--resume", "--json")
    assert resumed.code == 0, resumed.err
    assert resumed.json()["run"] == "runs/train-toy.v2-1"
    assert contents(tmp_path / "runs" / "train-toy.v2-1", DECIDED) == done
