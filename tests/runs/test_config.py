"""Configurations: strict, complete, with defaults that suit the data, comparable on resuming."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from quadranas.data.dataset import Dataset
from quadranas.errors import QuadranasError
from quadranas.runs.config import (
    MIN_RESOLUTION,
    SearchConfig,
    TrainConfig,
    WeightConfig,
    count_classes,
    defaults_for,
    load_overrides,
    merged,
    open_data,
    resolve_config,
)
from quadranas.runs.resume import VERBS, can_resume, matching_config, resume_command, run_name

GIVEN: dict[str, Any] = {"device": "cpu", "budget": "1ms"}


def dataset(num_images: int, resolution: int = 32) -> Dataset:
    """As large as need be, without any image."""

    class Images:
        def __len__(self) -> int:
            return num_images

    third = (0.3, 0.3, 0.3)
    return Dataset(
        name="none",
        class_names=("a", "b"),
        resolution=resolution,
        train=Images(),  # type: ignore[arg-type]
        test=Images(),  # type: ignore[arg-type]
        mean=third,
        std=third,
    )


def resolved(**overrides: Any) -> SearchConfig:
    return resolve_config(SearchConfig, GIVEN | overrides, dataset(100), "test")


def write(path: Path, content: Any) -> Path:
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def test_every_section_has_a_name_and_a_key() -> None:
    assert set(VERBS.values()) == {"search", "train"}
    assert set(SearchConfig.model_fields) & set(TrainConfig.model_fields) >= {"seed", "weights"}


@pytest.mark.parametrize("size", [2, 5_000, 5_001, 200_000, 200_001])
@pytest.mark.parametrize("model", [SearchConfig, TrainConfig])
def test_defaults_are_complete_for_data_of_any_size(
    model: type[SearchConfig] | type[TrainConfig], size: int
) -> None:
    overrides = GIVEN if model is SearchConfig else {}
    config = resolve_config(model, overrides, dataset(size), "test")
    assert config.train_resolution == 32
    assert config.augment.flip is False  # digits have no mirror image
    assert resolve_config(model, overrides | {"data": "x"}, dataset(size), "test").augment.flip
    again = resolve_config(model, config.model_dump(mode="json"), dataset(size), "test")
    assert again == config


def test_large_data_train_longer() -> None:
    sizes = (5_000, 200_000, 1_000_000)
    schedules = [defaults_for(dataset(size), photos=True)["schedule"] for size in sizes]
    totals = [sum(schedule.values()) for schedule in schedules]
    assert totals == sorted(totals)


def test_a_nested_key_leaves_its_neighbours() -> None:
    config = resolved(schedule={"search_epochs": 7}, weights={"optimizer": "sgd"})
    assert config.schedule.search_epochs == 7
    assert config.schedule.warmup_epochs == 10
    assert config.weights == WeightConfig(optimizer="sgd")


def test_configurations_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        resolved().seed = 3  # type: ignore[misc]


def test_merged_does_not_touch_its_arguments() -> None:
    base, changes = {"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 5}, "d": {"e": 1}}
    assert merged(base, changes) == {"a": {"b": 5, "c": 2}, "d": {"e": 1}}
    assert base == {"a": {"b": 1, "c": 2}, "d": 3}
    assert changes == {"a": {"b": 5}, "d": {"e": 1}}


NESTED = st.recursive(
    st.integers(), lambda inner: st.dictionaries(st.sampled_from("abc"), inner), max_leaves=8
)
MAPPINGS = st.dictionaries(st.sampled_from("abc"), NESTED)


@given(MAPPINGS, MAPPINGS)
def test_merging_again_changes_nothing(base: dict[str, Any], changes: dict[str, Any]) -> None:
    once = merged(base, changes)
    assert merged(once, changes) == once
    assert merged(base, {}) == base
    assert set(once) == set(base) | set(changes)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"bugdet": 1}, "bugdet: unknown key (got 1); accepted: augment, batch_size, budget, "),
        ({"gates": {"mod": "full"}}, "gates.mod: unknown key (got 'full'); accepted: "),
        ({"gates": {"mode": "ful"}}, "gates.mode: Input should be 'two_path' or 'full'"),
        ({"batch_size": 1}, "batch_size: Input should be greater than or equal to 2 (got 1)"),
        ({"schedule": [1]}, "schedule: Input should be a mapping of keys (got [1])"),
        ({"weights": {"learning_rate": -1}}, "weights.learning_rate: Input should be greater"),
        ({"weights": {"learning_rate": float("nan")}}, "weights.learning_rate: Input should be"),
        ({"augment": {"mixup": 11}}, "augment.mixup: Input should be less than or equal to 10"),
        ({"device": 3}, "device: Input should be a valid string (got 3)"),
    ],
)
def test_faults_are_found_before_anything_is_opened(
    tmp_path: Path, content: dict[str, Any], message: str
) -> None:
    path = write(tmp_path / "config.yaml", content)
    with pytest.raises(QuadranasError) as caught:
        load_overrides(path, SearchConfig)
    assert caught.value.message.startswith(f"{path}: {message}")


def test_what_is_missing_is_no_fault_yet(tmp_path: Path) -> None:
    content = {"schedule": {"search_epochs": 3}, "budget": 30}
    path = write(tmp_path / "config.yaml", content)
    assert load_overrides(path, SearchConfig) == content
    assert load_overrides(None, SearchConfig) == {}
    with pytest.raises(QuadranasError, match="schedule: unknown key"):
        load_overrides(path, TrainConfig)


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ({"device": "cpu", "budget": "0.3s"}, "cpu-0.3s"),
        ({"space": "toy", "device": "cpu", "budget": " 2.5 ms "}, "toy-cpu-2.5ms"),
        ({"space": "x/my.v2.yaml", "device": "../dev.yml", "budget": "1ms"}, "my.v2-dev-1ms"),
        ({}, ""),
    ],
)
def test_run_names_say_what_was_asked(overrides: dict[str, Any], name: str) -> None:
    assert run_name(overrides) == name


def stored(folder: Path, config: SearchConfig | TrainConfig) -> Path:
    folder.mkdir()
    write(folder / "config.yaml", config.model_dump(mode="json"))
    return folder


def test_what_was_said_before_may_be_said_again(tmp_path: Path) -> None:
    folder = stored(tmp_path / "run", resolved(seed=3, schedule={"search_epochs": 7}))
    for options in (
        {},
        {"seed": 3, "device": "cpu"},
        {"schedule": {"search_epochs": 7}},
        {"weights": {"learning_rate": "4.0e-3"}},
        resolved(seed=3, schedule={"search_epochs": 7}).model_dump(mode="json"),
    ):
        kept = matching_config(SearchConfig, folder, options, "test")
        assert kept == yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        assert can_resume(SearchConfig, folder, options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": 4}, "seed is 3 there, not 4"),
        ({"schedule": {"search_epochs": 8}}, "schedule.search_epochs is 7 there, not 8"),
        ({"data": "x"}, "data is None there, not 'x'"),
        ({"sede": 3}, "test: sede: unknown key"),
    ],
)
def test_contradictions_are_named(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    folder = stored(tmp_path / "run", resolved(seed=3, schedule={"search_epochs": 7}))
    with pytest.raises(QuadranasError) as caught:
        matching_config(SearchConfig, folder, options, "test")
    assert message in caught.value.message
    assert not can_resume(SearchConfig, folder, options)


def test_a_run_of_another_verb_is_named(tmp_path: Path) -> None:
    trained = stored(tmp_path / "my run", resolve_config(TrainConfig, {}, dataset(10), "test"))
    with pytest.raises(QuadranasError, match="is a run of `quadranas train`, not of") as caught:
        matching_config(SearchConfig, trained, {}, "test")
    folder = f"'{tmp_path}/my run'"
    command = f"quadranas train {folder} --resume --output {folder}"
    assert caught.value.hint == f"Continue it with: {command}"
    assert command == resume_command("train", trained)
    assert not can_resume(SearchConfig, tmp_path, {})


def test_the_data_decide_what_is_left_open(pictures: Path) -> None:
    assert count_classes({}) == 10
    assert count_classes({"data": str(pictures)}) == 2
    assert open_data({}, 224, "test").resolution == MIN_RESOLUTION
    opened = open_data({"data": str(pictures)}, 224, "test")
    assert (opened.resolution, opened.num_classes) == (32, 2)
    assert open_data({"data": str(pictures), "train_resolution": 40}, 224, "test").resolution == 40
    with pytest.raises(QuadranasError, match="seed: Input should be greater than or equal to 0"):
        open_data({"seed": -1}, 224, "test")
