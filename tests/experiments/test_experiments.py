"""Every experiment runs, at a small size."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.command_line import CHECKOUT

EXPERIMENTS = sorted(CHECKOUT.glob("experiments/*/*.py"))
RUNNABLE = [
    path
    for path in EXPERIMENTS
    if "--smoke" in path.read_text(encoding="utf-8") and path.parent.name != "gpu"
]
"""The parts of experiments/gpu are run by test_gpu.py."""

CIFAR10 = os.environ.get("QUADRANAS_CIFAR10")


@pytest.mark.slow
@pytest.mark.parametrize("path", RUNNABLE, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_an_experiment_runs(path: Path, tmp_path: Path) -> None:
    before = {file: file.read_bytes() for file in path.parent.iterdir() if file.is_file()}
    arguments = ["--smoke"]
    if 'add_argument("archive"' in path.read_text(encoding="utf-8"):
        if CIFAR10 is None:
            pytest.skip("QUADRANAS_CIFAR10 names no folder with CIFAR-10")
        arguments.append(str(Path(CIFAR10) / "cifar10-train.zip"))
    done = subprocess.run(
        [sys.executable, str(path), *arguments],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(CHECKOUT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert {f: f.read_bytes() for f in path.parent.iterdir() if f.is_file()} == before


def test_every_experiment_says_what_it_claims_and_what_came_out() -> None:
    for folder in {path.parent for path in EXPERIMENTS}:
        text = (folder / "README.md").read_text(encoding="utf-8")
        for part in ("**Claim.**", "**Command", "**Obtained"):
            assert part in text, folder.name
        is_pending = "**Obtained.** Nothing yet" in text or "in progress" in text
        assert is_pending or (folder / "results.json").is_file(), folder.name
