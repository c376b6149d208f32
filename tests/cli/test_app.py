"""The command line: one message and exit code 2 for every fault, one JSON object per command."""

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from PIL import Image
from torch import nn
from typer.core import TyperOption

from quadranas import __version__
from quadranas.cli.app import app
from quadranas.latency.device import shipped_devices
from quadranas.runs.run_folder import RunFolder
from quadranas.space.architecture import load_architecture
from tests.bundles import manifest_of, toy_network, write_bundle
from tests.command_line import CHECKOUT, Outcome, Server, call, listing
from tests.measuring import trace_exports
from tests.onnx_files import write

SEARCH = ("search", "--device", "cpu", "--budget", "0.8ms", "--space", "toy")
TABLES = CHECKOUT / "latency_tables"


def write_pictures(folder: Path, classes: tuple[str, ...], count: int, side: int = 32) -> None:
    for name in classes:
        (folder / name).mkdir(parents=True)
        for index in range(count):
            picture = np.full((side, side, 3), 20 * index, np.uint8)
            Image.fromarray(picture).save(folder / name / f"{index}.png")


def change(content: dict[str, Any], block: int, **keys: Any) -> dict[str, Any]:
    """An architecture's content with another first operation in one block."""
    changed: dict[str, Any] = json.loads(json.dumps(content))
    changed["blocks"][block]["ops"][0].update(keys)
    return changed


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory, finished_run: Path) -> Path:
    """A folder with one of every faulty thing."""
    folder = tmp_path_factory.mktemp("workshop")
    shutil.copytree(finished_run, folder / "run")
    (folder / "text.txt").write_text("text", encoding="utf-8")
    (folder / "nothing").mkdir()
    write_pictures(folder / "one", ("cat",), 5)
    write_pictures(folder / "tiny", ("cat", "dog"), 5, side=4)
    write_pictures(folder / "few", ("cat", "dog"), 1)
    write_pictures(folder / "good", ("cat", "cow"), 5)
    write_pictures(folder / "torn", ("cat", "dog"), 5)
    (folder / "torn" / "cat" / "0.png").write_bytes(b"no image")
    texts = {
        "typo.yaml": "bugdet: 3ms",
        "nested.yaml": "schedule: {serach_epochs: 3}",
        "value.yaml": "weights: {optimizer: adam}",
        "flat.yaml": "schedule: 5",
        "list.yaml": "table: [1]",
        "torn.yaml": "a: [1",
        "bare.yaml": "{device: cpu, budget: 30}",
        "odd.yaml": "train_resolution: 33",
        "device.yaml": "{name: x, title: x, runtime: x, precision: fp8}",
        "own.yaml": "{extends: toy, name: own, widths: [8, 12]}",
        "torn.json": '{"a": ',
        "empty.json": "{}",
    }
    for name, text in texts.items():
        (folder / name).write_text(text + "\n", encoding="utf-8")
    content = json.loads((finished_run / "architecture.json").read_text(encoding="utf-8"))
    architectures = {
        "network.json": content,
        "newer.json": content | {"format_version": 9},
        "even.json": change(content, 1, kernel_size=4),
        "wide.json": change(content, 1, in_channels=9, out_channels=9),
        "key.json": change(content, 1, kernel=3),
    }
    for name, architecture in architectures.items():
        (folder / name).write_text(json.dumps(architecture), encoding="utf-8")
    (folder / "torn.safetensors").write_bytes(b"1234567890")
    shutil.copy(finished_run / "supernet.safetensors", folder / "foreign.safetensors")
    return folder


