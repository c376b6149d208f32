"""A user's own model from its code to a verified ONNX file, and nothing that runs it by itself."""

import copy
import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import yaml
from torch import nn

import quadranas
from quadranas.commands.convert import ConvertResult
from quadranas.errors import QuadranasError
from quadranas.network import own_model
from quadranas.runs.run_folder import RunFolder
from quadranas.runs.stored_network import open_network
from tests.command_line import call, listing
from tests.own_models import SIZE, build

pytestmark = pytest.mark.usefixtures("exports")

EXAMPLE = torch.zeros(1, 3, SIZE, SIZE)
GIVEN: dict[str, Any] = {
    "device": "cpu",
    "train_resolution": SIZE,
    "batch_size": 8,
    "candidates": 2,
    "accelerator": "cpu",
    "schedule": {"warmup_epochs": 1, "search_epochs": 1, "finetune_epochs": 1},
}
CODE = """
from pathlib import Path

from tests.own_models import build as build_named

def build():
    with Path({witness!r}).open("a") as file:
        file.write("built ")
    return build_named("mobilenet")

def broken():
    raise ValueError("no weights here")

number = 3
"""


def middle(space: Path, table: quadranas.LatencyTable) -> str:
    """A budget in the middle of the reachable range."""
    from quadranas.strategies.limits import reachable_ms

    low, high = reachable_ms(quadranas.load_space(space), table)
    return f"{500 * (low + high):.6g}us"


FEW: dict[str, Any] = {
    "resnet": {"layer2.1": ["skip", "hidden"], "layer2.1.conv2": ["adapted"]},
    "mobilenet": ["features.1"],
    "convnext": {"blocks.0": ["skip", "kernel"], "blocks.1.dwconv": ["quadratic"]},
}
"""Choices that are priced quickly, of every kind."""


class PowerCutError(Exception):
    """Stops a search after a checkpoint."""


