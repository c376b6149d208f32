"""adapt: the folder it writes, what train, eval and export make of it, and what it refuses."""

import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import quadranas
from quadranas import AdaptResult
from quadranas.commands.train import train
from quadranas.conversion import quadratic_parameters
from quadranas.deployment.target import ExportOptions, find_target
from quadranas.latency.device import load_device
from quadranas.latency.table_files import load_table
from quadranas.reports.run_view import read_run
from quadranas.runs.config import TrainConfig
from quadranas.runs.stored_network import open_network
from quadranas.space.architecture import load_architecture
from quadranas.space.cost import count_macs
from tests.command_line import call, contents, listing
from tests.typed_results import parsed


@pytest.fixture(scope="module")
def adapted(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The searched network with all its layers adapted. Not to be changed."""
    folder = tmp_path_factory.mktemp("adapted") / "adapted"
    outcome = call("adapt", finished_run, "--output", folder, "--train", "quadratic")
    assert outcome.code == 0, outcome.err
    assert f"quadranas train {folder}" in outcome.out
    return folder


def test_the_folder_holds_a_network_that_computes_the_same(
    adapted: Path, finished_run: Path
) -> None:
    before, after = open_network(str(finished_run)), open_network(str(adapted))
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(after.network().eval()(images), before.network().eval()(images))
    assert after.preprocessing == before.preprocessing
    architecture = after.architecture
    assert {change.kind for change in architecture.changes} == {"adapted"}
    assert architecture.provenance == {
        "adapted_from": before.architecture.name,
        "device": "cpu",
    }
    config = yaml.safe_load((adapted / "config.yaml").read_text(encoding="utf-8"))
    assert config["trainable"] == "quadratic"
    assert "budget" not in config


@pytest.mark.parametrize(
    "command", [("adapt",), ("convert", "--layers", "*.feed_forward.expand")], ids=lambda c: c[0]
)
def test_a_changed_network_keeps_its_device_and_table(
    finished_run: Path, tmp_path: Path, command: tuple[str, ...]
) -> None:
    run, changed = tmp_path / "run", tmp_path / "changed"
    shutil.copytree(finished_run, run)
    load_device("cpu").configured(name="mine").save(run / "device.yaml")
    table = load_table(run / "table.json")
    header = table.header.model_copy(update={"device": "mine"})
    table.model_copy(update={"header": header}).save(run / "table.json")
    outcome = call(command[0], run, *command[1:], "--output", changed)
    assert outcome.code == 0, outcome.err
    kept = ("device.yaml", "table.json")
    assert contents(changed, kept) == contents(run, kept)
    architecture = load_architecture(changed / "architecture.json")
    assert find_target(ExportOptions(), architecture, changed).device.name == "mine"
    shown = read_run(changed)
    assert (shown.device, shown.predicted_ms) == ("cpu", None)
    assert shown.faults["table.json"].startswith("table.json does not cover the replaced layers")


def test_training_goes_on_with_the_quadratic_terms_alone(adapted: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    outcome = call("train", adapted, "--epochs", "1", "--output", run, "--quiet", "--json")
    assert outcome.code == 0, outcome.err
    before = load_file(adapted / "subnet.safetensors")
    after = load_file(run / "subnet.safetensors")
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    quadratic = set(quadratic_parameters(open_network(str(run)).network()))
    assert moved
    assert moved <= quadratic
    tested = call("eval", run, "--json")
    assert tested.json()["accuracy"] == outcome.json()["accuracy"]


def test_all_of_it_can_be_trained_instead(adapted: Path, tmp_path: Path) -> None:
    given = {"epochs": 1, "trainable": "all"}
    train(adapted, TrainConfig(**given), output=tmp_path / "run")
    before = load_file(adapted / "subnet.safetensors")
    after = load_file(tmp_path / "run" / "subnet.safetensors")
    assert any(
        not torch.equal(before[name], after[name]) for name in before if ".first_order." in name
    )


def test_quadratic_terms_alone_need_some(finished_run: Path, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("trainable: quadratic\n", encoding="utf-8")
    outcome = call("train", finished_run, "--config", path, "--output", tmp_path / "run")
    assert outcome.code == 2
    assert "no adapted layer" in outcome.err
    assert not (tmp_path / "run").exists()


def test_counts_and_layers_are_told(finished_run: Path, tmp_path: Path) -> None:
    outcome = call(
        *("adapt", finished_run, "--output", tmp_path / "new", "--layers", "*.expand"),
        *("--layers", "*.head.*", "--rank", "2", "--json"),
    )
    result = outcome.json()
    assert result["layers"]
    assert all(name.endswith(".expand") or ".head." in name for name in result["layers"])
    assert result["macs_before"] == count_macs(open_network(str(finished_run)).architecture)
    assert result["params"] - result["params_before"] == result["quadratic_params"] > 0
    assert result["macs"] > result["macs_before"]
    changes = load_architecture(tmp_path / "new" / "architecture.json").changes
    assert [change.name for change in changes] == result["layers"]
    assert {change.rank for change in changes} == {2}


def test_weights_may_come_from_a_file(finished_run: Path, tmp_path: Path) -> None:
    tensors = load_file(finished_run / "subnet.safetensors")
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, tmp_path / "w.safetensors")
    arguments = ("adapt", finished_run / "architecture.json", "--output", tmp_path / "new")
    outcome = call(*arguments, "--weights", tmp_path / "w.safetensors")
    assert outcome.code == 0, outcome.err
    assert f"{len(tensors)} tensors used, 0 not" in outcome.out
    wanted = ["architecture.json", "config.yaml", "subnet.safetensors"]
    assert listing(tmp_path / "new") == wanted
    written = load_file(tmp_path / "new" / "subnet.safetensors")
    name = "blocks.head.norm_head.linear.weight"
    adapted_name = name.replace("linear.weight", "linear.first_order.weight")
    assert torch.equal(written[adapted_name], tensors[name] + 1)


def test_the_function_gives_what_the_command_prints(finished_run: Path, tmp_path: Path) -> None:
    by_name = call("adapt", finished_run, "--output", tmp_path / "one", "--seed", "3", "--json")
    result = quadranas.adapt(open_network(finished_run), output=tmp_path / "two", seed=3)
    assert result.weights is None
    folder = result.folder
    assert parsed(by_name, AdaptResult) == result.model_copy(update={"folder": tmp_path / "one"})
    tensors = [load_file(path / "subnet.safetensors") for path in (folder, tmp_path / "one")]
    assert all(torch.equal(tensor, tensors[1][name]) for name, tensor in tensors[0].items())


def test_the_used_weights_are_reported(finished_run: Path, tmp_path: Path) -> None:
    weights = finished_run / "subnet.safetensors"
    architecture = finished_run / "architecture.json"
    outcome = call(
        *("adapt", architecture, "--output", tmp_path / "one", "--weights", weights, "--json")
    )
    report = parsed(outcome, AdaptResult).weights
    assert report is not None
    assert report.used == {name: name for name in load_file(weights)}
    assert (report.unused, report.untouched) == ({}, ())
    again = quadranas.adapt(architecture, output=tmp_path / "two", weights=weights)
    assert again.weights == report


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rank", "99"], "rank 99 does not fit"),
        (["--rank", "0"], "rank: Input should be greater than or equal to 1 (got 0)"),
        (["--train", "some"], "unknown train 'some'; accepted: all, quadratic"),
        (["--layers", "nothing*"], "select 'nothing*' has no layer that can be made quadratic"),
        (["--weights", "missing.safetensors"], "cannot read weights missing.safetensors"),
        (["--weights", "timm:convnext_tiny"], "'timm' needs the package 'timm'"),
    ],
)
def test_nothing_is_written_after_a_fault(
    finished_run: Path,
    tmp_path: Path,
    options: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    outcome = call("adapt", finished_run, "--output", tmp_path / "new", *options)
    assert outcome.code == 2
    assert message in outcome.err
    assert list(tmp_path.iterdir()) == []


def test_untrained_networks_are_not_adapted(finished_run: Path, tmp_path: Path) -> None:
    stored = finished_run / "architecture.json"
    outcome = call("adapt", stored, "--output", tmp_path / "new")
    assert outcome.code == 2
    assert "has no trained weights" in outcome.err


@pytest.mark.slow
def test_the_adapted_network_is_exported(adapted: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    outcome = call("export", adapted, "--output", tmp_path / "bundle", "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.json()["top1_agreement"] == 1.0


@pytest.mark.parametrize("command", ["eval", "convert", "train", "export", "adapt"])
def test_weights_with_nan_are_refused_by_every_command(
    command: str, finished_run: Path, tmp_path: Path
) -> None:
    tensors = load_file(finished_run / "subnet.safetensors")
    name = next(iter(tensors))
    tensors[name] = torch.full_like(tensors[name], torch.nan)
    save_file(tensors, tmp_path / "nan.safetensors")
    arguments: list[str | Path] = ["--weights", tmp_path / "nan.safetensors"]
    if command != "eval":
        arguments += ["--output", tmp_path / "out"]
    if command == "convert":
        arguments += ["--remove", "1"]
    outcome = call(command, finished_run, *arguments)
    assert outcome.code == 2
    assert f"tensor {name!r} has" in " ".join(outcome.err.split())
    assert not (tmp_path / "out").exists()


def test_a_prefix_in_the_weights_is_said(finished_run: Path, tmp_path: Path) -> None:
    tensors = load_file(finished_run / "subnet.safetensors")
    path = tmp_path / "wrapped.pth"
    torch.save({"state_dict": {f"module.{n}": t for n, t in tensors.items()}, "epoch": 1}, path)
    plain = call("eval", finished_run, "--json")
    outcome = call("eval", finished_run, "--weights", path, "--json")
    assert outcome.json()["accuracy"] == plain.json()["accuracy"]
    said = " ".join(outcome.err.split())
    assert "tensors under the key 'state_dict'; names without prefixes of wrappers" in said
    arch = finished_run / "architecture.json"
    outcome = call("adapt", arch, "--weights", path, "--output", tmp_path / "adapted")
    assert "tensors under the key 'state_dict'" in outcome.out
