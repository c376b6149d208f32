"""Tables, architectures, bundles and unfinished runs of version 0.1.0 still open.

`tests/golden/0.1.0/README.md` says how they were made; `tests/runs/test_old_runs.py` has the
finished runs.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from quadranas.network.skeleton import build_subnet
from quadranas.space.architecture import load_architecture
from tests.command_line import call
from tests.pictures import noise

GOLDEN = Path(__file__).parent / "golden" / "0.1.0"
BUNDLES = {
    "onnx": "onnxruntime",
    "int8": "onnxruntime",
    "vpu": "onnxruntime",
    "openvino": "openvino",
}
"""Bundles by the package that runs them here."""


@pytest.fixture(autouse=True)
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exports: Path) -> None:
    """Copies in the working folder."""
    shutil.copytree(GOLDEN, tmp_path / "old")
    monkeypatch.chdir(tmp_path / "old")


def result_of(*command: str | Path) -> dict[str, Any]:
    outcome = call(*command, "--json")
    assert outcome.code == 0, outcome.err
    warnings = [line for line in outcome.err.splitlines() if line.startswith("warning: ")]
    expected = ("the predicted latency is for TFLite", "the gates are undecided", "did not learn")
    assert all(any(text in line for text in expected) for line in warnings)
    return outcome.json()


def manifest_of(bundle: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(Path(bundle, "manifest.json").read_text("utf-8"))
    return content


def test_a_stopped_search_is_finished() -> None:
    """It was killed after the last checkpoint, before its weights and result were written."""
    names = ("result.json", "subnet.safetensors")
    expected = [Path("run", name).read_bytes() for name in names]
    for name in names:
        Path("run", name).unlink()
    result = result_of("search", "--resume", "--output", "run")
    finished = json.loads(expected[0])
    assert result["architecture"] == finished["architecture"]
    assert result["accuracy"] == pytest.approx(finished["accuracy"], abs=0.02)
    assert Path("run/subnet.safetensors").read_bytes() == expected[1]
    assert [Path("run", name).read_bytes() for name in ("metrics.jsonl", "gates.json")] == [
        Path(GOLDEN, "run", name).read_bytes() for name in ("metrics.jsonl", "gates.json")
    ]


@pytest.mark.parametrize(
    ("path", "params"),
    [
        ("run/architecture.json", 4522),
        ("trained/architecture.json", 6170),
        ("adapted --memory --batch 1", 7342),
    ],
)
def test_an_architecture_is_read(path: str, params: int) -> None:
    assert result_of("profile", *path.split())["params"] == params


def test_a_converted_architecture_is_built() -> None:
    with torch.device("meta"):
        network = build_subnet(load_architecture("converted.json"))
    assert sum(parameter.numel() for parameter in network.parameters()) == 9608816


def test_an_adapted_network_keeps_its_accuracy() -> None:
    adapted, trained = (result_of("eval", name)["accuracy"] for name in ("adapted", "trained"))
    assert adapted == pytest.approx(trained, abs=0.02)


def test_tables_of_both_kinds_are_relied_on() -> None:
    device = ("--device", "vpu", "--budget", "1ms", "--table", "vpu-table.json")
    derived = result_of("derive", "run", *device, "--output", "analytic")
    assert derived["table"]["method"] == "analytic"
    merged = result_of("merge-lut", "host-table.json", "host-table.json", "--output", "m.json")
    assert merged["entries"] == len(json.loads(Path("host-table.json").read_text())["entries"])
    exported = ("export", "trained", "--device", "host", "--table", "host-table.json")
    pytest.importorskip("onnxruntime")
    assert result_of(*exported, "--output", "bundle")["predicted_ms"] > 0


@pytest.mark.parametrize("name", BUNDLES)
def test_a_bundle_runs_and_computes_the_same(name: str) -> None:
    pytest.importorskip(BUNDLES[name])
    Image.fromarray(noise(1, 48, 40, 3)).save("photo.png")
    result = result_of("run", f"bundle-{name}", "photo.png")
    assert result["precision"] == manifest_of(f"bundle-{name}")["precision"]
    (image,) = result["results"]
    (expected,) = result_of("run", "bundle-onnx", "photo.png")["results"]
    tolerance = 0.1 if name == "int8" else 1e-3
    found, wanted = (
        {label["label"]: label["probability"] for label in labels["labels"]}
        for labels in (image, expected)
    )
    if name != "int8":
        assert list(found) == list(wanted)
    for label in set(found) & set(wanted):
        assert found[label] == pytest.approx(wanted[label], abs=tolerance)
    assert result["measured_ms"] > 0


@pytest.mark.parametrize("name", BUNDLES)
def test_a_bundle_is_replaced(name: str) -> None:
    """It is recognised as a bundle: what else lies in a folder is never replaced."""
    pytest.importorskip(BUNDLES[name])
    manifest = manifest_of(f"bundle-{name}")
    output = ("--output", f"bundle-{name}", "--format", manifest["format"])
    assert "exists already" in call("export", "trained", *output).err
    result_of("export", "trained", *output, "--force")
    assert manifest_of(f"bundle-{name}")["params"] == manifest["params"]


def test_an_old_model_is_priced() -> None:
    pytest.importorskip("onnx")
    predicted = result_of("predict", "bundle-onnx/model.onnx", "--device", "vpu")
    assert predicted["latency_ms"] > 0
    assert predicted["params"] > 0