UNIT = "Write a positive number and a unit, for example 30ms, 0.3s or 250us."
FAULTS: dict[str, str] = {
    # names
    "serch": "No such command 'serch'. Did you mean 'search'?",
    "search --bugdet 3ms": "No such option: --bugdet",
    "search --device cpu --device vpu --budget 3ms": "Option '--device' is given twice",
    "search --device vpuu --budget 3ms": "xavier-ncnn; did you mean 'vpu'?",
    "search --device no.yaml --budget 3ms": "cannot read device no.yaml: No such file",
    "search --device device.yaml --budget 3ms": "device.yaml: precision: ",
    "search --device cpu --budget 3ms --space tiy": "unknown search space 'tiy'; accepted: "
    "convnext-quadratic, mbconv-mobile, mbconv-quadratic, quadranet-mobile, quadranet-tiny, toy; "
    "did you mean 'toy'?",
    "spaces tiy": "did you mean 'toy'?",
    "spaces --device vpuu": "did you mean 'vpu'?",
    "devices vpuu": "did you mean 'vpu'?",
    "build-lut --device cpu --space toy --backend analytik": "did you mean 'analytic'?",
    "profile quadranet36": "did you mean 'quadranet36_t'?",
    "train quadranet": "unknown model 'quadranet'",
    "export run --format onx": "unknown format 'onx'; accepted: executorch, litert, onnx, "
    "openvino, torch, tvm; did you mean 'onnx'?",
    # budgets
    "search --device cpu --space toy": "missing budget",
    "search --budget 1ms --space toy": "missing device",
    "search --device cpu --space toy --budget 1": "the budget '1' has no unit; accepted: ",
    "search --device cpu --space toy --budget -1ms": "must be positive and finite, got '-1ms'",
    "search --device cpu --space toy --budget 0ms": "must be positive and finite, got '0ms'",
    "search --device cpu --space toy --budget nanms": "must be positive and finite, got 'nanms'",
    "search --device cpu --space toy --budget infms": "must be positive and finite, got 'infms'",
    "search --device cpu --space toy --budget 1h": "has the unknown unit 'h'",
    "search --device cpu --space toy --budget fast": "cannot read the budget 'fast'",
    "search --device cpu --space toy --budget 0.5ms": "no network of space 'toy' keeps 500 us on "
    "device 'cpu'; its reachable range is 566 us to 1.08 ms",
    "derive run --device vpu --budget 9us": "no network of space 'toy' keeps 9.00 us on device "
    "'vpu'; its reachable range is 741 us to 1.37 ms",
    "derive run --device vpu --budget 9": "the budget '9' has no unit",
    # other limits
    "SEARCH --max-params 9": "no network of space 'toy' has at most 9 parameters; the smallest",
    "SEARCH --max-macs 9": "no network of space 'toy' has at most 9 MACs; the smallest has",
    "SEARCH --max-macs 0": "Invalid value for '--max-macs'",
    "SEARCH --seed -1": "seed: Input should be greater than or equal to 0 (got -1)",
    # data
    "SEARCH --data nothing": "--data nothing contains no files with an image",
    "SEARCH --data nowhere": "--data nowhere does not exist",
    "SEARCH --data one": "--data one has only one class, 'cat'; at least 2 are needed",
    "SEARCH --data tiny": "image cat/0.png in tiny is too small: 4 x 4 pixels",
    "SEARCH --data few": "class 'cat' has 0, at least 2 per class are needed",
    "SEARCH --data torn": "corrupt image cat/0.png in torn",
    "SEARCH --data text.txt": "--data text.txt is not a zip file",
    "SEARCH --data good --val one": "--val one has only one class",
    "SEARCH --val good": "--val good needs --data",
    "eval run --data good": "the data's classes (cat, cow) are not those the network was trained "
    "for (cat, dog)",
    # resolutions
    "SEARCH --train-resolution 33": "resolution 33 does not fit toy: it must be a multiple of 8",
    "SEARCH --train-resolution 4": "train_resolution: Input should be greater than or equal to 8",
    "train network.json --config odd.yaml": "resolution 33 does not fit toy-cpu-800us",
    "export run --resolution 33": "resolution 33 does not fit toy-cpu-800us",
    "profile quadranet36_t --resolution 100": "it must be a multiple of 32",
    # configurations
    "SEARCH --config typo.yaml": "typo.yaml: bugdet: unknown key (got '3ms'); accepted: "
    "accelerator, accumulate, also, augment,",
    "SEARCH --config nested.yaml": "schedule.serach_epochs: unknown key (got 3); accepted: "
    "finetune_epochs, resolution_images, search_epochs, warmup_epochs; did you mean "
    "'search_epochs'?",
    "SEARCH --config value.yaml": "value.yaml: weights.optimizer: Input should be 'adamw'",
    "SEARCH --config flat.yaml": "flat.yaml: schedule: Input should be a mapping of keys (got 5)",
    "SEARCH --config list.yaml": "list.yaml: table: Input should be a valid string (got [1])",
    "SEARCH --config torn.yaml": "torn.yaml: not valid YAML",
    "SEARCH --config no.yaml": "cannot read configuration no.yaml",
    "search --config bare.yaml": "the budget '30' has no unit",
    "train network.json --config nested.yaml": "nested.yaml: schedule: unknown key",
    # tables
    "SEARCH --table TABLES/toy/vpu.json": "was made for device 'vpu', not for 'cpu'",
    "SEARCH --table TABLES/quadranet-tiny/cpu.json": "was made for space 'quadranet-tiny', not",
    "SEARCH --table no.json": "looked at no.json",
    "SEARCH --table torn.json": "torn.json: not valid JSON",
    "SEARCH --table network.json": "network.json: not a latency table: it has no key 'header'",
    "search --device cpu --budget 1ms --space own.yaml": "no latency table of device 'cpu' for",
    "spaces own.yaml --device cpu": "no latency table of device 'cpu' for space 'own'",
    # architectures
    "profile newer.json": "newer.json: format_version 9 is newer than this quadranas reads",
    "profile even.json": "blocks.1.ops.0: impossible quadratic_depthwise: kernel_size must be odd",
    "profile wide.json": "takes 9 channels at 8 pixels, but receives 8 at 8",
    "profile key.json": "blocks.1.ops.0.kernel: unknown key",
    "profile empty.json": "empty.json: not an architecture file: key 'blocks' is missing",
    "profile torn.json": "torn.json: not valid JSON",
    "profile no.json": "cannot read architecture no.json: No such file",
    "profile good": "good contains no architecture.json",
    # weights
    "eval network.json": "architecture 'toy-cpu-800us' has no trained weights",
    "eval network.json --weights torn.safetensors": "cannot read weights torn.safetensors",
    "eval network.json --weights no.safetensors": "cannot read weights no.safetensors",
    "eval run --weights foreign.safetensors": "foreign.safetensors does not fit this network",
    "train network.json --weights foreign.safetensors --data good": "does not fit this network",
    "export network.json": "architecture 'toy-cpu-800us' has no trained weights",
    # folders
    "SEARCH --output run": "the output run exists already",
    "SEARCH --output text.txt": "the output text.txt exists already",
    "SEARCH --output text.txt/run": "cannot write to the output text.txt/run: Not a directory",
    "train run --output good": "the output good exists already",
    "derive run --device cpu --budget 1ms --output good": "the output good exists already",
    "derive good --device cpu --budget 1ms": "good holds no trained supernet",
    "derive nowhere --device cpu --budget 1ms": "nowhere holds no trained supernet",
    "search --resume": "no unfinished run under runs/ matches the given options; unfinished: none",
    "search --resume --output nowhere": "nowhere holds no run to continue",
    "train run --resume --output run": "run is a run of `quadranas search`, not of",
    "report nowhere": "run folder nowhere does not exist",
    "report good": "good is not a run folder",
}
HINTS: dict[str, str] = {
    "search --device cpu --space toy --budget 1": UNIT,
    "search --device cpu --space toy --budget 0.5ms": "The nearest feasible budget is 567us; or "
    "choose a smaller space.",
    "SEARCH --train-resolution 33": "Use 32 or 40.",
    "SEARCH --max-macs 9": "The nearest feasible limit is --max-macs 86432; or choose a smaller "
    "space.",
    "SEARCH --table no.json": "Make it with: quadranas build-lut --device cpu --space toy "
    "--output no.json",
    "search --device cpu --budget 1ms --space own.yaml": "Make it with: quadranas build-lut "
    "--device cpu --space own.yaml",
    "profile newer.json": "Upgrade with: pip install --upgrade quadranas",
    "eval network.json": "Name a run folder, or add --weights FILE.safetensors.",
    "SEARCH --output run": "Remove it, or choose another --output.",
    "train run --resume --output run": "Continue it with: quadranas search --resume --output run",
    "search --bugdet 3ms": "See: quadranas search --help",
    "search --resume --output nowhere": "Name another folder with --output, or begin one "
    "with --device and --budget.",
}


