"""Names from files reach terminals, pages, model cards and scripts as text, and nothing else."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from torch import nn

from quadranas.deployment.manifest import Manifest
from quadranas.deployment.model_card import model_card
from quadranas.inspection.records import (
    QUANTILES,
    Alarm,
    Distribution,
    LayerRecord,
    LayerTerms,
    StepRecord,
)
from quadranas.reporter import PlainConsole
from quadranas.reports.inspection_page import inspection_page
from tests.bundles import manifest_of, toy_network, write_bundle
from tests.command_line import CHECKOUT, Outcome, call
from tests.onnx_files import model

CONTROL = "\x1b[31m\x1b]0;title\x07\u202e\u2066\x9b\x00\r\n\x7f\u2028"
"""Colours, the title of a window, reversed text, new lines: none may reach a terminal."""

MARKUP = ":smile: [red]x[/red] <b>y</b> &lt; *z* `c` [l](http://e.org) ![i](u) # | $m$ ~~s~~"
"""Markup of rich, HTML and Markdown, which must be printed as it is."""

NAME = f"n{CONTROL}{MARKUP}"
FILE_NAME = "n\x1b[31m\u202e:smile: [red]x[red] <b>y *z* `c` | #\n\x9b"


def check_plain(text: str) -> None:
    assert "n\\x1b[31m" in text, text
    assert [c for c in text if not c.isprintable() and c != "\n"] == []


def check_console(outcome: Outcome, code: int = 0) -> None:
    assert outcome.code == code, outcome.err
    check_plain(outcome.out + outcome.err)
    printed = (outcome.out + outcome.err).replace("┃", "").replace("│", "")
    assert ":smile:" in "".join(printed.split())  # also where a table wraps it


@pytest.fixture
def workshop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished_run: Path) -> Path:
    """A folder with a run of a hostile name, whose network has one too."""
    monkeypatch.chdir(tmp_path)
    run = tmp_path / FILE_NAME
    shutil.copytree(finished_run, run)
    architecture = json.loads((run / "architecture.json").read_text("utf-8"))
    architecture["name"] = NAME
    (run / "architecture.json").write_text(json.dumps(architecture), "utf-8")
    table = json.loads((run / "table.json").read_text("utf-8"))
    table["header"] |= {"title": NAME, "expected_error": NAME, "command": NAME, "commit": NAME}
    (run / "table.json").write_text(json.dumps(table), "utf-8")
    device = yaml.safe_load((CHECKOUT / "quadranas/latency/devices/cpu.yaml").read_text("utf-8"))
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(device | {"title": NAME}), "utf-8")
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(tmp_path / "photo.png")
    return tmp_path


@pytest.mark.parametrize(
    "command",
    [
        ("search", "--resume", "--output", FILE_NAME),
        ("derive", FILE_NAME, "--device", "cpu", "--budget", "0.9ms", "--table", "table.json"),
        ("train", FILE_NAME, "--epochs", "1", "--output", f"{FILE_NAME}2"),
        ("report", FILE_NAME),
        ("devices", "own.yaml"),
        ("convert", FILE_NAME, "--output", f"{FILE_NAME}3"),
        ("adapt", FILE_NAME, "--output", f"{FILE_NAME}4"),
        ("inspect", FILE_NAME, "--image", "photo.png"),
        ("profile", FILE_NAME),
        ("profile", FILE_NAME, "--memory"),
        ("export", FILE_NAME),
        ("predict", "net.onnx", "--device", "cpu"),
        ("build-lut", "--device", "cpu", "--space", "toy", "--output", f"{FILE_NAME}.json"),
    ],
    ids=lambda command: command[0],
)
def test_results(workshop: Path, exports: Path, command: tuple[str, ...]) -> None:
    shutil.copy(Path(FILE_NAME, "table.json"), "table.json")
    network = model("y = Relu(x)\nz = Sigmoid(y)")
    for node in network.graph.node:
        node.name = NAME
    Path("net.onnx").write_bytes(network.SerializeToString())
    check_console(call(*command))
    if command[0] in ("devices", "profile", "report"):  # `predict` escapes names as it reads
        outcome = call(*command, "--json")
        assert {NAME, FILE_NAME} & _texts(outcome.json())
        assert outcome.out.replace("\n", "").isascii()
        assert outcome.out.replace("\n", "").isprintable()
    if command[0] == "report":
        check_page(Path(FILE_NAME, "report.html").read_text("utf-8"))
    if command[0] == "export":
        check_card(Path(FILE_NAME, "exports", "onnx-fp32", "model-card.md").read_text("utf-8"))


def _texts(content: Any) -> set[str]:
    if isinstance(content, dict):
        return set().union(*map(_texts, content.values()))
    if isinstance(content, list):
        return set().union(*map(_texts, content))
    return {content} if isinstance(content, str) else set()


@pytest.mark.parametrize(
    "command",
    [
        ("devices", FILE_NAME),
        ("spaces", FILE_NAME),
        ("profile", f"{FILE_NAME}.json"),
        ("eval", FILE_NAME, "--data", "nowhere"),
        ("search", "--device", "cpu", "--budget", FILE_NAME),
        ("search", f"--{FILE_NAME}"),
        (FILE_NAME,),
        ("search", "--device", "cpu", "--budget", "1ms", "--config", "typo.yaml"),
        ("profile", "value.json"),
        ("merge-lut", FILE_NAME, FILE_NAME, "--output", "t.json"),
        ("run", FILE_NAME, "photo.png"),
        ("validate-lut", "--device", "cpu", "--space", "toy", "--table", FILE_NAME),
    ],
    ids=lambda command: command[0][:9],
)
def test_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]) -> None:
    monkeypatch.chdir(tmp_path)
    Path("typo.yaml").write_text(yaml.safe_dump({NAME: 1}), "utf-8")
    architecture = json.loads((CHECKOUT / "tests/golden/0.1.0/converted.json").read_text("utf-8"))
    Path("value.json").write_text(json.dumps(architecture | {NAME: NAME}), "utf-8")
    outcome = call(*command)
    assert outcome.code == 2
    if "nowhere" not in command:
        assert ":smile:" in outcome.err
    assert [c for c in outcome.out + outcome.err if not c.isprintable() and c != "\n"] == []


def check_page(page: str) -> None:
    assert "\\x1b" in page
    assert [c for c in page if not c.isprintable() and c != "\n"] == []
    assert "<b>y" not in page
    assert "[red]x" in page


def check_card(card: str) -> None:
    assert [c for c in card if not c.isprintable() and c != "\n"] == []
    lines = [line.lstrip("#") for line in card.splitlines() if not line.startswith("    ")]
    text = re.sub(r"(?<!\\)`[^`\n]*`", "", "\n".join(lines))  # code, in which there is no markup
    for markup in ("<b>", "*z", "`c", "[l]", "[i]", "# ", "://", "$m", "~~s", "[red]", ":smile:"):
        found = [text[: place.start()] for place in re.finditer(re.escape(markup), text)]
        assert all(before.endswith("\\") for before in found), markup
    assert "\\:smile:" in text


def test_a_model_card_of_hostile_texts() -> None:
    plain = manifest_of("onnx")
    hostile = _hostile(plain.model_dump(mode="json"))
    manifest = Manifest.model_validate(hostile)
    check_card(model_card(manifest))


FREE = ("name", "runtime", "hardware", "images", "source", "title", "torch", "expected_error")
"""Keys of a manifest whose texts may be any."""


def _hostile(content: Any, key: str = "") -> Any:
    if isinstance(content, dict):
        if key in ("device", "made_for"):
            return content | {"title": NAME}
        return {
            name: value if key == "blocks" else _hostile(value, name)
            for name, value in content.items()
        }
    if key == "class_names":
        return [f"{NAME}{index}" for index in range(len(content))]
    return NAME if key in FREE and isinstance(content, str) else content


def test_a_bundle_with_hostile_class_names(
    tmp_path: Path, scramble: Callable[..., nn.Module]
) -> None:
    pytest.importorskip("onnxruntime")
    names = tuple(f"{NAME}{index}" for index in range(10))
    manifest = manifest_of("onnx", name=NAME, hardware=NAME, class_names=names)
    bundle = write_bundle(tmp_path / "bundle", manifest, toy_network(scramble))
    photo = tmp_path / FILE_NAME.strip()
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(photo, "PNG")
    check_console(call("run", bundle, photo))
    assert NAME in call("run", bundle, photo, "--json").json()["results"][0]["labels"][0]["label"]
    done = subprocess.run(
        [sys.executable, bundle / "infer.py", photo],
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=True,
    )
    check_plain(done.stdout)
    assert len(done.stdout.splitlines()) == 6


def test_a_table_of_hostile_texts(capsys: pytest.CaptureFixture[str]) -> None:
    PlainConsole().print(NAME)
    check_plain(capsys.readouterr().out)


def test_an_inspection_of_hostile_layers() -> None:
    zero = dict.fromkeys(("mean", "std", "max_abs", "low", "high"), 0.0)
    distribution = Distribution(
        num_values=1, num_nonfinite=0, quantiles=(0.0,) * len(QUANTILES), counts=(1,), **zero
    )
    layer = LayerRecord(
        kind=NAME,
        activation=distribution,
        first_order_energy=1.0,
        second_order_energy=1.0,
        weights={NAME: distribution, "a": distribution},
    )
    alarm = Alarm(layer=NAME, part=NAME, kind=NAME, text=NAME)
    record = StepRecord(step=1, layers={NAME: layer}, alarms=(alarm,))
    terms = LayerTerms(
        layer=NAME,
        form=NAME,
        first_order_energy=1.0,
        second_order_energy=1.0,
        second_order_share=0.5,
    )
    pixels = np.zeros((4, 4, 3), np.uint8)
    check_page(inspection_page(NAME, pixels, {NAME: (None, None)}, (terms,), (record, record)))
