"""The documents: what they show can be loaded, and the commands in them exist."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from quadranas.cli.app import app
from quadranas.latency.device import load_device
from quadranas.space.space_file import load_space
from tests.command_line import CHECKOUT

DOCS = CHECKOUT / "docs"
DOCUMENTS = [
    CHECKOUT / "README.md",
    *sorted(p for p in DOCS.rglob("*.md") if p.parent.name != "reference"),
]
TEXTS = {path: path.read_text(encoding="utf-8") for path in DOCUMENTS}
BLOCKS = {
    path: re.findall(r"^```(python|sh)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    for path, text in TEXTS.items()
}
"""The blocks of a page that are run: Python, and commands in fences marked `sh`."""

FILES = [
    file
    for text in TEXTS.values()
    for file in re.findall(r"```yaml\n# (\S+\.yaml)\n(.*?)```", text, re.DOTALL)
]
DEVICES = [(name, text) for name, text in FILES if "\nruntime: " in text]
SPACES = [(name, text) for name, text in FILES if "\nwidths: " in text]


def name_of(path: Path) -> str:
    return str(path.relative_to(CHECKOUT))


@pytest.mark.parametrize(("name", "text"), DEVICES)
def test_the_devices_shown_are_accepted(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    device = load_device(str(tmp_path / name))
    assert name == f"{device.name}.yaml"
    assert device.runtime is not None


@pytest.mark.parametrize(("name", "text"), SPACES)
def test_the_spaces_shown_are_accepted(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert name == f"{load_space(str(tmp_path / name)).name}.yaml"


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_the_commands_shown_exist(path: Path) -> None:
    known = {command.name or command.callback.__name__ for command in app.registered_commands}  # type: ignore[union-attr]
    shown = re.findall(r"^    quadranas ([a-z-]+)", TEXTS[path], re.MULTILINE)
    for _, block in BLOCKS[path]:
        shown += re.findall(r"^quadranas ([a-z-]+)", block, re.MULTILINE)
    assert set(shown) <= known


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(p, marks=pytest.mark.slow if p.parent.name == "tutorials" else ())
        for p in TEXTS
        if BLOCKS[p]
    ],
    ids=name_of,
)
def test_the_code_shown_runs(path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its blocks in order, in an empty folder; those in Python in one namespace."""
    monkeypatch.chdir(tmp_path)
    places = [str(Path(sys.executable).parent), os.environ["PATH"]]
    monkeypatch.setenv("PATH", os.pathsep.join(places))
    monkeypatch.setenv("PYTHONPATH", str(CHECKOUT))
    names: dict[str, object] = {}
    for kind, block in BLOCKS[path]:
        if kind == "python":
            exec(compile(block, path.name, "exec"), names)
        else:
            subprocess.run(["bash", "-euo", "pipefail", "-c", block], check=True)


@pytest.mark.parametrize("path", sorted(DOCS.rglob("*.ipynb")), ids=name_of)
def test_a_notebook_is_that_of_its_page(path: Path) -> None:
    parts = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        is_code = cell["cell_type"] == "code"
        parts.append(f"```python\n{source}\n```" if is_code else source)
    page = "\n\n".join(parts) + "\n"
    assert page == TEXTS[path.with_suffix(".md")], "`make docs` writes the notebook anew"