@pytest.mark.parametrize("command", FAULTS)
def test_a_fault_is_one_message_and_leaves_nothing(
    workshop: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.chdir(workshop)
    before = listing(workshop)
    words = command.replace("TABLES", str(TABLES)).split()
    argv = [*SEARCH, *words[1:]] if words[0] == "SEARCH" else words
    outcome = call(*argv, "--json")
    assert outcome.code == 2, outcome.err
    message = outcome.json()
    assert set(message) == {"error", "hint"}
    assert FAULTS[command] in message["error"]
    assert HINTS.get(command, message["hint"]) == message["hint"]
    assert outcome.err.count("error:") == 1
    assert f"error: {message['error']}" in outcome.err
    assert message["hint"] in outcome.err
    assert "Traceback" not in outcome.err
    assert listing(workshop) == before


def test_every_single_option_is_refused_when_repeated() -> None:
    commands = typer.main.get_group(app).commands
    known = {
        (name, option.opts[0], option.multiple, option.is_flag)
        for name, command in commands.items()
        for option in command.params
        if isinstance(option, TyperOption)
    }
    assert {(name, flag) for name, flag, several, _ in known if several} == {
        ("spaces", "--device"),
        *((verb, "--also") for verb in ("search", "derive", "explore")),
        ("pareto", "--device"),
        ("build-lut", "--num-classes"),
        ("build-lut", "--times"),
        ("calibrate", "--num-classes"),
        ("calibrate", "--times"),
        ("report", "--compare"),
        ("time", "--input"),
        ("convert", "--layers"),
        ("adapt", "--layers"),
        ("space-from", "--where"),
        ("predict", "--input"),
    }
    for name, flag, several, is_flag in sorted(known):
        if not several:
            times = 3 * ([flag] if is_flag else [flag, "1"])
            outcome = call(name, *times)
            assert outcome.code == 2
            assert f"Option '{flag}' is given 3 times; give it once." in outcome.err


def test_every_hint_belongs_to_a_fault() -> None:
    assert set(HINTS) <= set(FAULTS)


def test_a_fault_without_json_leaves_stdout_empty(workshop: Path) -> None:
    outcome = call("profile", workshop / "newer.json")
    assert (outcome.code, outcome.out) == (2, "")
    first, second = outcome.err.splitlines()
    assert first.startswith("error: ")
    assert second == "Upgrade with: pip install --upgrade quadranas"


def test_a_fault_in_a_real_process(tmp_path: Path, server: Server) -> None:
    done = server.run(tmp_path, "search", "--device", "cpu", "--space", "toy", "--budget", "1us")
    assert (done.code, done.out) == (2, "")
    line, table, error, hint = done.err.splitlines()
    assert line == "budget 1.00 us on cpu; reachable with space toy: 566 us to 1.08 ms"
    assert table.startswith(f"latency table {TABLES / 'toy' / 'cpu.json'}: analytic (")
    assert error.startswith("error: no network of space 'toy' keeps 1.00 us")
    assert hint == "The nearest feasible budget is 567us; or choose a smaller space."


def test_our_own_faults_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(names: list[str]) -> None:
        raise ZeroDivisionError("our fault")

    monkeypatch.setattr("quadranas.commands.survey.survey_devices", broken)
    with pytest.raises(ZeroDivisionError, match="our fault"):
        call("devices")


TEST_KEYS = {
    *("accuracy", "resolution", "trained_resolution", "accuracy_as_trained", "chance"),
    "warnings",
}
RUN_KEYS = TEST_KEYS | {
    *("run", "architecture", "notes", "device", "budget_ms", "predicted_ms", "measured_ms"),
    *("measured_p50_ms", "measured_p95_ms", "measured_dropped", "not_measured", "table"),
    *("params", "macs", "confidence", "tolerance", "candidates", "inherited_accuracy"),
    *("also", "weight_bytes", "memory_bytes"),
}
TRAINED_KEYS = {
    "report_path",
    "accelerator",
    "precision",
    "processes",
    "kept_epoch",
    "val_accuracy",
}
KEYS: dict[str, set[str]] = {
    "profile quadranet36_t": {"model", "resolution", "num_classes", "params", "macs", "layers"},
    "devices": {"devices", "runtimes"},
    "spaces toy": {"spaces"},
    "recipes cifar": {"recipes"},
    "build-lut --device cpu --space toy": {
        *("path", "device", "space", "entries", "method", "summary", "quality"),
    },
    "validate-lut --device host --space toy --table host.json --networks 2 --rounds 4": {
        *("networks", "bias", "mape", "within_5", "within_10", "kendall_tau"),
        *("table", "plot", "summary"),
    },
    "calibrate --device host --space toy --from cpu --measure 4 --rounds 2 --max-residual 9": {
        *("path", "times", "device", "space", "source", "networks", "mape", "factors", "summary"),
    },
    "merge-lut host.json host.json --output merged.json": {"path", "entries"},
    "SEARCH --output new": RUN_KEYS | TRAINED_KEYS | {"seed", "pretrained", "versions"},
    "search --resume --output run": {
        *(RUN_KEYS | TRAINED_KEYS),
        *("seed", "pretrained", "versions"),
    },
    "derive run --device vpu --budget 1ms": RUN_KEYS,
    "explore run --strategy random --trials 2 --device vpu --budget 1ms": {
        *RUN_KEYS,
        *("strategy", "trials", "trials_path"),
    },
    "pareto run --device cpu --device vpu --points 2": {
        *("run", "path", "report", "devices", "networks", "carried"),
    },
    "train run --epochs 1": {
        *("run", "architecture", "notes", "params", "macs"),
        *(TEST_KEYS | TRAINED_KEYS),
    },
    "eval run": {
        *("model", "data", "num_images", "num_skipped"),
        *("accuracy", "resolution", "trained_resolution"),
    },
    "adapt run --output new": {
        *("folder", "adapted_from", "layers", "rank", "dilation", "train", "weights"),
        *("params", "macs", "params_before", "macs_before", "quadratic_params"),
    },
    "space-from run": {"path", "name", "family", "resolution", "widths", "architectures"},
    "report run": {"run", "report", "comparison"},
    "inspect run --image photo.png": {"model", "image", "page", "layers"},
    "data pictures": {
        *("data", "val", "kind", "is_held_out", "splits", "classes", "warnings", "page"),
    },
    "export run": {
        *("bundle", "path", "format", "precision", "resolution", "runtime", "num_images"),
        *("max_abs_error", "relative_error", "top1_agreement", "accuracy", "accuracy_pytorch"),
        *("device", "predicted_ms", "not_predicted", "measured_on", "measured_ms", "fp32_ms"),
        *("opset", "batch_size", "accuracy_as_trained", "trained_resolution", "spread"),
        *("not_measured", "deviation", "budget_ms", "missed", "params", "size_bytes"),
        *("operators", "kept", "image", "notes", "num_skipped"),
        *("measured_p50_ms", "measured_p95_ms", "measured_dropped"),
    },
    "run bundle photo.png": {
        *("bundle", "name", "runtime", "hardware", "device", "precision", "batch_size"),
        *("measured_ms", "measured_on", "notes", "results"),
    },
    "compare bundle bundle --rounds 2": {
        *("device", "title", "hardware", "threads", "batch_size", "statistic", "rounds"),
        *("bundles", "notes", "page"),
    },
    "publish run/exports/onnx-fp32 hub": {
        *("folder", "bundle", "name", "license", "files", "accuracy", "num_images"),
        *("size_bytes", "notes"),
    },
    "predict net.onnx --device vpu": {
        *("model", "inputs", "latency_ms", "is_lower_bound", "operators", "unpriced", "macs"),
        *("params", "device", "title", "method", "runtime", "precision", "threads", "fitted_to"),
        *("expected_error", "file_precision", "notes"),
    },
    "time net.onnx --device host --rounds 2": {
        *("model", "inputs", "device", "title", "runtime", "hardware", "threads", "latency_ms"),
        *("statistic", "minimum_ms", "p50_ms", "p95_ms", "spread", "noise", "dropped", "rounds"),
        *("predicted_ms", "is_lower_bound", "deviation", "not_predicted", "notes"),
    },
    "convert run --output new": {
        *("path", "params_before", "params", "macs_before", "macs", "replaced", "kept"),
    },
    "convert run --remove 1 --output new": {
        *("run", "architecture", "params", "macs", "accuracy", "data", "num_images"),
        *("removed", "reverted", "ranking", "num_skipped", "resolution"),
    },
}


def test_the_keys_of_every_command_are_known() -> None:
    names = {command.name or command.callback.__name__ for command in app.registered_commands}  # type: ignore[union-attr]
    assert names == {"search" if key.startswith("SEARCH") else key.split()[0] for key in KEYS}


@pytest.mark.parametrize("command", KEYS)
def test_stdout_is_one_json_object(
    tmp_path: Path,
    finished_run: Path,
    small_config: Path,
    pictures: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    scramble: Callable[..., nn.Module],
    command: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("quadranas.measurement.timing.LOST", 2.0)  # other tests run beside it
    shutil.copytree(finished_run, tmp_path / "run")
    shutil.copy(pictures / "test" / "cat" / "0.png", tmp_path / "photo.png")
    (tmp_path / "pictures").symlink_to(pictures)
    write(tmp_path / "net.onnx", "y = Relu(x)")
    if " bundle" in command:
        write_bundle(tmp_path / "bundle", manifest_of("onnx"), toy_network(scramble))
    if "exports" in command:
        request.getfixturevalue("exports")
        assert call("export", "run").code == 0
    if "--device host" in command:
        request.getfixturevalue("exports")
        for runtime in ("onnxruntime", "openvino"):
            trace_exports(monkeypatch, runtime)
    if "host.json" in command:  # is measured first, so only for those that need it
        shutil.copy(request.getfixturevalue("host_table"), tmp_path / "host.json")
    words = command.split()
    argv = [*SEARCH, "--config", small_config, *words[1:]] if words[0] == "SEARCH" else words
    outcome = call(*argv, "--json")
    assert outcome.code == 0, outcome.err
    result = outcome.json()
    assert set(result) == KEYS[command]
    if set(result) >= RUN_KEYS:
        assert set(result["table"]) == {"path", "method", "summary"}
        assert Path(result["table"]["path"]).is_file()
        assert load_architecture(Path(result["architecture"])).resolution == 32
        assert 0 < result["predicted_ms"] <= result["budget_ms"]
        assert result["measured_ms"] is None
    for key in ("path", "report", "report_path", "run"):
        assert Path(result.get(key, ".")).exists()


def test_nested_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (space,) = call("spaces", "toy", "--json").json()["spaces"]
    assert {"name", "architectures", "devices"} <= set(space)
    modelled = {*shipped_devices()} - {"host"}
    assert set(space["devices"]) == modelled >= {"cpu", "gpu", "vpu", "pi5-litert"}
    for reachable in space["devices"].values():
        assert 0 < reachable["min_ms"] < reachable["max_ms"]
    devices = call("devices", "--json").json()["devices"]
    assert [device["name"] for device in devices] == sorted({*modelled, "host"})
    assert all(device["expected_error"] for device in devices)


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        ("devices", "cpu  Arm Cortex-A76"),
        ("spaces toy --device cpu", "cpu   566 us to 1.08 ms"),
        ("profile quadranet36_t", "quadranet36_t at 224 pixels: "),
        ("eval run", "test accuracy 100.00% at 32 pixels on 8 images"),
        ("derive run --device gpu --budget 1ms", "next: quadranas train run/derived/gpu-1ms"),
        (
            "train run --epochs 1 --quiet",
            "run runs/train-run-1, report runs/train-run-1/",
        ),
        ("report run", "run/report.html"),
        ("search --resume --output run", "next: quadranas export run --format onnx"),
        ("--version", f"quadranas {__version__}"),
        ("--help", "Find, train and export the best network"),
        ("search --help", "--max-params"),
    ],
)
def test_what_a_person_reads(
    tmp_path: Path,
    finished_run: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    shown: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished_run, tmp_path / "run")
    outcome = call(*command.split())
    assert outcome.code == 0, outcome.err
    assert shown in outcome.out


