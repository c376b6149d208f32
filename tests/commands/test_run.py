"""run: the labels and times of a bundle's network, and what the script beside it prints."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from quadranas.backends.interface import Provenance
from quadranas.backends.onnx_file import read_onnx
from quadranas.commands.run import run
from quadranas.data.decoding import read_image
from quadranas.deployment.bundle import SCRIPT, checksums, open_bundle, write_manifest
from quadranas.deployment.inference_script import inference_script
from quadranas.deployment.manifest import Accuracy, InputDescription
from quadranas.deployment.model_card import model_card
from quadranas.errors import MissingExtraError, QuadranasError
from quadranas.latency.device import Device
from quadranas.latency.runtimes import file_formats, files_of
from tests.bundles import (
    CLASS_NAMES,
    MEAN,
    STD,
    device_for,
    expected_scores,
    manifest_of,
    toy_architecture,
    toy_network,
    write_bundle,
    write_pictures,
)
from tests.command_line import Outcome, Server, call
from tests.pictures import noise

pytestmark = pytest.mark.usefixtures("exports")

SIZE = toy_architecture().resolution
FIXED_BATCH = InputDescription(shape=(3, 3, SIZE, SIZE))


@pytest.fixture(scope="module")
def network(scramble: Callable[..., nn.Module]) -> nn.Module:
    return toy_network(scramble)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, exports: Path, network: nn.Module) -> Path:
    """For ONNX Runtime, batch free. Not to be changed."""
    pytest.importorskip("onnxruntime")
    return write_bundle(tmp_path_factory.mktemp("bundles") / "toy", manifest_of("onnx"), network)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_pictures(tmp_path_factory.mktemp("images") / "some", SIZE)


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    shutil.copytree(bundle, tmp_path / "copy")
    return tmp_path / "copy"


def test_the_labels_are_those_of_pytorch(
    bundle: Path, images: list[Path], network: nn.Module
) -> None:
    result = run(bundle, images, top=10)
    assert result.measured_ms == 0.1234
    assert result.runtime.startswith("ONNX Runtime ")
    assert result.notes == ()
    assert [answer.image for answer in result.results] == images
    for path, answer in zip(images, result.results, strict=True):
        expected = expected_scores(network, read_image(path, SIZE))
        assert [label.index for label in answer.labels] == np.argsort(-expected).tolist()
        for label in answer.labels:
            assert label.probability == pytest.approx(expected[label.index], abs=1e-5)
            assert label.label == CLASS_NAMES[label.index]
        assert answer.ms is not None
        assert answer.ms > 0


def test_a_fixed_batch_is_filled_and_what_is_unknown_is_said(
    tmp_path: Path, images: list[Path], network: nn.Module
) -> None:
    manifest = manifest_of("onnx", input=FIXED_BATCH, class_names=None, trained=False)
    folder = write_bundle(tmp_path / "fixed", manifest, network)
    result = run(folder, images[:1])
    expected = expected_scores(network, read_image(images[0], SIZE), mean=0, std=1)
    (answer,) = result.results
    assert len(answer.labels) == 5
    for label in answer.labels:
        assert label.probability == pytest.approx(expected[label.index], abs=1e-5)
        assert label.label == str(label.index)
    assert result.batch_size == 3
    assert list(result.notes) == [
        "the network was exported untrained, so its labels are random",
        "the manifest has no normalisation; pixels were used as 0 to 1",
    ]
    outcome = call("run", folder, images[0])
    assert "per call with 3 copies of the image" in outcome.out
    assert "note: the manifest has no normalisation" in outcome.out
    done = script_output(folder, *images[:1])
    assert_script_agrees(done, folder, images[:1], network, mean=0, std=1)


def test_a_resolution_that_costs_accuracy_is_said(
    tmp_path: Path, images: list[Path], network: nn.Module
) -> None:
    accuracy = Accuracy(
        images="digits, test",
        num_images=64,
        pytorch=0.1,
        exported=0.1,
        trained_resolution=8,
        at_trained_resolution=0.992,
    )
    folder = write_bundle(tmp_path / "large", manifest_of("onnx", accuracy=accuracy), network)
    assert list(run(folder, images[:1]).notes) == [
        "the network was trained at 8 pixels, where its accuracy is 99.2%; at the file's "
        "resolution it is 10.0%"
    ]


# The command


def test_the_command_prints_a_block_per_image(bundle: Path, images: list[Path]) -> None:
    outcome = call("run", bundle, *images[:2], "--top", "3")
    assert (outcome.code, outcome.err) == (0, "")
    first, *labels, second = outcome.out.splitlines()[:5]
    timed = r"\S+ [mu]s \(p95 \S+ [mu]s\), 123 us at export"
    assert re.fullmatch(f"{re.escape(str(images[0]))}: {timed}", first)
    assert all(re.fullmatch(r"  +\d+\.\d\d%  class [a-j]", label) for label in labels)
    assert second.startswith(f"{images[1]}: ")
    assert outcome.out.splitlines()[8].startswith("ONNX Runtime ")
    assert outcome.out.splitlines()[9] == "at export: host, Runtime 1.2, 1 thread"


def test_the_command_prints_json(bundle: Path, images: list[Path]) -> None:
    content = call("run", bundle, images[0], "--json", "--top", "1").json()
    assert content["bundle"] == str(bundle)
    assert content["device"] == "host"
    (answer,) = content["results"]
    assert answer.keys() == {"image", "labels", "ms", "p95_ms", "dropped"}
    (label,) = answer["labels"]
    assert label.keys() == {"label", "index", "probability"}


@pytest.mark.parametrize("name", ["model.onnx", "infer.py", "model-card.md"])
def test_a_wrong_checksum_is_refused(copy: Path, images: list[Path], name: str) -> None:
    with (copy / name).open("ab") as file:
        file.write(b"\n")
    outcome = call("run", copy, images[0], "--json")
    assert outcome.code == 2
    assert f"{name} differs from the exported file" in outcome.json()["error"]


def test_a_file_that_the_runtime_cannot_read(copy: Path, images: list[Path]) -> None:
    (copy / "model.onnx").write_bytes(b"no model")
    write_manifest(copy, manifest_of("onnx", files=checksums(copy)))
    outcome = call("run", copy, images[0])
    assert outcome.code == 2
    assert f"error: ONNX Runtime cannot read {copy}/model.onnx: " in outcome.err


def test_images_that_cannot_be_used(bundle: Path, images: list[Path], tmp_path: Path) -> None:
    (tmp_path / "torn.png").write_bytes(images[1].read_bytes()[:-2000])
    (tmp_path / "text.png").write_text("no image", encoding="utf-8")
    for path, said in {
        tmp_path / "torn.png": "torn.png: ",
        tmp_path / "text.png": "text.png: not an image Pillow can read",
        tmp_path / "missing.png": "missing.png: No such file or directory",
        tmp_path: f"error: {tmp_path} is a folder; expected image files\nName the files, as in: ",
    }.items():
        outcome = call("run", bundle, images[0], path)
        assert outcome.code == 2
        assert said in outcome.err
        assert outcome.out == ""
    with pytest.raises(QuadranasError, match="no images to label"):
        run(bundle, [])


def test_an_image_may_have_any_name(bundle: Path, images: list[Path], tmp_path: Path) -> None:
    path = tmp_path / "caf\udce9\n.png"
    shutil.copy(images[0], path)
    shown = rf"{tmp_path}/caf\udce9\n.png"
    assert call("run", bundle, path).out.startswith(f"{shown}: ")
    assert call("run", bundle, path, "--json").json()["results"][0]["image"] == shown


@pytest.mark.parametrize("top", ["0", "11", "-1"])
def test_as_many_labels_as_there_are_classes(bundle: Path, images: list[Path], top: str) -> None:
    outcome = call("run", bundle, images[0], "--top", top)
    assert outcome.code == 2
    assert f"--top {top} does not fit a network of 10 classes\nGive 1 to 10." in outcome.err


# Devices


def test_a_machine_of_fewer_cores_gets_fewer_threads(images: list[Path], copy: Path) -> None:
    manifest = open_bundle(copy).manifest
    device = manifest.device.configured(threads=4096)
    write_manifest(copy, manifest.model_copy(update={"device": device}))
    cores = len(os.sched_getaffinity(0))
    assert list(run(copy, images[:1]).notes) == [f"{cores} threads, not 4096 as at export"]


@pytest.mark.parametrize("option", ["--rpc", "--rpc-key", "--worker-python"])
def test_a_way_that_leads_elsewhere_is_refused(
    bundle: Path, images: list[Path], option: str
) -> None:
    outcome = call("run", bundle, images[0], option, "board:1")
    assert outcome.code == 2
    assert f"{option} does not suit this bundle, whose file runs in Runtime 1.2" in outcome.err


STICK = {"runtime": "openvino2021", "target": "MYRIAD", "precision": "fp16"}
TRACKER = {"rpc_tracker": "a:1", "rpc_key": "k"}


def elsewhere(folder: Path, file_format: str, device: Device) -> Path:
    """A bundle for a device that is not this machine; its file is not a network."""
    folder.mkdir()
    (folder / files_of(file_format).artefact).write_bytes(b"no network")
    manifest = manifest_of(file_format, device=device)
    write_manifest(folder, manifest.model_copy(update={"files": checksums(folder)}))
    return folder


@pytest.mark.parametrize(
    ("stored", "given"),
    [
        ({}, {"rpc": "a:1"}),
        ({"rpc": "a:1"}, {"rpc": "b:2"}),
        (TRACKER, {"rpc": "b:2"}),
        ({"rpc": "b:2"}, TRACKER),
        (STICK | {"worker_python": "python3.6"}, {"worker_python": "python3.8"}),
        (STICK, {"worker_python": "python3.8"}),
    ],
)
def test_the_way_to_the_device_is_that_of_the_command_line(
    images: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stored: dict[str, str],
    given: dict[str, str],
) -> None:
    file_format = "onnx" if "worker_python" in given else "tvm"
    device = device_for(file_format).configured(**stored)
    folder = elsewhere(tmp_path / "bundle", file_format, device)
    opened = []

    def open_backend(found: Any, records: Path) -> Any:
        opened.append(found.reach.model_dump(exclude_none=True))
        raise QuadranasError("nobody there")

    monkeypatch.setattr("quadranas.measurement.bench.open_backend", open_backend)
    options = [
        part for key, value in given.items() for part in (f"--{key.replace('_', '-')}", value)
    ]
    command = ("run", folder, images[0], "--allow-native-code")
    outcome = call(*command, *options)
    assert (outcome.code, opened) == (2, [given])
    device.configured(**given).save(tmp_path / "mine.yaml")
    assert call(*command, "--device", tmp_path / "mine.yaml").code == 2
    assert opened == [given, given]
    other = device.configured(name="other")
    other.save(tmp_path / "other.yaml")
    refused = call(*command, "--device", tmp_path / "other.yaml")
    assert f"the bundle runs on device {device.name!r}, not on 'other'" in refused.err


@pytest.mark.parametrize(
    ("file_format", "stored", "hint"),
    [
        ("onnx", STICK, "Add --worker-python PATH."),
        ("onnx", STICK | {"worker_python": "{program}"}, "Add --worker-python PATH."),
        (
            "onnx",
            {"runtime": "openvino", "target": "MYRIAD", "worker_python": "{program}"},
            "--wo",
        ),
        ("tvm", {"rpc": "localhost:1"}, "Add --rpc HOST:PORT or --rpc-tracker HOST:PORT with"),
        ("tvm", TRACKER, "Add --rpc HOST:PORT or --rpc-tracker HOST:PORT with --rpc-key KEY."),
    ],
)
def test_a_manifest_starts_and_contacts_nothing(
    images: list[Path], tmp_path: Path, file_format: str, stored: dict[str, str], hint: str
) -> None:
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n", encoding="utf-8")
    program.chmod(0o755)
    named = {key: value.format(program=program) for key, value in stored.items()}
    device = device_for(file_format).configured(**named)
    outcome = call("run", elsewhere(tmp_path / "bundle", file_format, device), images[0])
    assert outcome.code == 2
    assert "a manifest never chooses what is started or contacted" in outcome.err
    assert hint in outcome.err
    assert not (tmp_path / "started").exists()


def test_machine_code_runs_only_if_it_is_allowed(images: list[Path], tmp_path: Path) -> None:
    folder = elsewhere(tmp_path / "bundle", "tvm", device_for("tvm"))
    outcome = call("run", folder, images[0])
    assert outcome.code == 2
    assert f"{folder}/model.so is machine code" in outcome.err
    assert "add --allow-native-code" in outcome.err
    assert [name for name in file_formats() if files_of(name).native] == ["tvm"]
    assert "quadranas run . image.png --allow-native-code" in model_card(manifest_of("tvm"))


@pytest.mark.parametrize("runtime", ["tvm", "openvino", "torch", "cuda"])
def test_a_runtime_does_not_open_files_of_another_format(
    images: list[Path], tmp_path: Path, runtime: str
) -> None:
    device = device_for("onnx").configured(runtime=runtime)
    folder = elsewhere(tmp_path / "bundle", "onnx", device)
    with pytest.raises(QuadranasError, match=f"{runtime} does not read the bundle's format, onnx"):
        run(folder, images[:1], allow_native_code=True)


@pytest.mark.parametrize("name", ["model.onnx", "manifest.json", "infer.py"])
def test_a_link_out_of_the_bundle_is_refused(copy: Path, images: list[Path], name: str) -> None:
    outside = copy.parent / name
    (copy / name).rename(outside)
    (copy / name).symlink_to(outside)
    with pytest.raises(QuadranasError, match=f"{name} is a link out of .*copy") as caught:
        run(copy, images[:1])
    assert caught.value.hint.endswith(f"cp -rL {copy} COPY")
    shutil.copytree(copy, copy.parent / "again")
    assert run(copy.parent / "again", images[:1]).results


def test_weights_outside_the_onnx_file_are_refused(copy: Path, images: list[Path]) -> None:
    import onnx

    model = onnx.load(copy / "model.onnx")
    (copy.parent / "secret").write_bytes(bytes(100_000))
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../secret")
    (copy / "model.onnx").write_bytes(model.SerializeToString())
    write_manifest(copy, manifest_of("onnx", files=checksums(copy)))
    with pytest.raises(QuadranasError, match="ONNX Runtime cannot read"):
        run(copy, images[:1])
    with pytest.raises(QuadranasError, match="refers to other files for its weights"):
        read_onnx(copy / "model.onnx")


def test_a_device_of_no_certain_runtime(copy: Path, images: list[Path]) -> None:
    manifest = open_bundle(copy).manifest
    device = manifest.device.configured(runtime="fastest")
    write_manifest(copy, manifest.model_copy(update={"device": device}))
    with pytest.raises(QuadranasError, match="its runtime is 'fastest'; accepted: onnxruntime"):
        run(copy, images[:1])


class EmulatedBoard:
    """Runs the network, and has no times."""

    lowering = ()
    max_parallel = 1

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits

    def load(self, path: Path, shape: Any) -> "EmulatedBoard":
        return self

    def run(self, images: Tensor) -> Tensor:
        return self.logits[None].repeat(len(images), 1)

    def time_ms(self, repeats: int) -> list[float]:
        raise QuadranasError("emulated times are not latencies")

    def provenance(self) -> Provenance:
        return Provenance(runtime="QEMU", hardware="none", emulated=True)

    def compile(self, *args: Any) -> None: ...
    def convert(self, *args: Any) -> None: ...
    def count_operators(self, *args: Any) -> None: ...
    def close(self) -> None: ...


def test_an_emulated_device_has_labels_and_no_times(
    bundle: Path, images: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    logits = torch.arange(10.0)
    monkeypatch.setattr(
        "quadranas.measurement.bench.open_backend", lambda device, records: EmulatedBoard(logits)
    )
    result = run(bundle, images[:1])
    assert result.results[0].ms is None
    assert result.results[0].labels[0].label == "class j"
    assert list(result.notes) == ["device host is emulated, so nothing was timed"]
    assert f"{images[0]}: not timed, 123 us at export" in call("run", bundle, images[0]).out
    logits[3] = torch.nan
    with pytest.raises(QuadranasError, match="numbers that are not finite"):
        run(bundle, images[:1])


# The script


def script_output(folder: Path, *files: Path) -> Outcome:
    """What the script prints, from another folder."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, str(folder / SCRIPT), *map(str, files)],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder.parent,
        env=environment,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


