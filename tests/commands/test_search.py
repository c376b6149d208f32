"""The search as a whole: what it promises, what it writes, and that it repeats itself."""

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from quadranas.commands.build_lut import build_lut
from quadranas.commands.search import search
from quadranas.data.augmentation import AugmentConfig, Augmenter
from quadranas.data.class_folders import ClassFolders
from quadranas.data.dataset import Dataset, load_dataset
from quadranas.data.folders import list_folder
from quadranas.data.image_set import ImageSet
from quadranas.data.preprocessing import load_preprocessing
from quadranas.data.task import evaluate
from quadranas.errors import BudgetError, QuadranasError
from quadranas.latency.table_files import load_table
from quadranas.network.skeleton import build_subnet
from quadranas.network.weights import load_weights
from quadranas.reporter import Reporter
from quadranas.runs.config import SearchConfig, open_data
from quadranas.runs.records import Metrics
from quadranas.runs.results import SearchResult
from quadranas.runs.run_folder import RunFolder
from quadranas.space.architecture import load_architecture
from quadranas.space.cost import count_macs, count_params
from quadranas.space.space_file import load_space
from quadranas.supernet.supernet import build_supernet
from quadranas.training.search_setup import prepare_search
from quadranas.training.steps import weight_step
from quadranas.training.supernet_phase import SupernetTraining
from tests.command_line import RESULTS, call, contents, listing

TOY: dict[str, Any] = {"device": "cpu", "budget": "0.8ms", "space": "toy"}
ONE_EPOCH_EACH = {"warmup_epochs": 1, "search_epochs": 1, "finetune_epochs": 1}
DECIDED = ("architecture.json", "gates.json", "metrics.jsonl", "subnet.safetensors")
SMALL_MBCONV = """
extends: mbconv-mobile
name: small-mbconv
resolution: 32
widths: [4, 8, 8, 8]
stages:
  - {name: stem, stride: 2, depth: [1, 1], slots: [{kind: conv_bn, kernel_size: [3]}]}
  - name: stage1
    stride: 2
    depth: [1, 2]
    slots: &slots [{kind: mbconv, kernel_size: [3, 5], expand_ratio: [2, 3]}]
  - {name: stage2, stride: 2, depth: [1, 2], slots: *slots}
  - {name: last, depth: [1, 1], slots: [{kind: conv_bn, kernel_size: [1]}]}
"""


def run(output: Path, pictures: Path, *, resume: bool = False, **overrides: Any) -> SearchResult:
    given = {"data": str(pictures), "batch_size": 4, "candidates": 3, "schedule": ONE_EPOCH_EACH}
    return search(output=output, resume=resume, **(TOY | given | overrides))