def test_without_a_command_the_help_is_shown() -> None:
    outcome = call()
    assert outcome.code == 2
    assert "Usage: quadranas" in outcome.out
    assert outcome.err == ""


def test_ctrl_c_before_the_run_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_config: Path
) -> None:
    def interrupted(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("quadranas.training.search_setup.open_data", interrupted)
    outcome = call(*SEARCH, "--config", small_config, "--json")
    assert outcome.code == 130
    assert outcome.json() == {
        "error": "interrupted before the run began; nothing was written",
        "hint": "",
    }
    assert listing(tmp_path) == []
    monkeypatch.setattr("quadranas.commands.survey.survey_devices", interrupted)
    outcome = call("devices")
    assert (outcome.code, outcome.out, outcome.err) == (130, "", "error: interrupted\n")


def test_ctrl_c_names_a_folder_with_blanks_in_quotes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_config: Path
) -> None:
    def interrupted(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(RunFolder, "save_checkpoint", interrupted)
    outcome = call(*SEARCH, "--config", small_config, "--output", "my run")
    assert outcome.code == 130
    assert "Continue with: quadranas search --resume --output 'my run'\n" in outcome.err
    outcome = call("train", "quadranet36_t", "--config", "my run/config.yaml", "--output", "other")
    assert outcome.code == 2  # the configuration of a search


@pytest.fixture
def own_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device of one's own, twice as slow as the cpu, in a working folder."""
    monkeypatch.chdir(tmp_path)
    shipped = CHECKOUT / "quadranas" / "latency" / "devices" / "cpu.yaml"
    lines = shipped.read_text(encoding="utf-8").splitlines()
    text = "\n".join("name: mine" if line.startswith("name:") else line for line in lines)
    (tmp_path / "my.yaml").write_text(text + "\n", encoding="utf-8")


def run_hint(outcome: Outcome, prefix: str) -> Outcome:
    """Do what the error says."""
    assert outcome.code == 2, outcome.err
    hint = outcome.err.splitlines()[-1]
    assert hint.startswith(f"{prefix} quadranas "), hint
    return call(*hint.removeprefix(f"{prefix} quadranas ").split())


@pytest.mark.usefixtures("own_device")
def test_a_device_of_ones_own(small_config: Path) -> None:
    given = ("--device", "my.yaml", "--budget", "0.8ms", "--space", "toy")
    search = ("search", *given, "--config", small_config, "--quiet")
    refused = call(*search)
    assert "no latency table of device 'mine' for space 'toy'" in refused.err
    made = run_hint(refused, "Make it with:")
    assert made.code == 0
    assert "latency_tables/toy/mine.json: " in made.out
    done = call(*search, "--json")
    assert done.code == 0, done.err
    result = done.json()
    assert result["device"] == "mine"
    assert result["run"] == "runs/toy-my-0.8ms-1"
    assert "mine" in call("devices", "my.yaml").out
    again = call("derive", result["run"], "--device", "my.yaml", "--budget", "0.9ms", "--json")
    assert again.code == 0, again.err
    assert again.json()["run"] == "runs/toy-my-0.8ms-1/derived/mine-0.9ms"


@pytest.mark.parametrize("own_space", [False, True])
@pytest.mark.usefixtures("own_device")
def test_a_missing_entry_is_an_error_whose_command_mends_it(
    tmp_path: Path, small_config: Path, own_space: bool
) -> None:
    space = "own.yaml" if own_space else "toy"
    (tmp_path / "own.yaml").write_text("{extends: toy, name: own}", encoding="utf-8")
    assert call("build-lut", "--device", "my.yaml", "--space", space).code == 0
    table = tmp_path / "latency_tables" / ("own" if own_space else "toy") / "mine.json"
    whole = json.loads(table.read_text(encoding="utf-8"))
    assert whole["entries"].pop(2)["op"]["kind"] == "quadratic_depthwise"
    table.write_text(json.dumps(whole), encoding="utf-8")
    given = ("--device", "my.yaml", "--budget", "0.8ms", "--space", space)
    search = ("search", *given, "--config", small_config, "--quiet")
    refused = call(*search)
    assert "has no entry for 1 operation, first: quadratic_depthwise 8->8" in refused.err
    assert run_hint(refused, "Fill it with:").code == 0
    assert call(*search).code == 0


def test_a_missing_entry_of_a_table_that_was_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_config: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    whole = json.loads((TABLES / "toy" / "cpu.json").read_text(encoding="utf-8"))
    whole["entries"] = whole["entries"][:3]
    (tmp_path / "my table.json").write_text(json.dumps(whole), encoding="utf-8")
    search = (*SEARCH, "--table", "my table.json", "--config", small_config)
    refused = call(*search, "--json")
    assert refused.code == 2
    assert refused.json()["hint"] == (
        "Fill it with: quadranas build-lut --device cpu --space toy --output 'my table.json' "
        "--backend analytic --only-missing --num-classes 2"
    )
    filled = call(
        *("build-lut", "--device", "cpu", "--space", "toy", "--output", "my table.json"),
        *("--backend", "analytic", "--only-missing", "--num-classes", "2"),
    )
    assert filled.code == 0
    assert call(*search, "--quiet").code == 0


def test_more_classes_than_the_table_prices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_pictures(tmp_path / "many", tuple(f"c{n:04}" for n in range(1001)), 1, side=8)
    refused = call(*SEARCH, "--data", "many")
    assert refused.code == 2
    assert refused.err.splitlines()[-1].endswith("--only-missing --num-classes 1001")
    assert listing(tmp_path / "runs") == []


def test_sigint_is_taken_while_a_command_loads(tmp_path: Path, server: Server) -> None:
    prelude = (
        "import os, signal, threading\nthreading.Timer(0.2, os.kill, (os.getpid(), 2)).start()"
    )
    slow = (
        "\nimport quadranas.commands.survey as s, time\n"
        "s.survey_devices = lambda names: time.sleep(30)"
    )
    outcome = server.run(tmp_path, "devices", prelude=prelude + slow)
    assert outcome.code == 128 + signal.SIGINT
    assert outcome.err == "error: interrupted\n"


@pytest.mark.parametrize(
    "arguments", [("train", "toy", "--output"), ("export",), ("predict",), ("eval", "x", "--data")]
)
def test_arguments_that_are_not_utf8_are_refused(arguments: tuple[str, ...]) -> None:
    outcome = call(*arguments, "caf\udce9", "--json")
    assert outcome.code == 2
    assert outcome.json()["error"].startswith(r"argument 'caf\udce9' is not UTF-8")


@pytest.mark.parametrize(
    "command",
    [
        "eval run",
        "train run --epochs 1 --output new",
        "convert run --remove 1 --output new",
        "export run --output new",
        "search --device cpu --budget 0.8ms --space toy --max-macs 1 --output new",
    ],
)
def test_every_command_that_skips_images_says_how_many(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    finished_run: Path,
    pictures: Path,
    exports: Path,
    command: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("quadranas.training.search_setup.check_limits", lambda *args: None)
    shutil.copytree(finished_run, "run")
    shutil.copytree(pictures, "data")
    (tmp_path / "data/test/cat/0.png").write_bytes(b"no image")
    outcome = call(*command.split(), "--data", "data", "--skip-corrupt")
    assert ", 1 corrupt image skipped" in outcome.out + outcome.err
