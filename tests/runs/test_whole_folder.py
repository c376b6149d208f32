"""Commands that write a folder whole, killed: it is not there, and the command is repeated."""

import signal
from pathlib import Path

import pytest

from tests.command_line import Server, call, contents, listing
from tests.killing import Moment, snapshots

ADAPT_MOMENTS = {
    "before the architecture": Moment(Path, "replace", "*architecture.json"),
    "before the weights": Moment(Path, "replace", "*subnet.safetensors"),
    "before the configuration": Moment(Path, "replace", "*config.yaml"),
    "before the preprocessing": Moment(Path, "replace", "*preprocessing.json"),
    "before its place": Moment(Path, "replace", "*new"),
}
EXPORT_MOMENTS = {
    "before the manifest": Moment(Path, "replace", "*manifest.json"),
    "after the manifest": Moment(Path, "replace", "*manifest.json", 1, "after"),
    "before its place": Moment(Path, "replace", "*new"),
}

SLOW = pytest.mark.slow
"""An export takes seconds."""

DIE = """
import os
from pathlib import Path
real = Path.replace
def replace(self, target):
    if Path(target).name == {name!r}:
        os.kill(os.getpid(), 9)
    return real(self, target)
Path.replace = replace
"""


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("command", "moments", "same"),
    [
        ("adapt", ADAPT_MOMENTS, ("architecture.json", "config.yaml", "subnet.safetensors")),
        pytest.param("export", EXPORT_MOMENTS, ("model.onnx", "infer.py"), marks=SLOW),
    ],
)
def test_a_killed_command_is_simply_repeated(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    finished_run: Path,
    command: str,
    moments: dict[str, Moment],
    same: tuple[str, ...],
) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir("work")
    arguments = (command, finished_run, "--output", "new")
    snapshots(moments, tmp_path / "moments", *arguments)
    expected, names = contents(Path("new"), same), listing(Path())
    for moment in moments:
        monkeypatch.chdir(tmp_path / "moments" / moment)
        assert not Path("new").exists()
        outcome = call(*arguments)
        assert outcome.code == 0, outcome.err
        assert contents(Path("new"), same) == expected
        assert listing(Path()) == names


@pytest.mark.parametrize(
    ("command", "name"), [("adapt", "new"), pytest.param("export", "manifest.json", marks=SLOW)]
)
def test_a_process_that_is_killed(
    tmp_path: Path, server: Server, finished_run: Path, command: str, name: str
) -> None:
    arguments = (command, finished_run, "--output", "new")
    outcome = server.run(tmp_path, *arguments, prelude=DIE.format(name=name))
    assert outcome.code == -signal.SIGKILL
    assert not Path("new").exists()
    assert Path(".new.lock").read_text("utf-8").startswith("process ")
    assert call(*arguments).code == 0
    assert {path.name for path in Path().iterdir()} == {"new", "stdout", "stderr"}
