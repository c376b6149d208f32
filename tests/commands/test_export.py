"""export: what each runtime computes, for which networks, what is said of it and left behind."""

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import yaml
from torch import nn

from quadranas.backends import lowering
from quadranas.backends.onnxruntime import OnnxRuntimeBackend
from quadranas.commands.export import ExportResult, export
from quadranas.deployment.bundle import open_bundle
from quadranas.deployment.manifest import Manifest
from quadranas.deployment.target import ExportOptions, find_target
from quadranas.errors import MissingExtraError, PromiseMissedError, QuadranasError
from quadranas.latency.device import Reach, load_device
from quadranas.latency.runtimes import file_formats
from quadranas.latency.table import LatencyTable
from quadranas.latency.table_files import load_table
from quadranas.network.skeleton import build_subnet
from quadranas.network.weights import save_tensors
from quadranas.runs.stored_network import Model, StoredNetwork, open_network
from quadranas.space.architecture import Architecture, LayerChange, load_architecture
from quadranas.space.catalog import find_architecture
from quadranas.space.cost import count_params
from quadranas.space.space_file import load_space
from tests.bundles import toy_architecture, toy_network
from tests.command_line import Server, call, listing, until
from tests.measuring import REMEMBER, skip_without_litert

Scrambler = Callable[..., nn.Module]

BUNDLE = ["infer.py", "manifest.json", "model-card.md"]
TOLERANCE = 1e-3
WORKER_PYTHON = os.environ.get("QUADRANAS_WORKER_PYTHON", "")


pytestmark = pytest.mark.usefixtures("exports")


def architecture(name: str) -> Architecture:
    """Small networks of every family; of the reference model the first block of each stage."""
    if name == "mbconv":
        space = load_space("mbconv-mobile", widths=(4, 4, 8, 8, 8, 8, 8, 8, 16))
        choices = {b.name: None if b.optional else (0,) * len(b.slots) for b in space.blocks}
        return space.architecture(choices).adapted(resolution=64, num_classes=5)
    if name == "quadranet":
        reference = find_architecture("quadranet25_t_q12").adapted(resolution=32, num_classes=3)
        blocks = [b for b in reference.blocks if b.name.endswith(("entry", "block1", "head"))]
        return reference.model_copy(update={"blocks": tuple(blocks)})
    if name == "smallest":
        return toy_architecture()
    if name == "wide":  # few operations with many weights
        return load_space("toy", widths=(64, 128)).extreme(count_params, largest=False)
    if name == "toy":
        return load_space("toy").extreme(lambda spec: spec.kernel_size, largest=True)
    layer = "blocks.stage2_block1.feed_forward.expand"
    change = {
        "converted": LayerChange(name=layer, kind="quadratic"),
        "adapted": LayerChange(name=layer, kind="adapted", rank=2),
    }[name]
    return toy_architecture().model_copy(update={"changes": (change,)})


def stored(name: str, folder: Path, scramble: Scrambler) -> StoredNetwork:
    """The network with weights for which every tensor matters."""
    described = architecture(name)
    network = scramble(build_subnet(described))
    save_tensors(network.state_dict(), folder / "weights.safetensors")
    return StoredNetwork(described, weights=folder / "weights.safetensors")


def exported(given: Model, output: Path, **options: Any) -> ExportResult:
    return export(given, output=output, **{"images": 16} | options)


@pytest.mark.parametrize("name", ["toy", "mbconv", "quadranet", "converted", "adapted"])
def test_the_file_computes_what_pytorch_computes(
    tmp_path: Path, scramble: Scrambler, name: str
) -> None:
    given = stored(name, tmp_path, scramble)
    bundle = tmp_path / "bundle"
    result = exported(given, bundle, batch="dynamic")
    onnx.checker.check_model(str(bundle / "model.onnx"), full_check=True)
    session = onnxruntime.InferenceSession(
        str(bundle / "model.onnx"), providers=["CPUExecutionProvider"]
    )
    network = given.network().eval()
    size = given.architecture.resolution
    for batch in (1, 3, 8):
        images = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(batch))
        with torch.no_grad():
            expected = network(images).numpy()
        (logits,) = session.run(["logits"], {"images": images.numpy()})
        assert logits.shape == (batch, given.architecture.num_classes)
        assert np.abs(logits - expected).max() <= TOLERANCE * np.abs(expected).max()
    assert 0 <= result.relative_error < TOLERANCE
    assert result.top1_agreement == 1.0
    assert result.num_images == 16
    assert result.accuracy is None
    assert result.size_bytes == (bundle / "model.onnx").stat().st_size
    check_measured(result)
    assert listing(bundle) == sorted([*BUNDLE, "example.png", "model.onnx"])
    assert open_bundle(bundle).manifest.input.shape == (None, 3, size, size)


