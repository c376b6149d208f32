"""`torchrun` itself: it starts the processes, and starts them again when one has died."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.command_line import CHECKOUT, SMALL, contents, until

LONGER = SMALL.replace("finetune_epochs: 1", "finetune_epochs: 40") + "checkpoint_seconds: 0\n"


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds the processes in /proc")
def test_torchrun_restarts_a_search_that_ends_with_the_same_bits(
    tmp_path: Path, pictures: Path
) -> None:
    (tmp_path / "c.yaml").write_text(LONGER.format(pictures=pictures))
    assert start(tmp_path, "whole").wait() == 0
    killed = start(tmp_path, "killed", "--max-restarts=1")
    until(lambda: (tmp_path / "killed" / "architecture.json").is_file())
    workers = workers_of(killed.pid)
    assert len(workers) == 2
    os.kill(workers[1], signal.SIGKILL)
    assert killed.wait() == 0, (tmp_path / "killed.err").read_text("utf-8")
    results = [json.loads((tmp_path / name / "result.json").read_text("utf-8")) for name in RUNS]
    assert [result["processes"] for result in results] == [2, 2]
    assert contents(tmp_path / "whole", FILES) == contents(tmp_path / "killed", FILES)


RUNS = ("whole", "killed")
FILES = ("architecture.json", "gates.json", "metrics.jsonl", "subnet.safetensors")


def workers_of(torchrun: int) -> list[int]:
    """The processes that train, in the order of their start."""
    children = Path(f"/proc/{torchrun}/task/{torchrun}/children").read_text("utf-8").split()
    return [
        int(pid) for pid in children if b"quadranas" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]


def start(folder: Path, name: str, *options: str) -> "subprocess.Popen[Any]":
    """A search by two processes, its output beside the run folder."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", *options]
    search = ["search", "--space", "toy", "--device", "vpu", "--budget", "1ms"]
    begun = ["--config", "c.yaml", "--output", name, "--resume"]
    with (folder / f"{name}.out").open("w") as out, (folder / f"{name}.err").open("w") as err:
        return subprocess.Popen(
            [*torchrun, "-m", "quadranas", *search, *begun],
            cwd=folder,
            stdout=out,
            stderr=err,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(CHECKOUT)},
        )
