"""The command line as tests use it: called in this process, or run in one that can be killed."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias
from unittest.mock import patch

from quadranas.cli.app import main

CHECKOUT = Path(__file__).parents[1]

SMALL = """
data: {pictures}
batch_size: 4
candidates: 3
schedule: {{warmup_epochs: 1, search_epochs: 1, finetune_epochs: 1}}
"""
"""A search of eight steps: 2 of warm-up, 2 of search, 4 of fine-tuning. It judges 3 networks."""

RESULTS = (
    "architecture.json",
    "conditions.json",
    "config.yaml",
    "gates.json",
    "inherited.safetensors",
    "metrics.jsonl",
    "pareto.json",
    "preprocessing.json",
    "result.json",
    "space.yaml",
    "subnet.safetensors",
    "supernet.safetensors",
    "table.json",
)
"""What a search leaves behind, apart from checkpoints, TensorBoard's events and the report."""


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    code: int
    out: str
    err: str

    def json(self) -> dict[str, Any]:
        """The one JSON object on stdout."""
        content = json.loads(self.out)
        assert isinstance(content, dict)
        return content


Call: TypeAlias = Callable[..., Outcome]


class KilledError(BaseException):
    """Ends a command as a kill would: `tests/killing.py` raises it, no code expects it."""


def call(*argv: str | Path) -> Outcome:
    """Run a command in this process."""
    out, err = StringIO(), StringIO()
    code: Any = 0
    arguments = ["quadranas", *map(str, argv)]
    with patch.object(sys, "argv", arguments), patch.dict(os.environ):
        try:
            with redirect_stdout(out), redirect_stderr(err):
                main()
        except SystemExit as error:
            code = error.code
        except KilledError:
            code = -signal.SIGKILL
    return Outcome(code or 0, out.getvalue(), err.getvalue())


@dataclass(frozen=True)
class Process:
    """A command that runs in a process of its own; it answers to signals."""

    server: "Server"
    pid: int
    folder: Path

    def kill(self, signal: int) -> None:
        """Send a signal."""
        os.kill(self.pid, signal)

    def wait(self) -> Outcome:
        """Wait for the end; the code is negative where a signal was the cause."""
        code = self.server.ask({"wait": self.pid})
        texts = [(self.folder / name).read_text("utf-8") for name in ("stdout", "stderr")]
        return Outcome(code, *texts)


class Server:
    """Starts commands in processes of their own, quickly."""

    def __init__(self) -> None:
        path = os.pathsep.join([str(CHECKOUT), os.environ.get("PYTHONPATH", "")])
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("fork_server.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C in the terminal is for pytest
            env=os.environ | {"OMP_WAIT_POLICY": "PASSIVE", "PYTHONPATH": path},
        )

    def ask(self, job: dict[str, Any]) -> int:
        """One request, one number."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def start(
        self,
        folder: Path,
        *argv: str | Path,
        prelude: str = "",
        ends: Mapping[str, str] = MappingProxyType({}),
    ) -> Process:
        """Start a command in a folder, which also takes its output.

        Args:
            prelude: Python that the process executes before the command.
            ends: per standard stream `closed`, `full`, or `pipe` for one that nobody reads.
        """
        arguments = list(map(str, argv))
        job = {"argv": arguments, "folder": str(folder), "prelude": prelude, "ends": dict(ends)}
        return Process(self, self.ask(job), folder)

    def run(self, folder: Path, *argv: str | Path, **options: Any) -> Outcome:
        """Start a command and wait for its end; options as for `start`."""
        return self.start(folder, *argv, **options).wait()

    def close(self) -> None:
        """End the server."""
        self.process.communicate()


def contents(folder: Path, names: Iterable[str] = RESULTS) -> dict[str, bytes]:
    """The bytes of some files of a folder, those that are there."""
    return {name: (folder / name).read_bytes() for name in names if (folder / name).is_file()}


def listing(folder: Path) -> list[str]:
    """Everything below a folder."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    """Wait for something that another process does."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.001)
