"""The commands that results and errors propose: they work as they are printed."""

import shlex
import shutil
from pathlib import Path

import pytest

from quadranas.data.decoding import read_image
from quadranas.deployment.images import open_export_images
from quadranas.latency.device import Device, load_device
from quadranas.latency.table import LatencyTable
from quadranas.latency.table_files import load_table
from quadranas.runs.config import DataConfig
from quadranas.runs.config_file import read_config_file
from quadranas.runs.next_command import (
    export_command,
    proposed,
    resume_command,
)
from quadranas.runs.run_folder import RunFolder
from quadranas.runs.stored_network import open_network
from quadranas.space.architecture import load_architecture
from tests.command_line import Outcome, call


def next_of(outcome: Outcome) -> list[str]:
    """The arguments of the command that the last line proposes."""
    assert outcome.code == 0, outcome.err
    line = outcome.out.splitlines()[-1]
    assert line.startswith("next: quadranas "), outcome.out
    return shlex.split(line)[2:]


@pytest.fixture
def run(finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished search in the working folder, in a folder with a blank in its name."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished_run, "my run")
    return Path("my run")


def of_device(run: Path, device: Device, **header: object) -> None:
    """Make a search's folder one that was made for another device."""
    table = load_table(run / "table.json")
    changes = {"device": device.name, **header}
    LatencyTable(header=table.header.model_copy(update=changes), entries=table.entries).save(
        run / "table.json"
    )
    architecture = load_architecture(run / "architecture.json")
    provenance = architecture.provenance | {"device": device.name}
    architecture.model_copy(update={"provenance": provenance}).save(run / "architecture.json")


def test_every_next_command_works(run: Path, exports: Path) -> None:
    pytest.importorskip("onnxruntime")
    searched = call("search", "--resume", "--output", run, "--quiet")
    assert next_of(searched) == ["export", "my run", "--format", "onnx"]
    exported = call(*next_of(searched), "--quiet")
    labelled = call(*next_of(exported), "--json")
    assert labelled.code == 0, labelled.err
    image = Path(labelled.json()["results"][0]["image"])
    assert image.is_file()
    derived = call("derive", run, "--device", "gpu", "--budget", "1ms", "--quiet")
    trained = call(*next_of(derived), "--quiet", "--epochs", "1", "--output", "trained")
    assert next_of(trained) == ["export", "trained", "--format", "torch"]


def test_a_path_that_begins_with_a_dash_is_no_option() -> None:
    assert proposed("train", Path("-run/derived")) == "quadranas train ./-run/derived"
    assert proposed("train", Path("run-1")) == "quadranas train run-1"


def test_the_digits_come_with_an_image(run: Path, tmp_path: Path) -> None:
    stored = open_network(load_architecture(run / "architecture.json"))
    images = open_export_images(stored, DataConfig(), 32, 4)
    assert images.example(tmp_path) == tmp_path / "example.png"
    assert read_image(tmp_path / "example.png", 32).shape == (32, 32, 3)


def test_a_new_table_leads_on_to_a_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = "{extends: toy, name: own, widths: [8, 12]}"
    Path("my space.yaml").write_text(text, encoding="utf-8")
    load_device("vpu").configured(name="mine", title="x").save(Path("mine.yaml"))
    words = ("build-lut", "--device", "mine.yaml", "--space", "my space.yaml", "--quiet")
    for output in ((), ("--output", "t.json")):
        proposal = next_of(call(*words, *output))
        assert ("--table" in proposal) == bool(output)
        outcome = call(*proposal, "--max-macs", "1")  # refused after space, table and budget
        assert "has at most 1 MACs" in outcome.err
    with_threads = call(*words, "--threads", "2", "--output", "two.json")
    assert "next:" not in with_threads.out


def test_the_runtime_of_the_table_decides_about_the_format(run: Path) -> None:
    assert export_command(run).endswith(
        "--format onnx"
    )  # the cpu's analytic table, not TVM's code
    for device, file_format in (("gpu", "torch"), ("vpu", "onnx"), ("host", "onnx")):
        of_device(run, load_device(device))
        assert export_command(run) == f"quadranas export 'my run' --format {file_format}"


def test_a_device_that_must_be_reached_is_named(run: Path) -> None:
    board = load_device("cpu").configured(name="board", rpc="pi:9090")
    board.save(Path("my board.yaml"))
    of_device(run, board)
    folder = RunFolder(run)
    keys = read_config_file(run / "config.yaml").keys | {"device": str(Path("my board.yaml"))}
    folder.write_config(keys)
    named = shlex.quote(str(Path("my board.yaml")))
    assert export_command(run) == f"quadranas export 'my run' --format tvm --device {named}"
    assert resume_command("search", run) == (
        f"quadranas search --resume --output 'my run' --device {named}"
    )
    board.save(run / "device.yaml")
    folder.write_config({key: value for key, value in keys.items() if key != "device"})
    assert export_command(run).endswith("--format tvm --device 'my run/device.yaml'")


def test_lines_are_quoted_and_leave_out_what_is_not_set() -> None:
    line = proposed("run", Path("a b"), allow_native_code=True, rpc_key="x'y", rpc=None, top=False)
    assert shlex.split(line) == [
        *("quadranas", "run", "a b", "--allow-native-code", "--rpc-key", "x'y"),
    ]


def test_an_interrupted_training_names_what_it_has_not_copied(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    weights = shutil.copy(run / "subnet.safetensors", "my weights.safetensors")
    network = shutil.copy(run / "architecture.json", "my network.json")
    data = ("--data", read_config_file(run / "config.yaml").keys["data"])
    with monkeypatch.context() as patch:
        patch.setattr("quadranas.commands.train._keep_start", interrupted)
        command = ("train", network, "--weights", weights, "--epochs", "1", *data)
        outcome = call(*command, "--output", "my training")
    assert outcome.code == 130
    hint = outcome.err.splitlines()[-1]
    assert hint == (
        "Continue with: quadranas train 'my network.json' --weights 'my weights.safetensors' "
        "--resume --output 'my training'"
    )
    continued = call(*shlex.split(hint)[3:], "--quiet")
    assert next_of(continued)[:2] == ["export", "my training"]