def check_measured(result: ExportResult) -> None:
    """There is a latency, unless other tests have kept the processors busy."""
    if result.measured_ms is None:
        assert "the machine was busy" in result.not_measured
    else:
        assert result.measured_ms > 0


@pytest.mark.parametrize("file_format", [name for name in file_formats() if name != "onnx"])
def test_every_format_is_proven_in_its_own_runtime(
    tmp_path: Path, scramble: Scrambler, file_format: str
) -> None:
    if file_format == "litert":
        skip_without_litert()
    network = toy_network(scramble)  # of which other tests make the same files
    save_tensors(network.state_dict(), tmp_path / "weights.safetensors")
    given = StoredNetwork(toy_architecture(), weights=tmp_path / "weights.safetensors")
    bundle = tmp_path / "bundle"
    settings = {"tuning_trials": 0} if file_format == "tvm" else {}
    result = exported(given, bundle, format=file_format, device="host", images=4, **settings)
    assert result.relative_error < TOLERANCE
    check_measured(result)
    assert sum(result.operators.values()) > 1
    manifest = open_bundle(bundle).manifest
    assert manifest.format == file_format
    assert manifest.device.runtime == file_formats()[manifest.format]
    assert manifest.lowering


def test_half_weights_take_half_the_space(tmp_path: Path, scramble: Scrambler) -> None:
    given = stored("wide", tmp_path, scramble)
    full = exported(given, tmp_path / "fp32", format="openvino")
    half = exported(given, tmp_path / "fp16", format="openvino", precision="fp16")
    assert half.size_bytes < 0.6 * full.size_bytes
    assert full.relative_error < half.relative_error < 2e-2


