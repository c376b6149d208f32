"""Bundles: manifests that survive a round trip, and folders that are not what was exported."""

import json
import math
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from quadranas.deployment.bundle import MANIFEST, checksums, open_bundle, write_manifest
from quadranas.deployment.manifest import (
    Accuracy,
    BranchRange,
    InputDescription,
    Latency,
    LatencyNote,
    Manifest,
    Quantization,
)
from quadranas.deployment.model_card import model_card
from quadranas.errors import QuadranasError
from quadranas.latency.runtimes import RUNTIMES, file_formats, files_of
from tests.bundles import manifest_of, toy_architecture
from tests.command_line import listing

NUMBERS = st.floats(-1e9, 1e9)
LATENCIES = st.none() | st.builds(
    LatencyNote, device=st.text(), ms=st.floats(1e-9, 1e9), source=st.text()
)
INPUTS = st.builds(
    InputDescription,
    shape=st.tuples(st.none() | st.integers(1, 64), st.just(3), st.just(32), st.just(32)),
    mean=st.just((0.1, 0.2, 0.3)),
    std=st.tuples(*[st.floats(1e-6, 10)] * 3),
)
RANGES = st.builds(
    BranchRange,
    layer=st.text(),
    part=st.sampled_from(["a", "b", "c", "product", "output"]),
    minimum=NUMBERS,
    maximum=NUMBERS,
    typical=NUMBERS,
    signal_to_noise_db=NUMBERS,
)
CHANGES: dict[str, st.SearchStrategy[Any]] = {
    "name": st.text(),
    "created": st.text(),
    "precision": st.sampled_from(["fp32", "fp16", "int8"]),
    "opset": st.none() | st.integers(0, 30),
    "operators": st.dictionaries(st.text(), st.integers(0, 10**6)),
    "lowering": st.lists(st.text()).map(tuple),
    "versions": st.dictionaries(st.text(), st.text()),
    "class_names": st.none() | st.lists(st.text(), min_size=10, max_size=10).map(tuple),
    "trained": st.booleans(),
    "input": INPUTS,
    "accuracy": st.none()
    | st.builds(
        Accuracy,
        images=st.text(),
        num_images=st.integers(1, 10**6),
        pytorch=st.floats(0, 1),
        exported=st.floats(0, 1),
        trained_resolution=st.integers(1, 512),
        at_trained_resolution=st.floats(0, 1),
    ),
    "latency": st.builds(
        Latency,
        predicted=LATENCIES,
        measured=LATENCIES,
        fp32=LATENCIES,
        deviation=st.none() | NUMBERS,
    ),
    "quantization": st.none()
    | st.builds(
        Quantization,
        num_layers=st.integers(1, 99),
        kept=st.lists(st.text(), max_size=3).map(tuple),
        num_calibration_images=st.integers(1, 999),
        max_drop=st.floats(0, 100),
        drop=st.floats(-100, 100),
        ranges=st.lists(RANGES, max_size=12).map(tuple),
    ),
    "table": st.none() | st.dictionaries(st.text(), st.integers() | st.text(), max_size=3),
}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose files hold nothing that matters. Not to be changed."""
    path = tmp_path_factory.mktemp("bundles") / "toy"
    path.mkdir()
    (path / "model.onnx").write_bytes(bytes(1000))
    (path / "infer.py").write_text("print()\n", encoding="utf-8")
    write_manifest(path, manifest_of("onnx", files=checksums(path)))
    return path


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    shutil.copytree(folder, tmp_path / "copy")
    return tmp_path / "copy"


def refusal(path: Path) -> str:
    with pytest.raises(QuadranasError) as caught:
        open_bundle(path)
    return str(caught.value)


def rewritten(folder: Path, change: Callable[[dict[str, Any]], object]) -> str:
    """What is said of a bundle whose manifest was edited."""
    content = json.loads((folder / MANIFEST).read_text("utf-8"))
    change(content)
    (folder / MANIFEST).write_text(json.dumps(content), encoding="utf-8")
    return refusal(folder)


@given(changes=st.fixed_dictionaries({}, optional=CHANGES))
def test_a_manifest_survives_a_round_trip(
    tmp_path_factory: pytest.TempPathFactory, changes: dict[str, Any]
) -> None:
    path = tmp_path_factory.mktemp("bundle", numbered=True)
    (path / "model.onnx").write_bytes(b"weights")
    manifest = manifest_of("onnx", files=checksums(path), **changes)
    write_manifest(path, manifest)
    opened = open_bundle(path)
    assert opened.manifest == manifest
    assert opened.artefact == path / "model.onnx"
    card = model_card(opened.manifest)
    assert card.startswith("# Model card: ")
    rows = [line for line in card.splitlines() if line.startswith("|")]
    assert all(line.endswith(" |") for line in rows)


@given(data=st.data())
def test_a_mutated_manifest_is_accepted_or_refused(folder: Path, data: st.DataObject) -> None:
    whole = (folder / MANIFEST).read_text("utf-8")
    copied = folder.with_name("mutated")
    shutil.copytree(folder, copied, dirs_exist_ok=True)
    kind = data.draw(st.sampled_from(["truncated", "byte", "value"]))
    content = whole.encode()
    if kind == "truncated":
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    elif kind == "byte":
        place = data.draw(st.integers(0, len(content) - 1))
        content = content[:place] + data.draw(st.binary(max_size=3)) + content[place + 1 :]
    else:
        tree = json.loads(whole)
        node, key = tree, data.draw(st.sampled_from(sorted(tree)))
        while isinstance(node[key], dict) and node[key] and data.draw(st.booleans()):
            node = node[key]
            key = data.draw(st.sampled_from(sorted(node)))
        node[key] = data.draw(JSON)
        content = json.dumps(tree).encode()
    (copied / MANIFEST).write_bytes(content)
    with suppress(QuadranasError):
        opened = open_bundle(copied)
        assert opened.artefact.is_file()
        assert model_card(opened.manifest)


@pytest.mark.parametrize("name", ["model.onnx", "infer.py"])
def test_a_file_that_was_changed_is_refused(copy: Path, name: str) -> None:
    content = bytearray((copy / name).read_bytes())
    content[3] ^= 1
    (copy / name).write_bytes(content)
    expected = json.loads((copy / MANIFEST).read_text("utf-8"))["files"][name]
    found = checksums(copy)[name]
    text = refusal(copy)
    assert f"{name} differs from the exported file" in text
    assert f"begins with {found[:12]}, that in manifest.json with {expected[:12]}" in text
    assert "export again" in text


def test_a_missing_file_is_named(copy: Path) -> None:
    (copy / "infer.py").unlink()
    assert "infer.py is missing; manifest.json lists it" in refusal(copy)
    (copy / "infer.py").mkdir()
    assert "infer.py is missing" in refusal(copy)


def test_files_beside_the_bundle_s_own_do_no_harm(copy: Path) -> None:
    (copy / "notes.txt").write_text("mine", encoding="utf-8")
    assert open_bundle(copy).manifest.name == "toy"


def test_what_is_no_bundle(tmp_path: Path, copy: Path) -> None:
    assert "does not exist; expected a bundle" in refusal(tmp_path / "nowhere")
    assert "is a file; expected a bundle" in refusal(copy / "model.onnx")
    assert "cannot read" in refusal(tmp_path / ("x" * 5000))
    assert "expected a bundle" in refusal(tmp_path / "a\0b")
    (copy / MANIFEST).unlink()
    text = refusal(copy)
    assert "it is not a bundle, or its export was interrupted" in text
    assert "quadranas export" in text


def test_a_newer_bundle_says_so(copy: Path) -> None:
    text = rewritten(copy, lambda content: content.update(format_version=2, news="unknown"))
    assert "format_version 2 is newer than this quadranas reads (up to 1)" in text
    assert "pip install --upgrade quadranas" in text


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/b", "..", ".hidden", "a\\b", ""])
def test_a_name_that_leads_out_of_the_folder_is_refused(copy: Path, name: str) -> None:
    (copy.parent / "secret").write_text("", encoding="utf-8")
    text = rewritten(copy, lambda content: content["files"].update({name: "0" * 64}))
    assert "manifest.json: files." in text
    assert "should match pattern" in text
    assert "artefact: String should match pattern" in rewritten(
        copy, lambda content: (content.update(artefact=name), content["files"].pop(name))
    )


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"files": {"infer.py": "0" * 64}}, "files has no checksum of the artefact, 'model.onnx'"),
        (
            {"artefact": "other.so", "files": {"other.so": "0" * 64}},
            "artefact of the format onnx must be 'model.onnx'",
        ),
        ({"class_names": ("cat", "dog")}, "2 class_names for 10 classes"),
        ({"size_bytes": -1}, "size_bytes"),
        ({"input": {"shape": (1, 3, 32, 64)}}, r"must be \(B, 3, R, R\)"),
        ({"input": {"shape": (1, 1, 32, 32)}}, r"must be \(B, 3, R, R\)"),
        ({"input": {"shape": (0, 3, 32, 32)}}, "greater than or equal to 1"),
        (
            {"input": {"shape": (1, 3, 32, 32), "mean": (0, 0, 0)}},
            "mean and std must both be given",
        ),
        ({"input": {"shape": (1, 3, 32, 32), "std": (1, 0, 1)}}, "greater than 0"),
        ({"latency": {"deviation": math.inf}}, "finite"),
        ({"latency": {"deviation": math.nan}}, "finite"),
    ],
)
def test_a_manifest_that_contradicts_itself(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(ValidationError, match=text):
        manifest_of("onnx", **changes)


def test_the_formats_name_runtimes_and_files() -> None:
    assert {"onnx", "openvino", "tvm"} <= set(file_formats())
    assert set(file_formats().values()) <= set(RUNTIMES)
    assert len({files_of(name).artefact for name in file_formats()}) == len(file_formats())
    assert [name for name in file_formats() if not files_of(name).free_batch] == [
        "tvm",
        "executorch",
        "litert",
    ]


def test_the_card_of_a_network_of_which_little_is_known() -> None:
    card = model_card(
        manifest_of(
            "onnx",
            trained=False,
            class_names=None,
            input=InputDescription(shape=(4, 3, 32, 32)),
            latency=Latency(not_measured="device vpu is emulated"),
        )
    )
    assert "| predicted | not predicted |  | no reason recorded |" in card
    assert "| measured | not measured |  | device vpu is emulated |" in card
    assert "Of one call, 4 images." in card
    assert "**The weights are not trained.**" in card
    assert "Accuracy: not measured; no images" in card
    assert "Its accuracy was not measured." in card
    assert "names are unknown" in card
    assert "Quantisation" not in card


def test_the_card_of_a_quantised_network() -> None:
    ranges = tuple(
        BranchRange(
            layer=f"blocks.stage{index}",
            part="product",
            minimum=-(10.0**index),
            maximum=1.0,
            typical=0.5,
            signal_to_noise_db=30.0 - index,
        )
        for index in range(12)
    )
    named = manifest_of(
        "openvino",
        precision="int8",
        files={"model.xml": "0" * 64, "model.bin": "1" * 64},
        class_names=("<b>", "a|b", *(str(index) for index in range(8))),
        accuracy=Accuracy(
            images="digits, test",
            num_images=360,
            pytorch=0.975,
            exported=0.97,
            trained_resolution=16,
            at_trained_resolution=0.996,
        ),
        quantization=Quantization(
            num_layers=9,
            kept=("blocks.stem",),
            num_calibration_images=64,
            max_drop=1.0,
            drop=0.5,
            ranges=ranges,
        ),
        latency=Latency(
            predicted=LatencyNote(device="host", ms=2.0, source="a table"),
            measured=LatencyNote(device="host", ms=2.2, source="OpenVINO", spread=0.07),
            fp32=LatencyNote(device="host", ms=4.4, source="OpenVINO"),
            deviation=0.1,
            budget_ms=2.0,
            missed="2.2 ms are too many",
        ),
    )
    card = model_card(named)
    assert "8 of 9 layers compute in 8 bits" in card
    assert "Accuracy fell by 0.50 points; a fall of 1.00 was allowed." in card
    assert "- `blocks.stem`" in card
    assert "(2 more in manifest.json):" in card
    rows = [line for line in card.splitlines() if line.startswith("| `blocks.stage")]
    assert [row.split("`")[1] for row in rows] == [f"blocks.stage{11 - i}" for i in range(10)]
    assert "97.50% in PyTorch, 97.00% of this file (-0.50 points)" in card
    assert "| measured | 2.20 ms | host | OpenVINO; calls spread by 7% |" in card
    assert "| budget | 2.00 ms | host | missed: 2.2 ms are too many |" in card
    assert "where its accuracy is 99.6%; at the file's resolution it is 97.5%." in card
    assert "Measured against predicted: +10.0%." in card
    assert "The file takes 0.50 of fp32's time." in card
    assert "trained on images of 16 pixels and takes 32" in card
    assert "\\<b\\>, a\\|b, 0" in card
    assert "needs openvino, numpy and Pillow" in card


def test_the_manifest_holds_what_a_reader_needs(folder: Path) -> None:
    content = json.loads((folder / MANIFEST).read_text("utf-8"))
    assert content["input"]["shape"] == [None, 3, 32, 32]
    assert Manifest.model_validate(content).architecture == toy_architecture()
    assert content["files"].keys() == {"model.onnx", "infer.py"}
    assert listing(folder) == ["infer.py", MANIFEST, "model.onnx"]


def test_the_bundles_of_0_1_0_still_open(copy: Path) -> None:
    """It called the runtime of a Myriad `openvino`."""
    content = json.loads((copy / MANIFEST).read_text("utf-8"))
    stick = {"name": "vpu", "title": "a stick", "runtime": "openvino", "precision": "fp16"}
    content["made_for"] = stick | {"target": "MYRIAD"}
    content["device"] = stick | {"target": "CPU", "reach": {"worker_python": "python3.8"}}
    (copy / MANIFEST).write_text(json.dumps(content), encoding="utf-8")
    manifest = open_bundle(copy).manifest
    assert manifest.made_for.runtime == manifest.device.runtime == "openvino2021"


def test_an_unknown_format_is_named(copy: Path) -> None:
    text = rewritten(copy, lambda content: content.update(format="onx"))
    assert (
        "format: unknown format; accepted: onnx, openvino, tvm, torch, executorch, litert" in text
    )
    assert "did you mean 'onnx'? (got 'onx')" in text
