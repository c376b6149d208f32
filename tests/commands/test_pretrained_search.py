"""Searches that start from pre-trained weights, as a whole."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from quadranas.commands.build_lut import build_lut
from quadranas.commands.derive import derive
from quadranas.commands.search import search
from quadranas.commands.space_from import space_from
from quadranas.commands.train import train
from quadranas.data.preprocessing import load_preprocessing
from quadranas.errors import QuadranasError
from quadranas.network.skeleton import build_subnet
from quadranas.reporter import Reporter
from quadranas.runs.run_folder import RunFolder
from quadranas.space.cost import count_macs
from quadranas.space.space_file import load_space
from quadranas.supernet.gate_training import GateTrainer
from quadranas.training.teacher import Teacher
from tests.acceleration.processes import run_together
from tests.command_line import SMALL, Server, call, contents, listing
from tests.conversion.known_networks import ConvNeXt, MobileNetV2, as_trained

GIVEN: dict[str, Any] = {
    "device": "cpu",
    "budget": "0.8ms",
    "space": "toy",
    "batch_size": 4,
    "candidates": 3,
    "schedule": {"warmup_epochs": 1, "search_epochs": 1, "finetune_epochs": 1},
}
DECIDED = ("architecture.json", "gates.json", "metrics.jsonl", "subnet.safetensors")


def write_weights(path: Path, *, classes: int = 2, seed: int = 0) -> Path:
    architecture = load_space("toy").extreme(count_macs, largest=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build_subnet(architecture.adapted(num_classes=classes))
    save_file(network.state_dict(), path)
    return path


class PowerCutError(Exception):
    """Stops a search after a checkpoint."""


@pytest.mark.parametrize("weights", ["independent", "nested"])
def test_an_interrupted_search_keeps_the_weights_it_began_with(
    weights: str, tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_weights(tmp_path / "weights.safetensors")
    given = GIVEN | {"data": str(pictures), "init": str(path), "checkpoint_seconds": 0}
    given |= {"supernet": {"weights": weights}}
    whole = search(output=tmp_path / "whole", **given)
    assert whole.pretrained is not None
    assert whole.pretrained.deviations == ()
    assert whole.pretrained.max_difference is not None
    assert whole.pretrained.max_difference <= (1e-6 if weights == "nested" else 0)
    create, save = RunFolder.create, RunFolder.save_checkpoint

    def cut_before_the_first_step(self: RunFolder, *args: Any) -> None:
        create(self, *args)
        raise PowerCutError

    def cut(self: RunFolder, state: Mapping[str, Any]) -> None:
        save(self, state)
        raise PowerCutError

    for method, stop in (("create", cut_before_the_first_step), ("save_checkpoint", cut)):
        with monkeypatch.context() as patch:
            patch.setattr(RunFolder, method, stop)
            with pytest.raises(PowerCutError):
                search(output=tmp_path / "cut", resume=method != "create", **given)
    path.unlink()
    shutil.copy(write_weights(tmp_path / "other.safetensors", seed=1), path)
    search(output=tmp_path / "cut", resume=True, **given)
    assert contents(tmp_path / "cut", DECIDED) == contents(tmp_path / "whole", DECIDED)
    if weights == "nested":
        other = search(output=tmp_path / "other", **given)
        assert other.pretrained is not None
        assert other.pretrained.digest != whole.pretrained.digest
        assert contents(tmp_path / "other", DECIDED) != contents(tmp_path / "whole", DECIDED)


def test_console_and_report_say_what_was_used(
    tmp_path: Path, pictures: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = write_weights(tmp_path / "weights.safetensors", classes=5)
    given = GIVEN | {"data": str(pictures), "init": str(path)}
    result = search(output=tmp_path / "run", reporter=Reporter(), **given)
    printed = capfd.readouterr().err
    report = (tmp_path / "run" / "report.html").read_text("utf-8")
    for text in ("entry and 2 blocks", "kernel 3; expansion 2", "classifier of 5 classes"):
        assert text in printed
        assert f"<td>{text}</td>" in report
    said = "not embedded exactly: head: a new classifier, for other classes"
    assert f"warning: {said}" in printed
    assert said.capitalize() in report
    assert result.pretrained is not None
    record = json.loads((tmp_path / "run" / "pretrained.json").read_text("utf-8"))
    assert record["digest"] == result.pretrained.digest
    assert record["source"] == str(path)


def test_weights_of_other_widths_lead_to_a_space_that_fits(
    tmp_path: Path, small_config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_weights(tmp_path / "weights.safetensors")
    begun = ("search", "--device", "cpu", "--budget", "30ms", "--config", small_config)
    outcome = call(*begun, "--space", "quadranet-mobile", "--init", "weights.safetensors")
    assert outcome.code == 2
    assert "has the widths" not in outcome.err
    assert "its stages have the widths 8, 16; those of the space have 40, 80, 128, 256" in (
        outcome.err
    )
    assert "quadranas space-from weights.safetensors --output NAME.yaml" in outcome.err
    assert sorted(listing(tmp_path)) == ["weights.safetensors"]
    made = call("space-from", "weights.safetensors", "--resolution", "32", "--output", "w.yaml")
    assert made.code == 0, made.err
    assert "around a QuadraNet of the widths 8, 16, at 32 pixels" in made.out
    assert call("build-lut", "--device", "cpu", "--space", "w.yaml").code == 0
    begun = ("search", "--device", "cpu", "--budget", "0.8ms", "--config", small_config)
    outcome = call(*begun, "--space", "w.yaml", "--init", "weights.safetensors", "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.json()["pretrained"]["deviations"] == []
    again = call("space-from", "weights.safetensors", "--output", "w.yaml")
    assert "the output w.yaml exists already" in again.err
    assert "does not end with .yaml" in call("space-from", "w", "--output", "w.json").err


@pytest.mark.parametrize("family", [MobileNetV2, ConvNeXt], ids=["mobilenet", "convnext"])
def test_a_first_order_network_becomes_a_search(
    family: type[nn.Module],
    tmp_path: Path,
    pictures: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model": as_trained(family()).state_dict()}, "weights.pth")
    made = space_from("weights.pth", output="around.yaml", resolution=32, quadratic=True)
    kinds = {spec.kind for spec in made.space().specs()}
    assert kinds & {"quadratic_mbconv", "quadratic_convnext"}
    table = build_lut("around.yaml", device="cpu").table()
    largest = made.space().extreme(count_macs, largest=True)
    given = GIVEN | {
        "data": str(pictures),
        "space": "around.yaml",
        "init": "weights.pth",
        "budget": f"{0.8 * table.predict_ms(largest):.3g}ms",
        "schedule": {"warmup_epochs": 0, "search_epochs": 1, "finetune_epochs": 1},
    }
    result = search(output="run", **given)
    assert result.pretrained is not None
    assert result.pretrained.family == family.__name__
    assert result.pretrained.deviations == ("head: a new classifier, for other classes",)
    assert result.pretrained.max_difference is not None
    assert result.pretrained.max_difference < 1e-5


def test_a_bad_checkpoint_leaves_no_run(tmp_path: Path, pictures: Path) -> None:
    (tmp_path / "weights.pth").write_bytes(b"nothing")
    given = GIVEN | {"data": str(pictures), "init": str(tmp_path / "weights.pth")}
    with pytest.raises(QuadranasError, match=r"cannot read weights .*weights\.pth"):
        search(output=tmp_path / "run", **given)
    assert listing(tmp_path) == ["weights.pth"]


def test_the_network_is_the_teacher_of_weights_but_not_of_gates(
    tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    real_logits, real_step = Teacher.logits, GateTrainer.step

    def logits(self: Teacher, *args: Any) -> Any:
        calls.append(self.name)
        return real_logits(self, *args)

    def step(self: GateTrainer, *args: Any) -> Any:
        before = len(calls)
        result = real_step(self, *args)
        assert len(calls) == before
        return result

    monkeypatch.setattr(Teacher, "logits", logits)
    monkeypatch.setattr(GateTrainer, "step", step)
    path = write_weights(tmp_path / "weights.safetensors")
    given = GIVEN | {"data": str(pictures), "init": str(path)}
    result = search(output=tmp_path / "run", **given)
    assert result.pretrained is not None
    assert result.pretrained.is_teacher
    # One batch to check it, then 2 + 2 steps of the supernet and 4 of the network.
    assert calls == [str(path)] * 9
    assert "It is the teacher too" in (tmp_path / "run" / "report.html").read_text("utf-8")
    calls.clear()
    result = search(output=tmp_path / "named", **given, teacher=str(tmp_path / "run"))
    assert set(calls) == {str(tmp_path / "run")}
    assert result.pretrained is not None
    assert not result.pretrained.is_teacher


def test_frozen_stages_are_those_of_the_checkpoint(tmp_path: Path, pictures: Path) -> None:
    path = write_weights(tmp_path / "weights.safetensors")
    given = GIVEN | {"data": str(pictures), "init": str(path)}
    given |= {"distillation": {"weight": 0}}
    result = search(output=tmp_path / "run", **given, pretrained={"frozen_stages": 1})
    assert result.pretrained is not None
    assert not result.pretrained.is_teacher
    before, after = load_file(path), load_file(tmp_path / "run" / "subnet.safetensors")
    for name in after:
        is_frozen = name.startswith("blocks.stage1_entry.")
        is_frozen |= name.endswith("norm.weight") and name.startswith("blocks.stage1_")
        if is_frozen:
            assert torch.equal(after[name], before[name]), name
    assert any(not torch.equal(after[n], before[n]) for n in after if "stage2_entry" in n)
    with pytest.raises(QuadranasError, match=r"frozen_stages is 3; space toy has 2 stages"):
        search(output=tmp_path / "more", **given, pretrained={"frozen_stages": 3})
    without = {key: value for key, value in given.items() if key != "init"}
    with pytest.raises(QuadranasError, match="needs a pre-trained network"):
        search(output=tmp_path / "none", **without, pretrained={"frozen_stages": 1})


def test_all_processes_begin_with_the_weights_of_the_main_one(
    tmp_path: Path, server: Server, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_weights(tmp_path / "weights.safetensors")
    (tmp_path / "c.yaml").write_text(SMALL.format(pictures=pictures))
    unread = (
        "import quadranas.commands.search as command\n"
        "def refuse(*_): raise SystemExit(7)\n"
        "command.open_pretrained = command.kept_pretrained = refuse"
    )
    outcomes = run_together(
        *(server, tmp_path, 2, "search", "--space", "toy", "--device", "cpu"),
        *("--budget", "0.8ms", "--config", "c.yaml", "--init", "weights.safetensors"),
        *("--output", "run"),
        preludes={1: unread},
    )
    assert [outcome.code for outcome in outcomes] == [0, 0], outcomes[0].err
    result = json.loads((tmp_path / "run" / "result.json").read_text("utf-8"))
    assert result["processes"] == 2
    assert result["pretrained"]["is_teacher"]


def test_images_are_normalised_as_in_the_first_training(
    tmp_path: Path, finished_run: Path, pictures: Path
) -> None:
    source = tmp_path / "source"
    shutil.copytree(finished_run, source)
    seen = load_preprocessing(source / "preprocessing.json")
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    changed = seen.model_copy(update={"mean": mean, "std": std})
    changed.save(source / "preprocessing.json")
    given = GIVEN | {"data": str(pictures), "init": str(source)}
    result = search(output=tmp_path / "run", **given)
    assert load_preprocessing(tmp_path / "run" / "preprocessing.json") == changed
    assert result.pretrained is not None
    assert result.pretrained.is_teacher
    assert derive(tmp_path / "run", device="cpu", budget="0.9ms", output=tmp_path / "derived")
    train(tmp_path / "derived", epochs=1, output=tmp_path / "trained")
    assert load_preprocessing(tmp_path / "trained" / "preprocessing.json") == changed
    others = changed.model_copy(update={"class_names": ("cat", "cow")})
    others.save(source / "preprocessing.json")
    result = search(output=tmp_path / "others", **given)
    assert result.pretrained is not None
    assert result.pretrained.deviations == ("head: a new classifier, for other classes",)
    assert not result.pretrained.is_teacher
