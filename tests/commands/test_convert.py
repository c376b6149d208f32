"""quadranas convert: architectures that train, and reduced runs that train on."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import quadranas
from quadranas import ConvertResult, ReduceResult
from quadranas.files import read_json, read_yaml
from quadranas.layers.replacement import quadratic_layers
from quadranas.network.skeleton import build_subnet
from quadranas.network.weights import load_weights
from quadranas.space.architecture import Architecture, Block, load_architecture
from quadranas.space.operation import OpSpec
from tests.command_line import call, listing
from tests.typed_results import parsed

OPS: dict[str, list[dict[str, Any]]] = {
    "stem": [{"kind": "conv_bn", "out_channels": 4, "kernel_size": 3, "stride": 4}],
    "first": [{"kind": "mbconv", "out_channels": 4, "expand_ratio": 2}],
    "second": [{"kind": "mbconv", "out_channels": 4, "expand_ratio": 2}],
    "head": [{"kind": "linear_head", "out_channels": 2}],
}
DEPTHWISE = ["blocks.first.mbconv.layers.3", "blocks.second.mbconv.layers.3"]


def small() -> Architecture:
    channels, resolution, blocks = 3, 32, []
    for name, ops in OPS.items():
        spec = OpSpec(in_channels=channels, resolution=resolution, **ops[0])
        blocks.append(Block(name=name, ops=(spec,)))
        channels, resolution = spec.out_channels, spec.out_resolution
    return Architecture(
        name="small",
        space="toy",
        resolution=32,
        num_classes=2,
        blocks=tuple(blocks),
        provenance={"predicted_ms": 1.0, "device": "cpu"},
    )


@pytest.fixture(scope="module")
def architecture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("architecture") / "small.json"
    small().save(path)
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, architecture: Path, pictures: Path) -> Path:
    """A converted network, trained for one epoch. Not to be changed."""
    folder = tmp_path_factory.mktemp("runs")
    converted = call("convert", architecture, "--norm", "--output", folder / "converted")
    assert converted.code == 0, converted.err
    trained = call(
        *("train", folder / "converted", "--data", pictures, "--epochs", "1", "--quiet"),
        *("--output", folder / "run"),
    )
    assert trained.code == 0, trained.err
    return folder / "run"


def test_an_architecture_is_converted(architecture: Path, tmp_path: Path) -> None:
    output = tmp_path / "quadratic.json"
    result = call("convert", architecture, "--output", output, "--json").json()
    converted = load_architecture(output)
    plain, quadratic = build_subnet(small()), build_subnet(converted)
    assert [change.name for change in converted.changes] == result["replaced"]
    assert list(quadratic_layers(quadratic)) == result["replaced"]
    assert {change.form for change in converted.changes} == {"hadamard"}
    assert {kept["reason"] for kept in result["kept"]} == {"the first or last layer"}
    assert result["params_before"] == sum(p.numel() for p in plain.parameters())
    assert result["params"] == sum(p.numel() for p in quadratic.parameters())
    assert result["macs"] > result["macs_before"]
    assert converted.provenance == {"converted_from": "small", "device": "cpu"}
    assert converted.space == ""
    assert listing(tmp_path) == ["quadratic.json"]


def test_a_trained_converted_network_has_a_report_and_an_export(run: Path, tmp_path: Path) -> None:
    page = call("report", run, "--json").json()["report"]
    params = read_json(run / "result.json", "result")["params"]
    assert f"{params:,}, 6 layers replaced" in Path(page).read_text(encoding="utf-8")
    pytest.importorskip("onnxruntime")
    exported = call("export", run, "--format", "onnx", "--output", tmp_path / "q", "--json")
    assert exported.json()["predicted_ms"] is None


def test_layers_and_form_are_chosen(architecture: Path, tmp_path: Path) -> None:
    outcome = call(
        *("convert", architecture, "--output", tmp_path / "new", "--form", "product"),
        *("--layers", "blocks.first*", "--layers", "*second*.3"),
    )
    assert outcome.code == 0, outcome.err
    changes = load_architecture(tmp_path / "new/architecture.json").changes
    assert {change.form for change in changes} == {"product"}
    names = [change.name for change in changes]
    assert [n for n in names if "second" in n] == [n for n in names if n in DEPTHWISE][1:]
    assert len(names) > 2
    assert f"{len(names)} layers made quadratic" in outcome.out
    assert "not selected" in outcome.out


def test_a_conversion_can_be_converted_further(architecture: Path, tmp_path: Path) -> None:
    call("convert", architecture, "--output", tmp_path / "one.json", "--layers", "*.first.*")
    second = call("convert", tmp_path / "one.json", "--output", tmp_path / "two.json", "--json")
    one, two = (load_architecture(tmp_path / f"{name}.json") for name in ("one", "two"))
    assert two.changes[: len(one.changes)] == one.changes
    assert len(two.changes) > len(one.changes)
    kept = {layer["reason"] for layer in second.json()["kept"]}
    assert kept == {"the first or last layer", "already quadratic"}


def test_a_run_is_reduced_and_trains_on(run: Path, pictures: Path, tmp_path: Path) -> None:
    reduced = tmp_path / "reduced"
    outcome = call("convert", run, "--remove", "1", "--revert", "2", "--output", reduced)
    assert outcome.code == 0, outcome.err
    assert "1 layers removed, 2 reverted" in outcome.out
    content = read_json(reduced / "importance.json", "ranking")
    names = [layer["name"] for layer in content["ranking"]]
    assert set(names) == set(quadratic_layers(build_subnet(load_architecture_of(run))))
    (removed,) = content["removed"]
    can_go = [layer["name"] for layer in content["ranking"] if not layer["obstacle"]]
    assert removed == can_go[0]
    assert content["reverted"] == [name for name in names if name != removed][:2]
    assert (reduced / "importance.png").read_bytes().startswith(b"\x89PNG")
    changes = {change.name: change.kind for change in load_architecture_of(reduced).changes}
    assert changes.pop(removed) == "removed"
    assert set(changes) == set(names) - {removed, *content["reverted"]}
    old, new = (load_file(folder / "subnet.safetensors") for folder in (run, reduced))
    for name, tensor in new.items():  # reverted layers have the weights of their linear term
        if not any(name.startswith(f"{layer}.") for layer in content["reverted"]):
            assert torch.equal(tensor, old[name])
    assert read_yaml(reduced / "config.yaml", "configuration")["data"] == str(pictures)
    tested = call("eval", reduced, "--json").json()
    assert tested["accuracy"] == read_json(reduced / "result.json", "result")["accuracy"]
    trained = call("train", reduced, "--output", tmp_path / "run", "--epochs", "1", "--quiet")
    assert trained.code == 0, trained.err
    start = load_file(tmp_path / "run/inherited.safetensors")
    assert all(torch.equal(start[name], tensor) for name, tensor in new.items())
    load_weights(build_subnet(load_architecture_of(reduced)), tmp_path / "run/subnet.safetensors")


def test_the_function_gives_what_the_command_prints(
    architecture: Path, run: Path, tmp_path: Path
) -> None:
    outcome = call("convert", architecture, "--output", tmp_path / "one.json", "--json")
    converted = quadranas.convert(small(), output=tmp_path / "two.json")
    assert isinstance(converted, ConvertResult)
    expected = converted.model_copy(update={"path": tmp_path / "one.json"})
    assert parsed(outcome, ConvertResult) == expected
    assert load_architecture(tmp_path / "one.json") == load_architecture(tmp_path / "two.json")
    one, two = tmp_path / "one", tmp_path / "two"
    outcome = call("convert", run, "--remove", "1", "--output", one, "--json")
    reduced = quadranas.convert(run, output=two, remove=1)
    assert isinstance(reduced, ReduceResult)
    moved = {"run": one, "architecture": one / "architecture.json"}
    assert parsed(outcome, ReduceResult) == reduced.model_copy(update=moved)
    assert (one / "importance.json").read_bytes() == (two / "importance.json").read_bytes()


def load_architecture_of(folder: Path) -> Architecture:
    return load_architecture(folder / "architecture.json")


def test_the_ranking_is_repeatable_and_can_be_narrowed(run: Path, tmp_path: Path) -> None:
    results = []
    for name in ("one", "two"):
        outcome = call(
            *("convert", run, "--remove", "1", "--layers", "*.layers.3", "--json"),
            *("--output", tmp_path / name),
        )
        results.append(outcome.json())
        assert (tmp_path / name / "importance.json").is_file()
    assert results[0]["ranking"] == results[1]["ranking"]
    assert sorted(layer["name"] for layer in results[0]["ranking"]) == DEPTHWISE
    assert results[0]["removed"][0] in DEPTHWISE


Arguments = Callable[[Path, Path], tuple[Any, ...]]
REFUSED: dict[str, tuple[Arguments, str]] = {
    "too many": (lambda a, r: (r, "--remove", "99"), "cannot remove 99 layers"),
    "too many back": (lambda a, r: (r, "--revert", "99"), "cannot revert 99 layers"),
    "zero": (lambda a, r: (r, "--remove", "0"), "greater than or equal to 1"),
    "untrained": (lambda a, r: (a, "--remove", "1"), "has no trained weights"),
    "form twice": (lambda a, r: (r, "--remove", "1", "--form", "product"), "--form cannot be"),
    "norm twice": (lambda a, r: (r, "--revert", "1", "--norm"), "--norm cannot be"),
    "data": (lambda a, r: (a, "--data", "x"), "--data needs --remove or --revert"),
    "corrupt": (lambda a, r: (a, "--skip-corrupt"), "--skip-corrupt needs --remove or --revert"),
    "form": (lambda a, r: (a, "--form", "hadamar"), "did you mean 'hadamard'"),
    "pattern": (lambda a, r: (a, "--layers", "nix*"), "select 'nix*' has no layer"),
    "ranked": (
        lambda a, r: (r, "--remove", "1", "--layers", "nix"),
        "no layer matches",
    ),
    "again": (lambda a, r: (r,), "no layer would be replaced"),
    "no model": (lambda a, r: ("nothing",), "unknown model 'nothing'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_impossible_is_refused_and_leaves_nothing(
    case: str, architecture: Path, run: Path, tmp_path: Path
) -> None:
    arguments, text = REFUSED[case]
    outcome = call("convert", *arguments(architecture, run), "--output", tmp_path / "new")
    assert outcome.code == 2
    assert text in outcome.err
    assert listing(tmp_path) == []


def test_an_output_in_the_way_is_refused(architecture: Path, run: Path, tmp_path: Path) -> None:
    taken = tmp_path / "taken.json"
    taken.write_text("mine")
    outcome = call("convert", architecture, "--output", taken)
    assert (outcome.code, taken.read_text()) == (2, "mine")
    assert "exists already" in outcome.err
    outcome = call("convert", run, "--remove", "1", "--output", tmp_path / "new.json")
    assert outcome.code == 2
    assert "a reduced network is written with its weights" in outcome.err
    outcome = call("convert", run, "--remove", "1", "--output", tmp_path)
    assert outcome.code == 2
    assert listing(tmp_path) == ["taken.json"]
