"""Recipes: chosen by the number of images, complete, strict, and overridden key by key."""

import math
from pathlib import Path

import pytest
import yaml

import quadranas
from quadranas.errors import QuadranasError
from quadranas.runs.config import SearchConfig, TrainConfig, WeightConfig
from quadranas.runs.recipe import (
    RECIPES,
    chosen_recipe,
    load_recipe,
    resolve_config,
    shipped_recipes,
)
from tests.command_line import SMALL, call
from tests.runs.test_config import dataset

PHOTOS = {1: "small-data", 5_000: "small-data", 5_001: "cifar", 200_001: "imagenet"}


@pytest.mark.parametrize(("size", "name"), PHOTOS.items())
def test_the_number_of_photos_chooses_the_recipe(size: int, name: str) -> None:
    assert chosen_recipe(size, photos=True) == name
    assert resolve_config(TrainConfig(data="x"), dataset(size)).recipe == name


def test_the_digits_have_a_recipe_of_their_own() -> None:
    config = resolve_config(SearchConfig(), dataset(1_437))
    assert (config.recipe, config.schedule.finetune_epochs) == ("quick", 6)
    assert config.augment.flip is False


@pytest.mark.parametrize(
    ("size", "batch_size"), [(100, 16), (1_200, 16), (2_000, 32), (9_000, 64)]
)
def test_small_data_have_batches_for_sixty_steps(size: int, batch_size: int) -> None:
    config = resolve_config(TrainConfig(data="x", recipe="small-data"), dataset(size))
    assert config.batch_size == batch_size
    rate = WeightConfig().learning_rate * math.sqrt(batch_size / 64)
    assert config.weights.learning_rate == pytest.approx(rate)


def test_keys_override_a_recipe_one_by_one() -> None:
    given = SearchConfig(recipe="imagenet", weights={"weight_decay": 0.5}, batch_size=8)
    config = resolve_config(given, dataset(100))
    assert (config.recipe, config.batch_size) == ("imagenet", 8)
    rest = {"optimizer": "sgd", "learning_rate": 0.025, "ema": 0.9999}
    assert config.weights == WeightConfig(**rest, weight_decay=0.5)
    assert config.augment.mixup == 0.2


def test_every_shipped_recipe_is_listed_and_shown() -> None:
    names = {path.stem for path in RECIPES.glob("*.yaml")}
    assert names == set(shipped_recipes()) == {"quick", "small-data", "cifar", "imagenet"}
    outcome = call("recipes", "--json")
    assert set(outcome.json()["recipes"]) == names
    assert quadranas.recipes("cifar").recipes["cifar"].keys["epochs"] == 60
    assert "epochs: 60" in call("recipes", "cifar").out
    listed = call("recipes").out.splitlines()
    assert [line.split()[0] for line in listed] == list(shipped_recipes())


def write(path: Path, **content: object) -> Path:
    path.write_text(yaml.safe_dump({"description": "mine", **content}), encoding="utf-8")
    return path


def test_a_file_is_a_recipe_and_a_run_resumes_without_it(
    tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = write(tmp_path / "mine.yaml", keys={"gates": {"weight_steps": 2}, "epochs": 3})
    (tmp_path / "c.yaml").write_text(SMALL.format(pictures=pictures))
    search = ("search", "--space", "toy", "--device", "vpu", "--budget", "1ms", "--json")
    outcome = call(*search, "--config", "c.yaml", "--recipe", "mine.yaml", "--output", "run")
    assert outcome.code == 0, outcome.err
    config = yaml.safe_load(Path("run/config.yaml").read_text("utf-8"))
    assert config["gates"]["weight_steps"] == 2
    assert config["recipe"] == str(file.absolute())
    file.unlink()
    Path("run/result.json").unlink()
    again = call("search", "--resume", "--output", "run", "--json")
    assert again.code == 0, again.err
    other = call("search", "--resume", "--output", "run", "--recipe", "cifar")
    assert other.code == 2
    assert "the run has recipe" in other.err


def test_a_named_recipe_takes_the_place_of_what_a_training_inherits(
    tmp_path: Path, finished_run: Path
) -> None:
    options = ("--epochs", "1", "--json", "--output", tmp_path / "run", "--recipe", "imagenet")
    outcome = call("train", finished_run, *options)
    assert outcome.code == 0, outcome.err
    config = yaml.safe_load((tmp_path / "run/config.yaml").read_text("utf-8"))
    assert config["weights"]["optimizer"] == "sgd"
    assert config["epochs"] == 1
    there = yaml.safe_load((finished_run / "config.yaml").read_text("utf-8"))
    assert config["data"] == there["data"]


FAULTS = {
    "key of {file}: 'epoks'": {"keys": {"epoks": 3}},
    "did you mean 'epochs'": {"keys": {"epoks": 3}},
    "{file}: keys.device: a recipe cannot hold this key": {"keys": {"device": "cpu"}},
    "{file}: weights.learning_rate": {"keys": {"weights": {"learning_rate": -1}}},
    "{file}: crop_share": {"crop_share": 2},
    "{file}: steps: unknown key": {"steps": 2},
}


@pytest.mark.parametrize(("text", "content"), FAULTS.items())
def test_faults_of_a_recipe_are_named(
    tmp_path: Path, text: str, content: dict[str, object]
) -> None:
    file = write(tmp_path / "mine.yaml", **content)
    with pytest.raises(QuadranasError) as caught:
        load_recipe(file)
    assert text.format(file=file) in caught.value.message


def test_an_unknown_recipe_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    outcome = call("train", "quadranet25_t", "--recipe", "cifra", "--output", tmp_path / "run")
    assert outcome.code == 2
    assert "unknown recipe 'cifra'; accepted: cifar" in outcome.err
    assert "did you mean 'cifar'" in outcome.err
    assert not (tmp_path / "run").exists()
