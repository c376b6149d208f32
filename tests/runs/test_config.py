"""Configurations: strict, complete, with defaults that suit the data, comparable on resuming."""

import math
from pathlib import Path
from typing import Any, cast

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from quadranas.data.dataset import Dataset
from quadranas.errors import QuadranasError
from quadranas.runs.config import (
    MIN_RESOLUTION,
    DataConfig,
    SearchConfig,
    TrainConfig,
    WeightConfig,
    combined,
    count_classes,
    given_keys,
    list_data,
    load_config,
    merged,
    open_data,
)
from quadranas.runs.config_file import recorded_command, with_header
from quadranas.runs.layout import RESUMABLE
from quadranas.runs.next_command import resume_command
from quadranas.runs.recipe import resolve_config
from quadranas.runs.resume import can_resume, matching_config, run_name

GIVEN: dict[str, Any] = {"device": "cpu", "budget": "1ms"}


def dataset(num_images: int, resolution: int = 32) -> Dataset:
    """As large as need be, without any image."""

    class Images:
        def __len__(self) -> int:
            return num_images

    third, images = (0.3, 0.3, 0.3), cast(Any, Images())
    return Dataset(
        name="none",
        class_names=("a", "b"),
        resolution=resolution,
        train=images,
        test=images,
        mean=third,
        std=third,
        resized=lambda resolution: (images, images),
    )


def resolved(**overrides: Any) -> SearchConfig:
    return resolve_config(SearchConfig(**GIVEN, **overrides), dataset(100))


def write(path: Path, content: Any) -> Path:
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def test_every_command_has_a_configuration() -> None:
    assert set(RESUMABLE) == {"search", "train"}
    assert set(SearchConfig.model_fields) & set(TrainConfig.model_fields) >= {"seed", "weights"}


@pytest.mark.parametrize("size", [2, 5_000, 5_001, 200_000, 200_001])
@pytest.mark.parametrize("model", [SearchConfig, TrainConfig])
def test_defaults_are_complete_for_data_of_any_size(
    model: type[SearchConfig] | type[TrainConfig], size: int
) -> None:
    given = GIVEN if model is SearchConfig else {}
    config = resolve_config(model(**given), dataset(size))
    assert config.train_resolution == 32
    assert config.augment.flip is False  # digits have no mirror image
    assert resolve_config(model(**given, data="x"), dataset(size)).augment.flip
    assert given_keys(config) == config.model_dump(mode="json")  # nothing is left open
    again = resolve_config(model(**config.model_dump(mode="json")), dataset(size))
    assert again == config