@pytest.fixture
def run(tmp_path: Path, finished_run: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What an export needs of a run, in the working folder."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("architecture.json", "subnet.safetensors", "preprocessing.json", "config.yaml"):
        (folder / name).write_bytes((finished_run / name).read_bytes())
    return folder


def test_a_run_through_the_command_line(run: Path) -> None:
    outcome = call("export", "run", "--format", "onnx")
    assert outcome.code == 0, outcome.err
    lines = outcome.out.splitlines()
    assert lines[0].startswith("run/exports/onnx-fp32/model.onnx: 0.")
    assert "fp32, input 32 pixels" in lines[0]
    assert lines[1].startswith("ONNX Runtime 1.")
    assert "against PyTorch on 8 images: largest error " in lines[1]
    assert lines[1].endswith("top-1 agreement 100.0%")
    assert lines[2].startswith("accuracy ")
    assert "predicted 0." in lines[3]
    assert "ms on cpu; measured 0." in lines[3]
    assert lines[-1].startswith("next: quadranas run run/exports/onnx-fp32 /")
    assert lines[-1].endswith("/test/cat/0.png")
    note = "warning: the predicted latency is for TFLite 2.1 on the device; the file is for ONNX"
    assert note in outcome.err
    before = (run / "exports/onnx-fp32/manifest.json").read_bytes()
    trained = call("export", "run", "--untrained", "--output", "new")
    assert trained.code == 2
    assert "--untrained is for networks without weights; toy-cpu-800us has them" in trained.err
    refused = call("export", "run")
    assert refused.code == 2
    assert "run/exports/onnx-fp32 exists already\nAdd --force to replace it" in refused.err
    assert (run / "exports/onnx-fp32/manifest.json").read_bytes() == before
    forced = call("export", "run", "--force", "--resolution", "64", "--json").json()
    assert (forced["resolution"], forced["predicted_ms"]) == (64, None)
    manifest = open_bundle(run / "exports/onnx-fp32").manifest
    assert manifest.class_names == ("cat", "dog")
    assert manifest.input.mean is not None
    assert manifest.accuracy is not None
    assert manifest.accuracy.pytorch == forced["accuracy_pytorch"] == forced["accuracy"]
    assert manifest.table is not None


def test_a_measured_table_stands_beside_the_measurement(run: Path, host_table: Path) -> None:
    options = ("--device", "host", "--table", host_table, "--json")
    result = call("export", "run", *options).json()
    assert result["predicted_ms"] > 0
    assert result["deviation"] == pytest.approx(
        result["measured_ms"] / result["predicted_ms"] - 1, abs=1e-12
    )
    other = call("export", "run", "--format", "openvino", *options).json()
    assert other["predicted_ms"] == result["predicted_ms"]
    assert other["deviation"] is None  # the table is ONNX Runtime's
    assert result["notes"] == []
    assert [note.partition("; ")[2] for note in other["notes"]] == [
        "the file is for OpenVINO, which may be slower or faster there"
    ]
    refused = call("export", "run", "--device", "vpu", "--table", host_table, "--force")
    assert refused.code == 2
    assert "was made for device 'host', not for 'vpu'" in refused.err


def test_weights_without_a_run(run: Path, pictures: Path) -> None:
    weights = ("run/architecture.json", "--weights", "run/subnet.safetensors")
    result = call("export", *weights, "--json", "--quiet").json()
    assert result["path"].endswith("-onnx-fp32/model.onnx")
    assert result["predicted_ms"] <= 0.8
    assert result["accuracy"] is None
    labelled = call("export", *weights, "--data", pictures, "--output", "labelled", "--json")
    assert labelled.json()["accuracy"] is not None
    untrained = call("export", "run/architecture.json")
    assert untrained.code == 2
    assert "has no trained weights" in untrained.err
    timed = call("export", "run/architecture.json", "--untrained", "--output", "random", "--json")
    assert timed.json()["measured_ms"] > 0
    assert "The weights are not trained." in (Path("random") / "model-card.md").read_text(
        encoding="utf-8"
    )
    int8 = call("export", *weights, "--precision", "int8", "--output", "int8")
    assert int8.code == 2
    assert "needs labelled images" in int8.err


def test_the_opset_is_what_the_device_reads(tmp_path: Path, scramble: Scrambler) -> None:
    given = stored("smallest", tmp_path, scramble)
    for options, opset in (({"device": "vpu"}, 13), ({}, 18), ({"opset": 20}, 20)):
        output = tmp_path / f"opset-{opset}"
        exported(given, output, **options)
        (imported,) = onnx.load(output / "model.onnx").opset_import
        assert imported.version == opset
        manifest = open_bundle(output).manifest
        assert manifest.opset == opset
        assert ("linear_as_convolution" in manifest.lowering) == (opset == 13)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "tflite"}, "unknown format 'tflite'; accepted: executorch, litert, onnx"),
        ({"precision": "fp16"}, "format onnx has no precision 'fp16'; accepted: fp32, int8"),
        ({"format": "tvm", "batch": "dynamic"}, "tvm takes batches of one size only"),
        ({"opset": 12}, "ONNX opset 12 is not supported; accepted: 13 to 23"),
        ({"opset": 18, "format": "torch"}, "--opset needs the format onnx"),
        (
            {"device": "vpu", "format": "openvino"},
            "does not read the files of newer OpenVINO releases",
        ),
        ({"device": "cpu", "format": "tvm"}, "this machine is"),
        ({"device": "vpu", "worker_python": "/no/python"}, "/no/python"),
        (
            {"device": "cpu", "format": "tvm", "rpc": "127.0.0.1:9"},
            "no TVM RPC server responds at 127.0.0.1:9",
        ),
        ({"resolution": 33}, "resolution 33 does not fit"),
        ({"batch": 10_000}, "--batch must be at most 8192, got 10000"),
        (
            {"max_drop": float("inf"), "precision": "int8"},
            "--max-drop must be a finite number, got inf",
        ),
        ({"max_drop": 1.0}, "--max-drop needs the precision int8; got onnx in fp32"),
        ({"tuning_trials": 0}, "--tuning-trials needs the format tvm"),
        (
            {"device": "vpu", "resolution": 64, "budget": "1ms"},
            "cannot check the budget of 1 ms on vpu: it is not connected",
        ),
        (
            {"device": "vpu", "opset": 18},
            "opset 13 with a fixed batch, not opset 18",
        ),
        (
            {"device": "vpu", "batch": "dynamic"},
            "opset 13 with a fixed batch, not a free",
        ),
        ({"device": "vpu", "format": "tvm", "rpc": "a:1"}, "--rpc needs a device that"),
        ({"device": "gpu", "worker_python": "p"}, "--worker-python needs a device that"),
    ],
)
def test_what_cannot_be_done_is_said_and_leaves_nothing(
    tmp_path: Path, scramble: Scrambler, options: dict[str, Any], message: str
) -> None:
    given = stored("toy", tmp_path, scramble)
    with pytest.raises(QuadranasError) as caught:
        exported(given, tmp_path / "bundle", **options)
    assert message in caught.value.message
    assert listing(tmp_path) == ["weights.safetensors"]


