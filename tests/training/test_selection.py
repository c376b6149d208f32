"""Held-out images: they choose the epoch, stop the training, and are trained on by nobody."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from quadranas.acceleration.engine import Engine
from quadranas.commands.train import train
from quadranas.data.augmentation import Augmenter
from quadranas.data.dataset import Dataset, load_dataset
from quadranas.data.task import Assessment, assess
from quadranas.errors import QuadranasError, RunInterruptedError
from quadranas.network.skeleton import build_subnet
from quadranas.network.weights import load_weights
from quadranas.runs.config import SearchConfig, TrainConfig, WeightConfig
from quadranas.runs.recipe import resolve_config
from quadranas.runs.results import TrainResult
from quadranas.runs.run_folder import RunFolder
from quadranas.seeds import derived_seed
from quadranas.space.architecture import Architecture, load_architecture
from quadranas.supernet.supernet import build_supernet
from quadranas.training.selection import EpochChoice
from quadranas.training.supernet_phase import SupernetTraining, subnet_evaluator
from tests.acceleration.processes import run_together
from tests.command_line import SMALL, Server, call, contents
from tests.small_supernets import SPACES

OPTIONS: dict[str, Any] = {
    **{"batch_size": 4, "checkpoint_seconds": 0.0, "holdout": 0.2},
    "weights": WeightConfig(learning_rate=0.05),
    "resolution_images": 16,
}


def test_the_best_epoch_is_the_most_accurate_then_the_one_with_the_lower_loss() -> None:
    network, choice = torch.nn.Linear(1, 1), EpochChoice(keeps_best=True, patience=2)
    found = [(1.0, 0.5), (2.0, 0.7), (1.5, 0.7), (1.5, 0.7), (0.1, 0.6)]
    for epoch, (loss, accuracy) in enumerate(found, start=1):
        torch.nn.init.constant_(network.weight, epoch)
        assert not choice.is_over
        choice.note(network, Assessment(loss, accuracy))
    assert (choice.best_epoch, choice.is_over) == (3, True)
    choice.apply(network)
    assert network.weight.item() == 3


@pytest.fixture(scope="module")
def toy(finished_run: Path) -> Architecture:
    return load_architecture(finished_run / "architecture.json")


def metrics_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def divided(pictures: Path) -> Dataset:
    dataset = load_dataset(pictures, resolution=32)
    return dataset.with_holdout(0.2, derived_seed(0, "holdout"))


def test_held_out_images_are_the_same_at_every_resolution(pictures: Path) -> None:
    whole, dataset = load_dataset(pictures, resolution=32), divided(pictures)
    assert whole.with_holdout(0.0, 0) is whole
    assert dataset.validation is not None
    assert dataset.kept is not None
    assert dataset.held_out is not None
    assert len(dataset.train) + len(dataset.validation) == len(whole.train)
    larger, whole_larger = dataset.at(64), whole.at(64)
    assert larger.validation is not None
    for part, indices in ((larger.train, dataset.kept), (larger.validation, dataset.held_out)):
        found = part.batch(torch.arange(len(part)))
        assert torch.equal(found, whole_larger.train.batch(indices))
        assert torch.equal(part.labels, whole.train.labels[indices])


def test_the_weights_of_the_best_epoch_are_used_and_stored(
    toy: Architecture, pictures: Path, tmp_path: Path
) -> None:
    config = TrainConfig(data=str(pictures), epochs=6, **OPTIONS)
    result = train(toy, config, output=tmp_path / "run")
    epochs = metrics_of(tmp_path / "run")
    scores = [(line["val_accuracy"], -line["val_loss"]) for line in epochs]
    assert len(scores) == 6
    best = max(range(6), key=lambda index: scores[index])
    assert (result.kept_epoch, result.val_accuracy) == (best + 1, scores[best][0])
    dataset = divided(pictures)
    assert dataset.validation is not None
    for file in ("best.safetensors", "subnet.safetensors"):
        network = build_subnet(load_architecture(tmp_path / "run" / "architecture.json"))
        load_weights(network, tmp_path / "run" / file)
        found = assess(network, dataset.validation, Augmenter.of(dataset))
        assert found == Assessment(epochs[best]["val_loss"], epochs[best]["val_accuracy"])
    last = train(toy, config, output=tmp_path / "last", keep="last")
    assert last.kept_epoch == 6
    assert not (tmp_path / "last" / "best.safetensors").exists()
    stored = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text("utf-8"))
    assert (stored["keep"], stored["holdout"]) == ("best", 0.2)


def run(
    toy: Architecture | None, folder: Path, pictures: Path, *, resume: bool = False
) -> TrainResult:
    config = TrainConfig(data=str(pictures), epochs=9, patience=2, **OPTIONS)
    return train(toy, config, output=folder, resume=resume)


def test_a_training_that_stops_early_resumes_bit_identical(
    toy: Architecture, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    larger = toy.adapted(resolution=64)  # a last phase follows
    result = run(larger, tmp_path / "whole", pictures)
    epochs = [line for line in metrics_of(tmp_path / "whole") if line["phase"] == "train"]
    assert result.kept_epoch is not None
    assert len(epochs) == result.kept_epoch + 2 < 9
    assert metrics_of(tmp_path / "whole")[-1]["val_accuracy"] is not None
    real, calls = RunFolder.save_checkpoint, [0]

    def killed(self: RunFolder, state: Any) -> None:
        real(self, state)
        calls[0] += 1
        if calls[0] % 3 == 0:
            raise KeyboardInterrupt

    monkeypatch.setattr(RunFolder, "save_checkpoint", killed)
    for attempt in range(50):
        try:
            again = run(
                *(None if attempt else larger, tmp_path / "parts", pictures), resume=attempt > 0
            )
        except RunInterruptedError:
            continue
        break
    assert attempt > 3
    assert (again.kept_epoch, again.accuracy) == (result.kept_epoch, result.accuracy)
    parts, whole = (contents(tmp_path / name) for name in ("parts", "whole"))
    assert parts.pop("result.json") != whole.pop("result.json")  # they name their folders
    assert parts == whole


def test_a_search_holds_out_before_it_splits_the_halves(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    real = SupernetTraining.__init__

    def init(self: SupernetTraining, setup: Any, *args: Any) -> None:
        real(self, setup, *args)
        seen.append(len(setup.dataset.train))

    monkeypatch.setattr(SupernetTraining, "__init__", init)
    (tmp_path / "c.yaml").write_text(SMALL.format(pictures=pictures) + "holdout: 0.2\n")
    search = ("search", "--space", "toy", "--device", "vpu", "--budget", "1ms", "--json")
    outcome = call(*search, "--config", tmp_path / "c.yaml", "--output", tmp_path / "run")
    assert outcome.code == 0, outcome.err
    dataset = divided(pictures)
    assert set(seen) == {len(dataset.train)}
    assert outcome.json()["kept_epoch"] == 1
    (line,) = [line for line in metrics_of(tmp_path / "run") if line["phase"] == "finetune"]
    assert line["val_accuracy"] == outcome.json()["val_accuracy"]


def test_two_processes_choose_the_epoch_that_one_chooses(
    pictures: Path, tmp_path: Path, server: Server, finished_run: Path
) -> None:
    (tmp_path / "c.yaml").write_text(
        f"data: {pictures}\nbatch_size: 4\nholdout: 0.2\npatience: 2\nepochs: 9\n"
        "weights: {learning_rate: 0.05, ema: 0.5, drop_path: 0.3, second_order_warmup: 0.5}\n"
        "accumulate: 2\ncheckpointing: true\n"
    )
    network = finished_run / "architecture.json"
    command = ("train", str(network), "--config", str(tmp_path / "c.yaml"), "--json")
    one = call(*command, "--output", tmp_path / "one")
    assert one.code == 0, one.err
    outcomes = run_together(server, tmp_path / "two", 2, *command, "--output", "run")
    assert [outcome.code for outcome in outcomes] == [0, 0], outcomes[0].err
    together = outcomes[0].json()
    assert (together["kept_epoch"], together["processes"]) == (one.json()["kept_epoch"], 2)
    lines = metrics_of(tmp_path / "two" / "run")
    for here, there in zip(metrics_of(tmp_path / "one"), lines, strict=True):
        assert here.pop("phase") == there.pop("phase")
        assert here == pytest.approx(there, rel=1e-2)


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"keep": "best"}, "keep 'best' needs held-out images, but holdout is 0"),
        ({"patience": 3}, "patience 3 needs held-out images"),
    ],
)
def test_a_choice_without_held_out_images_is_refused(keys: dict[str, Any], text: str) -> None:
    given = SearchConfig(device="cpu", budget="1ms", **keys)
    with pytest.raises(QuadranasError) as caught:
        resolve_config(given, load_dataset(None, resolution=8))
    assert text in caught.value.message
    assert "--holdout" in caught.value.hint


def test_classes_with_too_few_images_to_hold_out_are_named(pictures: Path) -> None:
    dataset = load_dataset(pictures, resolution=32)
    cats, dogs = ((dataset.train.labels == label).nonzero().flatten() for label in (0, 1))
    few = replace(dataset, train=dataset.train.subset(torch.cat([cats, dogs[:2]])))
    with pytest.raises(QuadranasError, match="class 'dog' has 2, at least 3 per class are needed"):
        few.with_holdout(0.5, 0)


def test_sub_networks_are_judged_on_the_held_out_images(pictures: Path) -> None:
    dataset = divided(pictures)
    space = SPACES["small-quadra"].with_num_classes(2)
    supernet = build_supernet(space, seed=0)
    evaluator = subnet_evaluator(supernet, dataset, 0, Engine())
    assert evaluator.judged_on is dataset.validation
    assert dataset.validation is not None
    assert evaluator.held_out.tolist() == list(range(len(dataset.validation)))
    assert int(evaluator.calibration.max()) < len(dataset.train)
    largest = space.extreme(lambda spec: spec.kernel_size, largest=True)
    choices = space.choices_of(largest)
    supernet.set_choices(choices)
    expected = assess(supernet, dataset.validation, Augmenter.of(dataset)).accuracy
    assert evaluator.accuracy(choices) == expected


def test_derive_judges_as_the_search_did(pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(SMALL.format(pictures=pictures) + "holdout: 0.2\n")
    search = ("search", "--space", "toy", "--device", "vpu", "--budget", "1ms", "--json")
    outcome = call(*search, "--config", tmp_path / "c.yaml", "--output", tmp_path / "run")
    assert outcome.code == 0, outcome.err
    again = call(
        *("derive", tmp_path / "run", "--device", "vpu", "--budget", "1ms"),
        *("--output", tmp_path / "again"),
    )
    assert again.code == 0, again.err
    names = ("run", "again")
    one, two = (load_architecture(tmp_path / name / "architecture.json") for name in names)
    assert one == two
