"""What an entry of facts is enough for: a runtime that is registered is known everywhere."""

import subprocess
import sys
from collections.abc import Callable
from configparser import RawConfigParser
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from torch import nn

from quadranas.backends.registry import backend_class
from quadranas.backends.worker_main import RUNTIMES as WORKER_RUNTIMES
from quadranas.commands.export import export
from quadranas.commands.run import run
from quadranas.commands.survey import survey_devices
from quadranas.deployment.bundle import open_bundle
from quadranas.errors import QuadranasError
from quadranas.latency.device import load_device
from quadranas.latency.runtimes import REACH_SETTINGS, RUNTIMES, file_formats, files_of
from quadranas.measurement.bench import host_runtimes
from quadranas.network.weights import save_tensors
from quadranas.runs.stored_network import StoredNetwork
from tests.bundles import toy_architecture, toy_network, write_pictures
from tests.command_line import CHECKOUT, call
from tests.fake_runtime import FAKE, register

Scrambler = Callable[..., nn.Module]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> str:
    """The made-up runtime, registered."""
    register(monkeypatch)
    return FAKE


# A registered runtime


def test_a_device_file_names_it(tmp_path: Path, fake: str) -> None:
    content = {"name": "board", "title": "a board", "runtime": fake, "precision": "fp32"}
    (tmp_path / "board.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    assert load_device(str(tmp_path / "board.yaml")).runtime == fake


def test_it_exports_bundles_that_run(tmp_path: Path, fake: str, scramble: Scrambler) -> None:
    network = toy_network(scramble)
    save_tensors(network.state_dict(), tmp_path / "weights.safetensors")
    stored = StoredNetwork(toy_architecture(), weights=tmp_path / "weights.safetensors")
    bundle = tmp_path / "bundle"
    result = export(stored, format="fake", output=bundle, images=4)
    assert result.path == bundle / "model.fake"
    assert (result.format, result.runtime) == ("fake", "Fake Runtime 1.0")
    assert result.measured_ms is not None
    manifest = open_bundle(bundle).manifest
    assert (manifest.format, manifest.device.runtime) == ("fake", fake)
    assert manifest.lowering == ("fold_batch_norm", "fold_layer_scale", "join_branches")
    assert "needs fake-runtime, numpy" in (bundle / "model-card.md").read_text(encoding="utf-8")
    assert "model = torch.export.load(artefact)" in (bundle / "infer.py").read_text("utf-8")
    labelled = run(bundle, write_pictures(tmp_path / "pictures", 32)[:1])
    assert labelled.runtime == "Fake Runtime 1.0"
    assert labelled.results[0].ms is not None
    with pytest.raises(QuadranasError, match=r"Fake Runtime 1\.0"):
        run(bundle, write_pictures(tmp_path / "others", 32)[:1], rpc="board:1")


def test_its_limits_are_those_of_its_facts(tmp_path: Path, fake: str) -> None:
    stored = StoredNetwork(toy_architecture())
    for options, message in (
        ({"batch": "dynamic"}, "format fake takes batches of one size only"),
        ({"precision": "int8"}, "format fake has no precision 'int8'; accepted: fp32"),
        ({"opset": 13}, "--opset needs the format onnx"),
        ({"tuning_trials": 0}, "--tuning-trials needs the format tvm"),
        ({"rpc": "board:1"}, "--rpc needs a device that"),
    ):
        with pytest.raises(QuadranasError) as caught:
            export(
                stored,
                format="fake",
                untrained=True,
                output=tmp_path / "b",
                **options,
            )
        assert message in caught.value.message


def test_messages_and_listings_name_it(
    fake: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert fake in survey_devices(["cpu"]).runtimes
    assert fake in call("devices", "cpu").out
    formats = call("export", "quadranet36_t", "--untrained", "--format", "fak")
    assert "accepted: executorch, fake, litert, onnx" in formats.err
    assert "did you mean 'fake'?" in formats.err
    backends = call("build-lut", "--device", "cpu", "--space", "toy", "--backend", "fakr")
    assert "did you mean 'fakert'?" in backends.err
    assert fake not in host_runtimes()
    monkeypatch.setitem(RUNTIMES, fake, replace(RUNTIMES[fake], for_host=True))
    assert fake in host_runtimes()
    (tmp_path / "x.yaml").write_text("{name: x, title: x, precision: fp32, runtime: fakrt}")
    with pytest.raises(QuadranasError, match=r"unknown runtime.*did you mean 'fakert'"):
        load_device(str(tmp_path / "x.yaml"))


HELP = """
import sys
from contextlib import suppress
from pytest import MonkeyPatch
from tests.fake_runtime import register
register(MonkeyPatch())
from quadranas.cli.app import main
for command in ("export", "build-lut"):
    print("### quadranas", command, flush=True)
    sys.argv = ["quadranas", command, "--help"]
    with suppress(SystemExit):
        main()
"""


def test_help_texts_name_it() -> None:
    shown = subprocess.run(
        [sys.executable, "-c", HELP],
        cwd=CHECKOUT,
        env={"COLUMNS": "300", "TERM": "dumb"},
        capture_output=True,
        text=True,
        check=True,
    )
    _, export, build_lut = shown.stdout.split("### quadranas")
    assert "litert, fake" in export
    assert "fakert" in build_lut


# The facts themselves


@pytest.mark.parametrize("name", RUNTIMES)
def test_an_entry_is_consistent(name: str) -> None:
    runtime = RUNTIMES[name]
    assert callable(backend_class(name))
    assert runtime.needs_reach in ("", *runtime.reach)
    assert set(runtime.reach) <= set(REACH_SETTINGS)
    assert set(runtime.runs) <= set(file_formats())
    assert (name in WORKER_RUNTIMES) == bool(runtime.over_ssh or "worker_python" in runtime.reach)
    setup = RawConfigParser()
    setup.read(CHECKOUT / "setup.cfg", encoding="utf-8")
    extras = setup["options.extras_require"]
    assert bool(runtime.extra) == bool(runtime.imports)
    assert runtime.extra == "" or runtime.extra in extras
    if runtime.files is None:
        return
    files = runtime.files
    assert files.precisions[0] == "fp32"
    assert (files.opset is None) == (not files.opsets)
    assert files.opset is None or files.opset in files.opsets
    assert files_of(files.format).artefact == files.artefact
    assert files_of(files.format).script is not None