RUN_SCRIPT = """
import runpy, sys
sys.argv = {arguments!r}
runpy.run_path({script!r}, run_name="__main__")
raise SystemExit
"""


def forked_script_output(server: Server, folder: Path, *files: Path) -> Outcome:
    """The same in a process that has imported torch already, which the script may import too."""
    arguments = [str(folder / SCRIPT), *map(str, files)]
    prelude = RUN_SCRIPT.format(script=arguments[0], arguments=arguments)
    return server.run(folder.parent, prelude=prelude)


def assert_script_agrees(
    done: Outcome,
    folder: Path,
    files: list[Path],
    network: nn.Module,
    mean: Any = None,
    std: Any = None,
) -> None:
    wanted = open_bundle(folder).manifest.input
    assert done.code == 0, done.err
    blocks = re.findall(r"^(\S.*)\n((?:  .*\n?){5})", done.out, re.MULTILINE)
    assert [name for name, _ in blocks] == list(map(str, files))
    for path, block in zip(files, (block for _, block in blocks), strict=True):
        pixels = np.load(path) if path.suffix == ".npy" else read_image(path, SIZE)
        expected = expected_scores(
            network,
            pixels,
            wanted.mean if mean is None else mean,
            wanted.std if std is None else std,
        )
        names = open_bundle(folder).manifest.class_names or tuple(map(str, range(10)))
        found = [line.strip().split("  ", 1) for line in block.splitlines()]
        assert [name for _, name in found] == [names[i] for i in np.argsort(-expected)[:5]]
        shown = [float(score.rstrip("%")) / 100 for score, _ in found]
        assert shown == pytest.approx(np.sort(expected)[:4:-1], abs=1.1e-4)