@pytest.mark.skipif(not WORKER_PYTHON, reason="QUADRANAS_WORKER_PYTHON is not set")
def test_the_myriads_file_is_proven_in_its_worker(tmp_path: Path, scramble: Scrambler) -> None:
    device: dict[str, Any] = {"name": "old", "title": "OpenVINO 2021.4", "target": "CPU"}
    device |= {"runtime": "openvino2021", "precision": "fp32", "threads": 1}
    device |= {"reach": {"worker_python": WORKER_PYTHON}}
    (tmp_path / "old.yaml").write_text(yaml.safe_dump(device), encoding="utf-8")
    given = stored("toy", tmp_path, scramble)
    result = exported(given, tmp_path / "bundle", device=str(tmp_path / "old.yaml"))
    assert result.runtime.startswith("OpenVINO 2021.4")
    assert result.relative_error < TOLERANCE
    assert result.measured_on == "old"
    manifest = open_bundle(tmp_path / "bundle").manifest
    assert (manifest.opset, manifest.device.name) == (13, "old")


def test_int8_in_an_old_opset_names_layers_alike(run: Path, pictures: Path) -> None:
    for opset in ("13", "18"):
        outcome = call(
            *("export", "run", "--precision", "int8", "--opset", opset, "--max-drop", "100"),
            *("--output", f"int8-{opset}", "--json"),
        )
        assert outcome.code == 0, outcome.err
        assert outcome.json()["fp32_ms"] > 0
    found = [open_bundle(Path(f"int8-{opset}")).manifest for opset in (13, 18)]
    assert found[0].quantization is not None
    assert found[1].quantization is not None
    assert found[0].quantization.num_layers == found[1].quantization.num_layers > 5
    assert found[0].operators["QuantizeLinear"] > 0
    names = [{node.name.split("/")[0] for node in nodes} for nodes in map(weighted_nodes, found)]
    assert names[0] == names[1] != set()


def weighted_nodes(manifest: Manifest) -> list[onnx.NodeProto]:
    graph = onnx.load(f"int8-{manifest.opset}/model.onnx").graph
    return [node for node in graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]


def test_the_default_device_is_what_the_network_was_derived_for(scramble: Scrambler) -> None:
    toy = architecture("toy")
    derived = toy.model_copy(update={"provenance": {"device": "vpu"}})
    own = toy.model_copy(update={"provenance": {"device": "my-board"}})
    for given, device, opset in ((derived, "vpu", 13), (own, "host", None), (toy, "host", None)):
        target = find_target(ExportOptions(), given)
        assert (target.device.name, target.opset) == (device, opset)
        assert target.checked_on.name == "host"
        assert target.is_checked_there == (device == "host")


@pytest.mark.parametrize(
    ("derived_for", "file_format", "device"),
    [
        ("vpu", "openvino", "host"),
        ("vpu", "torch", "host"),
        ("cpu", "executorch", "host"),
        ("cpu", "litert", "host"),
        ("cpu", "tvm", "cpu"),
        ("gpu", "torch", "gpu"),
        ("gpu", "onnx", "gpu"),
    ],
)
def test_a_file_is_not_made_for_a_device_that_cannot_run_it(
    derived_for: str, file_format: str, device: str
) -> None:
    derived = architecture("toy").model_copy(update={"provenance": {"device": derived_for}})
    target = find_target(ExportOptions(format=file_format), derived)
    assert target.device.name == device