def test_large_data_train_longer() -> None:
    sizes = (5_000, 200_000, 1_000_000)
    schedules = [resolve_config(SearchConfig(), dataset(size)).schedule for size in sizes]
    totals = [sum(schedule.model_dump().values()) for schedule in schedules]
    assert totals == sorted(totals)
    assert totals[0] < totals[-1]


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
        (
            {"bugdet": 1},
            "bugdet: unknown key (got 1); accepted: accelerator, accumulate, also, augment, ",
        ),
        ({"gates": {"mod": "full"}}, "gates.mod: unknown key (got 'full'); accepted: "),
        ({"gates": {"mode": "ful"}}, "gates.mode: Input should be 'two_path' or 'full'"),
        ({"batch_size": 1}, "batch_size: Input should be greater than or equal to 2 (got 1)"),
        ({"schedule": [1]}, "schedule: Input should be a mapping of keys (got [1])"),
        ({"weights": {"learning_rate": -1}}, "weights.learning_rate: Input should be greater"),
        ({"weights": {"learning_rate": float("nan")}}, "weights.learning_rate: Input should be"),
        ({"weights": {"learning_rate": "fast"}}, "weights.learning_rate: Input should be a valid"),
        (
            {"weights": {"learning_rate": 1e308}},
            "weights.learning_rate: Input should be less than",
        ),
        ({"weights": {"weight_decay": 1e308}}, "weights.weight_decay: Input should be less than"),
        ({"weights": {"clip_norm": 1e308}}, "weights.clip_norm: Input should be less than"),
        ({"gates": {"learning_rate": math.inf}}, "gates.learning_rate: Input should be a finite"),
        ({"gates": {"learning_rate": 1e308}}, "gates.learning_rate: Input should be less than"),
        ({"gates": {"weight_steps": 10**400}}, "gates.weight_steps: "),
        ({"schedule": {"search_epochs": 10**30}}, "schedule.search_epochs: Input should be less"),
        ({"max_macs": 10**30}, "max_macs: Input should be less than or equal to"),
        ({"checkpoint_seconds": 1e308}, "checkpoint_seconds: Input should be less than or equal"),
        ({"batch_size": True}, "batch_size: Input should be a valid integer (got True)"),
        ({"skip_corrupt": "yes"}, "skip_corrupt: Input should be a valid boolean (got 'yes')"),
        ({"budget": True}, "budget: Input should be a valid string (got True)"),
        ({"augment": {"mixup": 11}}, "augment.mixup: Input should be less than or equal to 10"),
        ({"device": 3}, "device: Input should be a valid string (got 3)"),
    ],
)
def test_faults_are_found_before_anything_is_opened(
    tmp_path: Path, content: dict[str, Any], message: str
) -> None:
    path = write(tmp_path / "config.yaml", content)
    with pytest.raises(QuadranasError) as caught:
        load_config(SearchConfig, path)
    assert caught.value.message.startswith(f"{path}: {message}")


def test_what_is_missing_is_no_fault_yet(tmp_path: Path) -> None:
    content = {"schedule": {"search_epochs": 3}, "budget": "30"}
    path = write(tmp_path / "config.yaml", content | {"budget": 30})
    assert given_keys(load_config(SearchConfig, path)) == content
    assert given_keys(load_config(SearchConfig, None)) == {}
    with pytest.raises(QuadranasError, match="schedule: unknown key"):
        load_config(TrainConfig, path)


def test_options_win_over_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "config.yaml", {"seed": 1, "schedule": {"search_epochs": 3}})
    config = load_config(SearchConfig, path, seed=2, table=Path("t.json"))
    assert given_keys(config) == {"seed": 2, "schedule": {"search_epochs": 3}, "table": "t.json"}
    with pytest.raises(QuadranasError, match="command line: seed: Input should be"):
        load_config(SearchConfig, path, seed=-1)


def test_keys_win_over_a_configuration_object() -> None:
    config = SearchConfig(device="cpu", schedule={"finetune_epochs": 5, "search_epochs": 3})
    both = combined(SearchConfig, config, {"device": "vpu", "schedule": {"search_epochs": 9}})
    assert given_keys(both) == {
        "device": "vpu",
        "schedule": {"finetune_epochs": 5, "search_epochs": 9},
    }
    with pytest.raises(QuadranasError, match="arguments: sede: unknown key"):
        combined(SearchConfig, config, {"sede": 3})
    with pytest.raises(QuadranasError, match="expected a SearchConfig, got a TrainConfig"):
        combined(SearchConfig, TrainConfig(), {})


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
    assert run_name(SearchConfig(**overrides)) == name


def stored(folder: Path, config: SearchConfig | TrainConfig) -> Path:
    folder.mkdir()
    command = "search" if isinstance(config, SearchConfig) else "train"
    write(folder / "config.yaml", with_header(command, config.model_dump(mode="json")))
    return folder


