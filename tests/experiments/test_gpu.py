"""What waits for a GPU runs, in its smallest form, on a processor."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.command_line import CHECKOUT


@pytest.mark.slow
def test_every_part_runs_and_keeps_its_result(tmp_path: Path) -> None:
    command = [sys.executable, str(CHECKOUT / "experiments/gpu/run.py"), "--smoke", "--output"]
    environment = os.environ | {"PYTHONPATH": str(CHECKOUT)}
    done = subprocess.run(
        [*command, str(tmp_path)], env=environment, capture_output=True, text=True, check=False
    )
    logs = {path.name: path.read_text("utf-8")[-2000:] for path in tmp_path.glob("*.log")}
    assert done.returncode == 0, (done.stderr, logs)
    parts = json.loads((tmp_path / "summary.json").read_text("utf-8"))["parts"]
    assert {name: part["ended"] for name, part in parts.items()} == {
        "steps": "done",
        "networks": "done",
        "kernels": "left out",
        "memory": "done",
        "table": "done",
        "search": "done",
    }
    for name in ("steps", "networks"):
        assert json.loads((tmp_path / f"{name}.json").read_text("utf-8"))["rows"]
    assert (tmp_path / "search" / "result.json").is_file()