def lines(folder: Path) -> list[dict[str, Any]]:
    text = (folder / "metrics.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_the_run_folder_is_complete(finished_run: Path) -> None:
    assert set(contents(finished_run)) == set(RESULTS)
    rest = {path.name for path in finished_run.iterdir()} - set(RESULTS)
    assert rest == {"checkpoints", "tensorboard", "report.html"}
    assert not [name for name in listing(finished_run) if name.endswith(".tmp")]
    assert [line["phase"] for line in lines(finished_run)] == ["warmup", "search", "finetune"]
    for line in lines(finished_run)[:2]:
        assert line["budget_ms"] == 0.8
        assert 0.566 < line["expected_ms"] < 1.09
        assert 0 <= line["entropy"] <= 1 + 1e-9
        assert 0 <= line["skip_rate"] <= 1
    assert "gate_loss" in lines(finished_run)[1]
    assert "800 us" in (finished_run / "report.html").read_text(encoding="utf-8")


def test_tensorboard_reads_the_curves(finished_run: Path) -> None:
    events = EventAccumulator(str(finished_run / "tensorboard"))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    assert {"warmup/loss", "search/expected_ms", "search/gate_loss", "finetune/accuracy"} <= tags
    (point,) = events.Scalars("search/expected_ms")
    assert point.step == 2
    assert point.value == pytest.approx(lines(finished_run)[1]["expected_ms"])


def test_the_network_is_rebuilt_from_its_file_alone(
    finished_run: Path, pictures: Path, tmp_path: Path
) -> None:
    for name in ("architecture.json", "subnet.safetensors", "preprocessing.json"):
        (tmp_path / name).write_bytes((finished_run / name).read_bytes())
    network = build_subnet(load_architecture(tmp_path / "architecture.json"))
    load_weights(network, tmp_path / "subnet.safetensors")
    expected = load_preprocessing(tmp_path / "preprocessing.json")
    assert expected.class_names == ("cat", "dog")
    test = load_dataset(pictures, resolution=expected.resolution).test
    plain = AugmentConfig(flip=False, crop_padding=0)
    augmenter = Augmenter(plain, num_classes=2, mean=expected.mean, std=expected.std)
    result = json.loads((finished_run / "result.json").read_text(encoding="utf-8"))
    assert evaluate(network, test, augmenter) == result["accuracy"]


def test_the_result_keeps_the_budget_and_adds_up(finished_run: Path) -> None:
    result = json.loads((finished_run / "result.json").read_text(encoding="utf-8"))
    architecture = load_architecture(finished_run / "architecture.json")
    table = load_table(Path(result["table"]["path"]))
    assert Path(result["table"]["path"]) == finished_run / "table.json"
    assert result["predicted_ms"] == table.predict_ms(architecture)
    assert 0.9 * 0.8 <= result["predicted_ms"] <= result["budget_ms"] == 0.8
    assert architecture.provenance["predicted_ms"] == result["predicted_ms"]
    assert (result["params"], result["macs"]) == (
        count_params(architecture),
        count_macs(architecture),
    )
    assert table.header.method == result["table"]["method"] == "analytic"
    assert result["table"]["summary"] == table.header.summary()


def test_a_search_that_cannot_learn_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_config: Path
) -> None:
    def unlearnable(*args: object) -> None:
        raise QuadranasError("no gradient reaches stage1_block1")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("quadranas.training.supernet_phase.check_gradients", unlearnable)
    search = ("search", "--device", "cpu", "--budget", "0.8ms", "--space", "toy")
    assert "no gradient reaches" in call(*search, "--config", small_config).err
    assert listing(tmp_path) == []


def test_the_feasibility_comes_first_and_the_accuracy_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_config: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    given = ("--device", "cpu", "--budget", "0.8ms", "--space", "toy", "--config", small_config)
    outcome = call("search", *given)
    assert outcome.code == 0, outcome.err
    first, second, third, *rest = outcome.err.splitlines()
    assert first == "budget 800 us on cpu; reachable with space toy: 566 us to 1.08 ms"
    assert second.startswith("latency table ")
    assert "analytic (Arm Cortex-A76 (Pixel 4), TFLite 2.1, fp32, 1 thread, batch 1;" in second
    assert third == "data pictures: 16 training and 8 test images, 2 classes, at 32 pixels"
    lines = [line for line in rest if not line.startswith("warning: ")]
    said = ["warmup", "search", "chose", "finetune", "testing"]
    assert [line.split()[0] for line in lines] == said
    assert "warning: the gates are undecided: their entropy is " in outcome.err
    assert outcome.out.count("test accuracy") == 1
    assert "run runs/toy-cpu-0.8ms-1, report runs/toy-cpu-0.8ms-1/report.html" in outcome.out
    again = call("search", *given, "--quiet")
    assert all(line.startswith("warning: ") for line in again.err.splitlines())
    assert "run runs/toy-cpu-0.8ms-2" in again.out