def interrupted_search(
    model: nn.Module, monkeypatch: pytest.MonkeyPatch, given: dict[str, Any]
) -> quadranas.SearchResult:
    """A search that ends with the weights it began with, though the model has others by then."""
    save = RunFolder.save_checkpoint

    def cut(self: RunFolder, state: Mapping[str, Any]) -> None:
        save(self, state)
        raise PowerCutError

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "save_checkpoint", cut)
        with pytest.raises(PowerCutError):
            quadranas.search(output="run", checkpoint_seconds=0, **given)
    other = copy.deepcopy(model)
    for parameter in other.parameters():
        nn.init.zeros_(parameter)
    digest = quadranas.use_model(other)
    found = quadranas.search(output="run", resume=True, checkpoint_seconds=0, **given)
    kept = own_model.copy_of(digest).state_dict()
    assert all(torch.equal(kept[name], tensor) for name, tensor in model.state_dict().items())
    return found


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("resnet", marks=pytest.mark.slow),
        pytest.param("mobilenet", marks=pytest.mark.slow),
        "convnext",
    ],
)
def test_from_a_search_to_onnx(
    name: str, tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model, where = build(name), FEW[name]
    made = quadranas.make_space(model, EXAMPLE, where=where, widths=[0.5], output=f"{name}.yaml")
    assert made.params == sum(parameter.numel() for parameter in model.parameters())
    table = quadranas.build_lut(made.path, device="cpu").table()
    budget = middle(made.path, table)
    given = GIVEN | {"space": str(made.path), "budget": budget, "data": str(pictures)}
    found = interrupted_search(model, monkeypatch, given | {"init": "own-model"})
    assert found.pretrained is not None
    assert found.pretrained.is_teacher
    assert found.pretrained.deviations == ()
    assert found.pretrained.max_difference is not None
    assert found.pretrained.max_difference < 1e-5
    assert found.budget_ms >= found.predicted_ms > 0
    assert found.memory_bytes is None
    assert found.report_path is not None
    report = found.report_path.read_text("utf-8")
    assert "made from your own model" in report

    exported = quadranas.export("run")
    assert exported.top1_agreement == 1
    images = np.random.default_rng(0).normal(size=(1, 3, SIZE, SIZE)).astype(np.float32)
    session = onnxruntime.InferenceSession(exported.path)
    (scores,) = session.run(None, {session.get_inputs()[0].name: images})
    network = found.network().eval()
    with torch.no_grad():
        expected = network(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-5)
    assert found.params == sum(parameter.numel() for parameter in network.parameters())

    assert exported.predicted_ms == found.predicted_ms
    larger = found.derive(device="cpu", budget="1s", output="larger")
    assert larger.predicted_ms > 0
    if name == "convnext":
        trained = quadranas.train("larger", output="trained", epochs=1)
        assert trained.params == larger.params
        # Both build the network without memory for its weights; one of its layers is quadratic.
        converted = quadranas.convert("larger", output="converted.json")
        assert isinstance(converted, ConvertResult)
        assert converted.params_before == larger.params < converted.params
        assert quadranas.profile("larger", memory=True).params == larger.params


def test_the_command_line_names_the_code_each_time(
    tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    witness = tmp_path / "witness"
    Path("mine.py").write_text(CODE.format(witness=str(witness)), encoding="utf-8")
    size = ("--resolution", str(SIZE))
    options = ("--where", "features.1=skip,hidden", *size, "--json")
    made = call("space-from", "mine.py:build", *options)
    assert made.code == 0, made.err
    counts = {"resolution", "num_classes", "parts", "architectures", "params", "macs"}
    assert set(made.json()) == {"path", "name", "model"} | counts
    assert made.json()["parts"] == [
        {"layer": "features.1", "choices": ["skip", "hidden"], "candidates": 3}
    ]
    assert witness.read_text() == "built "
    space = made.json()["path"]
    monkeypatch.setattr(own_model, "_GIVEN", {})  # as in a new process
    table = ("build-lut", "--device", "cpu", "--space", space)
    refused = call(*table)
    assert refused.code == 2
    assert "made from your own model (mine.py:build), whose code is in no file" in refused.err
    assert "--own-model FILE.py:FUNCTION" in refused.err
    assert not Path("latency_tables").exists()
    assert "--own-model mine.py:build" in call(*table, "--own-model", "mine.py:build").out
    budget = middle(Path(space), quadranas.load_table("latency_tables/mine-space/cpu.json"))
    settings = GIVEN | {"data": str(pictures), "budget": budget, "space": space}
    Path("c.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    begun = ("search", "--config", "c.yaml", "--output", "run", "--quiet")
    found = call(*begun, "--own-model", "mine.py:build")
    assert re.search(r"next: quadranas export run .*--own-model mine\.py:build\n$", found.out)

    monkeypatch.setattr(own_model, "_GIVEN", {})
    times = witness.read_text()
    derive = ("derive", "run", "--device", "cpu", "--budget", "1s", "--output", "d")
    for command in (derive, ("export", "run"), ("eval", "run"), ("train", "run", "--epochs", "1")):
        refused = call(*command)
        assert refused.code == 2, command
        assert "is made from your own model (mine.py:build)" in refused.err
    assert not Path("d").exists()
    shown = call("report", "run")
    assert shown.code == 0, shown.err
    assert witness.read_text() == times  # no command ran the code by itself
    assert call(*derive, "--own-model", "mine.py:build").code == 0
    assert witness.read_text() == times + "built "


def test_another_model_is_refused(
    tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    where = {"features.3": ["skip"]}
    made = quadranas.make_space(build("mobilenet"), EXAMPLE, where=where, output="m.yaml")
    monkeypatch.setattr(own_model, "_GIVEN", {})
    quadranas.use_model(build("resnet"))
    with pytest.raises(QuadranasError, match="the model that was given has other layers"):
        quadranas.build_lut(made.path, device="cpu")
    quadranas.use_model(build("mobilenet"))
    budget = middle(made.path, quadranas.build_lut(made.path, device="cpu").table())
    given = GIVEN | {"space": str(made.path), "budget": budget, "data": str(pictures)}
    for key, value, message in (
        ("weights", {"drop_path": 0.1}, "weights.drop_path is not for the space of your own"),
        ("checkpointing", True, "checkpointing is not for the space"),
        ("init", "weights.pth", "there is no pre-trained network"),
        ("pretrained", {"frozen_stages": 1}, "pretrained.frozen_stages is not for the space"),
        ("max_memory", "1MB", "the activations of one's own model are not known"),
        ("data", None, "your model has 2 outputs; the data have 10 classes"),
    ):
        with pytest.raises(QuadranasError, match=message):
            quadranas.search(output="run", **given | {key: value})
    assert not Path("run").exists()


def test_files_choose_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    quadranas.make_space(build("mobilenet"), EXAMPLE, where="features", output="m.yaml")
    Path("evil.py").write_text("raise SystemExit('ran')\n\ndef build(): ...\n", encoding="utf-8")
    space = quadranas.load_space("m.yaml")
    network = space.extreme(lambda op: op.own.params if op.own else 0, largest=False)
    network.save(Path("network.json"))
    content = json.loads(Path("network.json").read_text("utf-8"))
    content["model"]["source"] = "evil.py:build"
    Path("network.json").write_text(json.dumps(content), encoding="utf-8")
    assert open_network("network.json").network()
    monkeypatch.setattr(own_model, "_GIVEN", {})
    with pytest.raises(QuadranasError, match="whose code is in no file"):
        open_network("network.json").network()
    quadranas.use_model(build("mobilenet"))
    content["blocks"][0]["ops"][0]["own"]["changes"][0]["width"] = 999
    Path("network.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(QuadranasError, match="cannot be resized"):
        open_network("network.json").network()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("mine.py", "'mine.py' does not name a function in a Python file"),
        ("absent.py:build", "absent.py"),
        ("mine.py:biuld", "mine.py has no function 'biuld'; did you mean 'build'"),
        ("mine.py:number", "mine.py has no function 'number'"),
        ("mine.py:broken", "mine.py:broken fails: ValueError: no weights here"),
        ("wrong.py:build", "wrong.py:build fails: SyntaxError"),
        ("script.py:build", "script.py:build fails: SystemExit: 1"),
        ("wrong2.py:build", "wrong2.py:build returns a int, expected a torch.nn.Module"),
    ],
)
def test_bad_code_is_one_message(
    source: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(CODE.format(witness="w"), encoding="utf-8")
    Path("wrong.py").write_text("def build(:\n", encoding="utf-8")
    Path("script.py").write_text("raise SystemExit(1)\n", encoding="utf-8")
    Path("wrong2.py").write_text("def build():\n    return 3\n", encoding="utf-8")
    before = listing(tmp_path)
    for arguments in (
        ("space-from", source, "--where", "*"),
        ("profile", "quadranet36_t", "--own-model", source),
    ):
        outcome = call(*arguments)
        assert outcome.code == 2
        assert message in outcome.err
        assert "Traceback" not in outcome.err
    shutil.rmtree(tmp_path / "__pycache__", ignore_errors=True)
    assert listing(tmp_path) == before


def test_where_is_for_ones_own_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = call("space-from", "weights.pth", "--where", "*")
    assert outcome.code == 2
    assert "--where needs your own model" in outcome.err
    Path("mine.py").write_text(CODE.format(witness="w"), encoding="utf-8")
    outcome = call("space-from", "mine.py:build")
    assert outcome.code == 2
    assert "where names nothing" in outcome.err
    outcome = call("space-from", "mine.py:build", "--quadratic")
    assert "--quadratic is for a pre-trained network" in outcome.err
    outcome = call("space-from", "mine.py:build", "--where", "a", "--where", "a=skip")
    assert "--where names 'a' twice" in outcome.err