def test_a_miss_names_the_first_diverging_layer_and_keeps_nothing(
    tmp_path: Path, scramble: Scrambler, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = stored("smallest", tmp_path, scramble)
    spoilt = given.network().blocks["stage2_block1"]["feed_forward"]  # type: ignore[index]

    def spoil(network: nn.Module) -> nn.Module:
        for module in network.modules():
            if repr(module) == repr(spoilt) and torch.equal(module.gamma, spoilt.gamma):  # type: ignore[arg-type]
                module.gamma.mul_(2)  # type: ignore[operator]
        return network

    monkeypatch.setitem(lowering.PASSES, "spoil", spoil)
    monkeypatch.setattr(OnnxRuntimeBackend, "lowering", ("spoil",))
    with pytest.raises(PromiseMissedError) as caught:
        exported(given, tmp_path / "bundle")
    assert "the exported file does not agree with PyTorch: largest error" in caught.value.message
    assert "accepted: 0.001" in caught.value.message
    assert (
        "first diverging layer: blocks.stage2_block1.feed_forward (error" in caught.value.message
    )
    assert caught.value.exit_code == 3
    assert listing(tmp_path) == ["weights.safetensors"]


def test_a_budget_that_is_not_kept_ends_with_3_and_a_bundle(run: Path) -> None:
    kept = call("export", "run", "--budget", "1ms", "--json")
    assert kept.code == 0
    assert kept.json()["missed"] == ""
    missed = call("export", "run", "--budget", "0.1ms", "--force")
    assert missed.code == 3
    assert "budget missed: predicted 0." in missed.err
    assert "ms, over the budget of 0.1 ms; cpu: analytic (" in missed.err
    assert open_bundle(run / "exports/onnx-fp32").manifest.name
    measured = call(
        *("export", "run", "--budget", "0.001us", "--device", "host", "--output", "h", "--json")
    )
    assert measured.code == 3
    assert measured.json()["missed"].startswith("measured ")
    assert "ms by more than the tolerance of 5%; host: measured (" in measured.json()["missed"]


@pytest.mark.parametrize("is_main", [True, False])
def test_a_file_slower_than_its_network_was_derived_for_is_warned_about(
    run: Path, is_main: bool
) -> None:
    architecture = load_architecture(run / "architecture.json")
    budgets = (
        {"device": "host", "budget_ms": 1e-6}
        if is_main
        else {"device": "vpu", "budget_ms": 1e6, "budget_ms.host": 1e-6}
    )
    derived = architecture.provenance | budgets
    architecture.model_copy(update={"provenance": derived}).save(run / "architecture.json")
    outcome = call("export", "run", "--device", "host", "--json")
    assert outcome.code == 0, outcome.err
    (note,) = outcome.json()["notes"]
    assert note.startswith("measured 0.")
    assert note.endswith("the tolerance of 5%, which the network was derived for")
    assert f"warning: {note}" in outcome.err


def test_a_run_knows_its_own_device_and_table(run: Path, finished_run: Path) -> None:
    mine = load_device("cpu").configured(name="mine", rpc="pi:9090")
    mine.save(run / "device.yaml")
    table = load_table(finished_run / "table.json")
    header = table.header.model_copy(update={"device": "mine"})
    LatencyTable(header=header, entries=table.entries).save(run / "table.json")
    outcome = call("export", "run", "--json")
    assert (outcome.json()["device"], outcome.json()["measured_on"]) == ("mine", "host")
    assert outcome.json()["predicted_ms"] > 0
    reach = open_bundle(run / "exports/onnx-fp32").manifest.made_for.reach
    assert reach == Reach()  # a run folder never chooses what is contacted
    (listed,) = call("devices", run, "--json").json()["devices"]
    assert (listed["name"], listed["tables"]["toy"]) == ("mine", str(run / "table.json"))
    predicted = call(*("predict", run / "exports/onnx-fp32/model.onnx", "--device", run, "--json"))
    assert predicted.json()["device"] == "mine"


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_extra_is_named(
    tmp_path: Path, finished_run: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=r"pip install 'quadranas\[onnxruntime\]'"):
        exported(open_network(str(finished_run)), tmp_path / "bundle")
    outcome = call("export", finished_run, "--output", tmp_path / "bundle", "--json")
    assert outcome.code == 2
    assert outcome.json()["error"] == f"'onnxruntime' needs the package {package!r}"
    assert listing(tmp_path) == []


def test_weights_count_for_an_opened_network_too(tmp_path: Path, finished_run: Path) -> None:
    opened = open_network(finished_run)
    torn = tmp_path / "torn.safetensors"
    torn.write_bytes(b"torn")
    with pytest.raises(QuadranasError, match=r"cannot read weights .*torn\.safetensors"):
        exported(opened, tmp_path / "bundle", weights=torn)
    with pytest.raises(QuadranasError) as caught:
        exported(opened, tmp_path / "bundle", untrained=True)
    name = opened.architecture.name
    assert caught.value.message == f"--untrained is for networks without weights; {name} has them"
    with pytest.raises(QuadranasError, match=f"architecture '{name}' has no trained weights"):
        exported(opened.architecture, tmp_path / "bundle")
    result = exported(opened.architecture, tmp_path / "bundle", weights=opened.weights)
    assert open_bundle(result.bundle).manifest.trained


def test_what_is_in_the_way_stays(tmp_path: Path, finished_run: Path) -> None:
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "photo").write_text("dear to somebody", encoding="utf-8")
    for name, message in (
        ("file", "is a file; a bundle is a folder"),
        ("net.onnx", "is a file; a bundle is a folder"),
        ("folder", "exists and is not a bundle"),
        ("file/below", "cannot write"),
    ):
        outcome = call("export", finished_run, "--output", tmp_path / name, "--force")
        assert outcome.code == 2
        assert message in outcome.err
    assert listing(tmp_path) == ["file", "folder", "folder/photo"]
    bundle = tmp_path / "bundle"
    exported(open_network(str(finished_run)), bundle)
    (bundle / "notes.txt").write_text("dear to somebody", encoding="utf-8")
    outcome = call("export", finished_run, "--output", bundle, "--force")
    assert outcome.code == 2
    assert "holds files besides its bundle, which would be lost: notes.txt" in outcome.err
    (bundle / "manifest.json").write_text("{}", encoding="utf-8")
    assert call("export", finished_run, "--output", bundle, "--force").code == 2
    assert (bundle / "notes.txt").is_file()