def test_what_was_said_before_may_be_said_again(tmp_path: Path) -> None:
    folder = stored(tmp_path / "run", resolved(seed=3, schedule={"search_epochs": 7}))
    for options in (
        {},
        {"seed": 3, "device": "cpu"},
        {"schedule": {"search_epochs": 7}},
        {"weights": {"learning_rate": 4.0e-3}},
        resolved(seed=3, schedule={"search_epochs": 7}).model_dump(mode="json"),
    ):
        given = SearchConfig(**options)
        kept = matching_config("search", folder, given)
        assert kept == resolved(seed=3, schedule={"search_epochs": 7})
        assert can_resume("search", folder, given)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": 4}, "the run has seed 3, got 4"),
        ({"schedule": {"search_epochs": 8}}, "the run has schedule.search_epochs 7, got 8"),
        ({"data": "x"}, "the run has data None, got 'x'"),
    ],
)
def test_contradictions_are_named(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    folder = stored(tmp_path / "run", resolved(seed=3, schedule={"search_epochs": 7}))
    with pytest.raises(QuadranasError) as caught:
        matching_config("search", folder, SearchConfig(**options))
    assert message in caught.value.message
    assert not can_resume("search", folder, SearchConfig(**options))


def test_a_run_of_another_verb_is_named(tmp_path: Path) -> None:
    trained = stored(tmp_path / "my run", resolve_config(TrainConfig(), dataset(10)))
    with pytest.raises(QuadranasError, match="is a run of `quadranas train`, not of") as caught:
        matching_config("search", trained, SearchConfig())
    folder = f"'{tmp_path}/my run'"
    command = f"quadranas train MODEL --resume --output {folder}"
    assert caught.value.hint == f"Continue it with: {command}"
    (trained / "architecture.json").touch()  # once the network is copied, the folder names it
    command = f"quadranas train --resume --output {folder}"
    assert command == resume_command("train", trained)
    assert not can_resume("search", tmp_path, SearchConfig())


def test_files_of_version_0_1_0_are_recognised(tmp_path: Path) -> None:
    """They name neither command nor format version."""
    for name, config in (
        ("search", resolved(seed=3)),
        ("train", resolve_config(TrainConfig(), dataset(10))),
    ):
        folder = tmp_path / name
        folder.mkdir()
        write(folder / "config.yaml", config.model_dump(mode="json"))
        assert recorded_command(folder) == name
        assert matching_config(name, folder, type(config)()) == config
    write(tmp_path / "config.yaml", {"trainable": "quadratic"})
    assert recorded_command(tmp_path) is None
    with pytest.raises(QuadranasError, match="holds no run of `quadranas train`"):
        matching_config("train", tmp_path, TrainConfig())


def test_a_key_that_an_old_file_lacks_has_its_default(tmp_path: Path) -> None:
    folder = stored(tmp_path / "run", resolved(seed=3))
    content = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    del content["inspect"]
    write(folder / "config.yaml", content)
    assert matching_config("search", folder, SearchConfig()) == resolved(seed=3)


def test_a_newer_file_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "config.yaml", {"command": "search", "format_version": 2, "new": 1})
    for read in (lambda: load_config(SearchConfig, path), lambda: recorded_command(tmp_path)):
        with pytest.raises(QuadranasError, match="format_version 2 is newer") as caught:
            read()
        assert caught.value.hint == "Upgrade with: pip install --upgrade quadranas"


@pytest.mark.parametrize("command", ["adapt", "convert"])
def test_a_folder_of_another_command_holds_no_run(tmp_path: Path, command: str) -> None:
    write(tmp_path / "config.yaml", with_header(command, {"epochs": 3}))
    with pytest.raises(QuadranasError, match=f"was written by `quadranas {command}` and holds"):
        matching_config("train", tmp_path, TrainConfig())


def test_the_data_decide_what_is_left_open(pictures: Path) -> None:
    photos = DataConfig(data=str(pictures))
    assert count_classes(list_data(DataConfig())) == 10
    assert count_classes(list_data(photos)) == 2
    assert open_data(DataConfig(), 224).resolution == MIN_RESOLUTION
    opened = open_data(photos, 224)
    assert (opened.resolution, opened.num_classes) == (32, 2)
    assert open_data(DataConfig(data=str(pictures), train_resolution=40), 224).resolution == 40


def test_listed_images_are_not_walked_again(
    pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = DataConfig(data=str(pictures))
    listing = list_data(config)
    monkeypatch.setattr("quadranas.data.listing.open_contents", None)
    assert count_classes(listing) == 2
    assert len(open_data(config, 224, listing).train) == 16