def test_the_test_images_are_seen_once_at_the_very_end(
    tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []

    def spied(*args: Any) -> Dataset:
        dataset: Dataset = open_data(*args)

        def pick(indices: Tensor) -> Tensor:
            assert (tmp_path / "run" / "subnet.safetensors").is_file()
            events.extend(f"test {index}" for index in indices.tolist())
            return dataset.test.batch(indices).permute(0, 2, 3, 1)

        return replace(dataset, test=ImageSet(dataset.test.labels, pick))

    def step(*args: Any) -> Any:
        events.append("step")
        return weight_step(*args)

    monkeypatch.setattr("quadranas.training.search_setup.open_data", spied)
    monkeypatch.setattr("quadranas.training.network_phase.weight_step", step)
    result = run(tmp_path / "run", pictures)
    assert events == ["step"] * 4 + [f"test {index}" for index in range(8)]
    assert result.accuracy == 1.0


def test_the_resolved_configuration_repeats_the_run(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    stored = finished_run / "config.yaml"
    outcome = call("search", "--config", stored, "--output", "again", "--quiet")
    assert outcome.code == 0, outcome.err
    names = set(RESULTS) - {"result.json"}  # it holds paths
    assert contents(tmp_path / "again", names) == contents(finished_run, names)


def test_a_seed_decides_everything(finished_run: Path, tmp_path: Path, pictures: Path) -> None:
    run(tmp_path / "same", pictures, seed=0)
    assert contents(tmp_path / "same", DECIDED) == contents(finished_run, DECIDED)
    run(tmp_path / "other", pictures, seed=1)
    here, there = contents(tmp_path / "other", DECIDED), contents(finished_run, DECIDED)
    for name in set(DECIDED) - {"architecture.json"}:
        assert here[name] != there[name]


class PowerCutError(Exception):
    """Stops a search after a checkpoint."""


@pytest.mark.parametrize(
    ("space", "gates", "supernet"),
    [
        ("toy", {"weight_steps": 2}, {"weights": "nested", "sandwich": 1, "near_budget": 0.1}),
        ("small-mbconv", {"mode": "full"}, {"sandwich": 1, "distillation": True}),
    ],
)
def test_an_interrupted_search_ends_as_if_it_had_not_been(
    tmp_path: Path,
    pictures: Path,
    monkeypatch: pytest.MonkeyPatch,
    space: str,
    gates: Mapping[str, Any],
    supernet: Mapping[str, Any],
) -> None:
    monkeypatch.chdir(tmp_path)
    weights = {"optimizer": "sgd", "learning_rate": 0.01}
    overrides: dict[str, Any] = {"weights": weights, "gates": {"learning_rate": 0.03, **gates}}
    overrides |= {
        "supernet": supernet,
        "checkpoint_seconds": 0,
        "augment": {"mixup": 0.2, "rand_augment_ops": 1},
    }
    if space != "toy":
        (tmp_path / "space.yaml").write_text(SMALL_MBCONV, encoding="utf-8")
        build_lut("space.yaml", device="cpu")
        overrides |= {"space": "space.yaml", "budget": "0.9ms"}
    run(tmp_path / "whole", pictures, **overrides)
    assert set(contents(tmp_path / "whole", DECIDED)) == set(DECIDED)
    real = RunFolder.save_checkpoint
    cut = tmp_path / "cut"
    for resume, steps in ((False, 2), (True, 3), (True, 2)):  # of eight: in every phase
        countdown = steps

        def save_checkpoint(self: RunFolder, state: Mapping[str, Any]) -> None:
            nonlocal countdown
            real(self, state)
            countdown -= 1
            if countdown == 0:
                raise PowerCutError

        monkeypatch.setattr(RunFolder, "save_checkpoint", save_checkpoint)
        with pytest.raises(PowerCutError):
            run(cut, pictures, resume=resume, **overrides)
    monkeypatch.setattr(RunFolder, "save_checkpoint", real)
    run(cut, pictures, resume=True, **overrides)
    assert contents(cut, DECIDED) == contents(tmp_path / "whole", DECIDED)


def test_phases_may_be_left_out(tmp_path: Path, pictures: Path) -> None:
    schedule = {"warmup_epochs": 0, "search_epochs": 1, "finetune_epochs": 0}
    run(tmp_path / "run", pictures, schedule=schedule)
    assert [line["phase"] for line in lines(tmp_path / "run")] == ["search"]
    names = ("inherited.safetensors", "subnet.safetensors")
    inherited, subnet = contents(tmp_path / "run", names).values()
    assert inherited == subnet


def test_the_images_are_listed_once(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed: list[Path] = []

    def noted(path: Path) -> ClassFolders:
        listed.append(path)
        return list_folder(path)

    monkeypatch.setattr("quadranas.data.listing.list_folder", noted)
    prepare_search(SearchConfig(**TOY, data=str(pictures)), Reporter(quiet=True))
    assert listed == [pictures]


def test_limits_hold(tmp_path: Path, pictures: Path, finished_run: Path) -> None:
    free = json.loads((finished_run / "result.json").read_text(encoding="utf-8"))
    limits = {"max_params": free["params"] - 1, "max_macs": free["macs"] - 1}
    result = run(tmp_path / "run", pictures, **limits)
    assert result.params < free["params"]
    assert result.macs < free["macs"]


def test_the_budget_is_that_of_the_data_s_classes(
    tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a space with 5,000 classes only what the data need counts, before any training."""
    monkeypatch.chdir(tmp_path)
    text = "{extends: toy, name: wide, num_classes: 5000}"
    (tmp_path / "wide.yaml").write_text(text, encoding="utf-8")
    table = build_lut("wide.yaml", device="cpu").table()

    def smallest_ms(num_classes: int) -> float:
        space = load_space("wide.yaml").with_num_classes(num_classes)
        return table.predict_ms(space.extreme(table.op_ms, largest=False))

    few, many = smallest_ms(2), smallest_ms(5000)
    budget = f"{(few + many) / 2!r}ms"
    result = run(tmp_path / "run", pictures, space="wide.yaml", budget=budget)
    assert few <= result.predicted_ms < many
    monkeypatch.setattr("quadranas.training.search_setup.count_classes", lambda listing: 5000)
    with pytest.raises(BudgetError, match="no network of space 'wide' keeps"):
        run(tmp_path / "other", pictures, space="wide.yaml", budget=budget)
    assert not (tmp_path / "other").exists()


def test_a_full_disk_is_known_before_training(
    tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage:
        free = 100_000

    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage)
    with pytest.raises(QuadranasError, match=r"has 0\.1 MiB free; this run needs about 0\.3 MiB"):
        run(tmp_path / "deep" / "run", pictures)
    assert listing(tmp_path) == []


def test_resuming_nothing_begins(tmp_path: Path, finished_run: Path, small_config: Path) -> None:
    """A job that is always started with --resume begins the first time."""
    outcome = call(
        *("search", "--device", "cpu", "--budget", "0.8ms", "--space", "toy", "--resume"),
        *("--config", small_config, "--output", tmp_path / "run"),
    )
    assert outcome.code == 0, outcome.err
    assert outcome.err.startswith(f"{tmp_path / 'run'} holds no run to continue; beginning one\n")
    assert contents(tmp_path / "run", DECIDED) == contents(finished_run, DECIDED)


def test_the_global_generator_decides_nothing(
    tmp_path: Path, pictures: Path, finished_run: Path
) -> None:
    torch.manual_seed(1234)
    run(tmp_path / "run", pictures)
    assert contents(tmp_path / "run", DECIDED) == contents(finished_run, DECIDED)


def test_a_budget_that_every_network_keeps_presses_on_no_gate(
    tmp_path: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = TOY | {"budget": "50ms", "data": str(pictures), "schedule": ONE_EPOCH_EACH}
    search(SearchConfig(**given), output=tmp_path / "run", reporter=Reporter())
    assert "every network keeps it" in capsys.readouterr().err
    assert all(line["latency_weight"] == 0.0 for line in lines(tmp_path / "run")[:2])


@pytest.fixture
def trained(tmp_path: Path, pictures: Path) -> SupernetTraining:
    given = TOY | {"data": str(pictures), "schedule": ONE_EPOCH_EACH}
    setup = prepare_search(SearchConfig(**given), Reporter(quiet=True))
    return SupernetTraining(setup, build_supernet(setup.space, seed=0, nested=True))


def test_collapsed_gates_sound_an_alarm_while_there_is_time(trained: SupernetTraining) -> None:
    early: Metrics = {"step": 1, "entropy": 0.01, "expected_ms": 0.8}
    (alarm,) = trained.alarms(early)
    assert "gates have collapsed" in alarm
    assert not list(trained.alarms(early | {"entropy": 0.5}))
    assert not list(trained.alarms(early | {"step": trained.num_steps}))


def test_an_expectation_off_the_budget_at_the_end_sounds_an_alarm(
    trained: SupernetTraining,
) -> None:
    last: Metrics = {"step": trained.num_steps, "entropy": 0.5, "expected_ms": 0.9}
    (alarm,) = trained.alarms(last)
    assert "ended at 0.9 ms, 12% above the budget" in alarm
    assert not list(trained.alarms(last | {"expected_ms": 0.82}))
    assert not list(trained.alarms(last | {"step": 1}))


def test_a_diverged_loss_stops_the_run_by_name(
    tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverged(self: SupernetTraining, number: int) -> Mapping[str, Tensor]:
        return {"loss": torch.tensor(math.nan)}

    monkeypatch.setattr(SupernetTraining, "step", diverged)
    with pytest.raises(QuadranasError, match="training diverged: loss is nan") as caught:
        run(tmp_path / "run", pictures)
    assert "weights.learning_rate" in caught.value.hint
    assert not list((tmp_path / "run" / "checkpoints").glob("*.pt"))