SLOWLY = """
import time
import quadranas.deployment.bundle as module
write = module.write_manifest
def slowly(folder, manifest):
    print("almost", flush=True)
    time.sleep(60)
module.write_manifest = slowly
import quadranas.measurement.bench as bench
bench.DEFAULT_PLAN = bench.Plan(num_rounds=2, repeats=2)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_export_leaves_no_half_bundle(
    tmp_path: Path, run: Path, server: Server, exports: Path, number: signal.Signals
) -> None:
    first = call("export", "run", "--output", "bundle", "--json").json()
    before = (tmp_path / "bundle" / "manifest.json").read_bytes()
    command = ("export", "run", "--output", "bundle", "--force")
    process = server.start(
        tmp_path, *command, prelude=REMEMBER.format(folder=str(exports)) + SLOWLY
    )
    said = tmp_path / "stdout"
    try:
        until(lambda: said.exists() and "almost" in said.read_text(encoding="utf-8"))
    finally:
        process.kill(number)
    expected = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -signal.SIGKILL}
    assert process.wait().code == expected[number]
    assert (tmp_path / "bundle" / "manifest.json").read_bytes() == before
    assert open_bundle(tmp_path / "bundle").manifest.size_bytes == first["size_bytes"]
    again = call(*command, "--json")
    assert again.code == 0
    left = [name for name in listing(tmp_path) if name.startswith(".")]
    assert left == []


def test_the_manifest_holds_what_the_command_printed(run: Path) -> None:
    result = call("export", "run", "--format", "openvino", "--json").json()
    content = json.loads((run / "exports/openvino-fp32/manifest.json").read_text("utf-8"))
    assert content["latency"]["measured"]["ms"] == result["measured_ms"]
    assert content["agreement"]["max_abs_error"] == result["max_abs_error"]
    assert content["operators"] == result["operators"]
    assert content["files"].keys() == {"model.xml", "model.bin", "infer.py", "model-card.md"}
    assert content["size_bytes"] == result["size_bytes"]
