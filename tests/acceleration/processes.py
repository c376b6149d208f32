"""Processes that train together, started as `torchrun` does, but quickly."""

import socket
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from tests.command_line import Outcome, Process, Server

NOTHING: Mapping[int, str] = MappingProxyType({})


def start_together(
    server: Server,
    folder: Path,
    count: int,
    *argv: str | Path,
    preludes: Mapping[int, str] = NOTHING,
    at: Path | None = None,
) -> list[Process]:
    """Start a command in several processes, each with its output in a folder of its own.

    Args:
        folder: where `process-RANK/` take the output.
        preludes: Python that a process executes before the command, by its rank.
        at: the working folder; by default `folder`.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for rank in range(count):
        own = folder / f"process-{rank}"
        own.mkdir(parents=True)
        environment = {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": count,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        prelude = "\n".join(
            [
                "import os",
                *(f"os.environ[{key!r}] = '{value}'" for key, value in environment.items()),
                f"os.chdir({str(at or folder)!r})",
                preludes.get(rank, ""),
            ]
        )
        started.append(server.start(own, *argv, prelude=prelude))
    return started


def run_together(
    server: Server,
    folder: Path,
    count: int,
    *argv: str | Path,
    preludes: Mapping[int, str] = NOTHING,
    at: Path | None = None,
) -> list[Outcome]:
    """The same, to their ends."""
    started = start_together(server, folder, count, *argv, preludes=preludes, at=at)
    return [process.wait() for process in started]