@pytest.fixture(scope="module")
def arrays(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    path = tmp_path_factory.mktemp("arrays") / "array.npy"
    np.save(path, noise(7, SIZE, SIZE, 3))
    return [path]


def test_the_script_agrees_with_pytorch_in_onnxruntime(
    bundle: Path, images: list[Path], arrays: list[Path], network: nn.Module
) -> None:
    files = [*images, *arrays]
    assert_script_agrees(script_output(bundle, *files), bundle, files, network)


@pytest.mark.parametrize("file_format", [name for name in file_formats() if name != "onnx"])
def test_the_script_agrees_with_pytorch_in_every_runtime(
    tmp_path: Path,
    images: list[Path],
    arrays: list[Path],
    network: nn.Module,
    server: Server,
    file_format: str,
) -> None:
    batch = None if files_of(file_format).free_batch else 2
    shape = InputDescription(shape=(batch, 3, SIZE, SIZE), mean=MEAN, std=STD)
    try:
        folder = write_bundle(
            tmp_path / file_format, manifest_of(file_format, input=shape), network
        )
    except MissingExtraError as error:
        pytest.skip(str(error))
    files = [*images[:3], *arrays]
    assert_script_agrees(forked_script_output(server, folder, *files), folder, files, network)
    if file_format == "openvino":
        assert sorted(checksums(folder)) == ["infer.py", "model-card.md", "model.bin", "model.xml"]
    if file_format == "executorch":
        return  # reading its files takes ten seconds, and is under the backends' contract
    (answer,) = run(folder, images[:1], top=10, allow_native_code=True).results
    expected = expected_scores(network, read_image(images[0], SIZE))
    for label in answer.labels:
        assert label.probability == pytest.approx(expected[label.index], abs=1e-5)


@pytest.mark.parametrize("file_format", file_formats())
def test_a_script_is_short_and_stands_alone(file_format: str) -> None:
    lines = inference_script(file_format).splitlines()
    assert not any("quadranas" in line for line in lines)
    assert len(lines) <= 120
    assert max(map(len, lines)) < 120


def test_the_script_refuses_what_it_would_misread(bundle: Path, tmp_path: Path) -> None:
    assert "python infer.py IMAGE..." in script_output(bundle).err
    np.save(tmp_path / "float.npy", np.zeros((SIZE, SIZE, 3)))
    done = script_output(bundle, tmp_path / "float.npy")
    assert done.code == 1
    assert "Cannot cast array data from dtype('float64') to dtype('uint8')" in done.err
    np.save(tmp_path / "larger.npy", noise(3, 2 * SIZE, SIZE, 3))
    Image.fromarray(noise(3, 2 * SIZE, SIZE, 3)).save(tmp_path / "larger.png")
    done = script_output(bundle, tmp_path / "larger.npy", tmp_path / "larger.png")
    first, second = done.out.split(str(tmp_path))[1:]
    assert first.split("\n", 1)[1] == second.split("\n", 1)[1]
