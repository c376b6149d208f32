"""The documents: what they show can be loaded, and the commands in them exist."""

import re
from pathlib import Path

import pytest

from quadranas.cli.app import app
from quadranas.latency.device import load_device
from tests.command_line import CHECKOUT

DOCUMENTS = [CHECKOUT / "README.md", *sorted((CHECKOUT / "docs").glob("*.md"))]
DEVICES = [
    found
    for page in ("devices.md", "any-device.md")
    for found in re.findall(
        r"```yaml\n# (\S+)\n(.*?)```",
        (CHECKOUT / "docs" / page).read_text(encoding="utf-8"),
        flags=re.DOTALL,
    )
]


@pytest.mark.parametrize(("name", "text"), DEVICES)
def test_the_devices_shown_are_accepted(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    device = load_device(str(tmp_path / name))
    assert name == f"{device.name}.yaml"
    assert device.runtime is not None


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_the_commands_shown_exist(path: Path) -> None:
    known = {command.name or command.callback.__name__ for command in app.registered_commands}  # type: ignore[union-attr]
    shown = re.findall(r"^    quadranas ([a-z-]+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    assert shown
    assert set(shown) <= known


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_the_python_shown_runs(
    path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its blocks in order, in one namespace and an empty folder."""
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, path.name, "exec"), names)
