"""TVM RPC servers and trackers as processes of this machine, to be killed at work."""

import atexit
import functools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from quadranas.backends.tvm_reach import Place, count_boards
from quadranas.errors import QuadranasError

START_S = 60.0
SMALL = {"TVM_USE_RUNTIME_LIB": "1", "TVM_BIND_THREADS": "0", "TVM_NUM_THREADS": "1"}
"""A quick start, without the compiler, and no thread pinned to a core that is somebody else's."""


class ForkServer:
    """The process that starts them."""

    def __init__(self, python: str) -> None:
        self.asking = threading.Lock()
        self.process = subprocess.Popen(
            [python, str(Path(__file__).with_name("rpc_fork_server.py"))],
            env=os.environ | SMALL,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        atexit.register(self.process.communicate)

    def ask(self, job: dict[str, object]) -> int:
        """One request, one number."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with self.asking:
            self.process.stdin.write(json.dumps(job) + "\n")
            self.process.stdin.flush()
            return int(self.process.stdout.readline())


fork_server = functools.cache(ForkServer)


class Running:
    """A process with its children, listening on a port."""

    def __init__(self, python: str, start: str, **options: object) -> None:
        self.port = free_port()
        self.parent = fork_server(python)
        where = {"host": "127.0.0.1", "port": self.port, "port_end": self.port + 1}
        self.pid = self.parent.ask({"start": start, **where, **options})
        self.ended = False

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def kill(self) -> None:
        if not self.ended:
            self.signal(signal.SIGKILL)
            self.parent.ask({"wait": self.pid})
            self.ended = True


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
        return port


def wait_for_boards(place: Place, count: int) -> None:
    deadline = time.monotonic() + START_S
    found = 0
    while found < count:
        assert time.monotonic() < deadline, f"{found} of {count} boards at {place}"
        time.sleep(0.05)
        with suppress(QuadranasError):
            found = count_boards(place)


@contextmanager
def tracker() -> Iterator[Running]:
    running = Running(sys.executable, "tracker")
    try:
        deadline = time.monotonic() + START_S
        while True:
            with suppress(OSError):
                socket.create_connection(("127.0.0.1", running.port), 1).close()
                break
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield running
    finally:
        running.kill()


@contextmanager
def server(python: str = sys.executable) -> Iterator[Running]:
    running = Running(python, "server")
    try:
        wait_for_boards(Place("127.0.0.1", running.port), 1)
        yield running
    finally:
        running.kill()


@contextmanager
def boards(count: int, key: str, python: str = sys.executable) -> Iterator[list[Running]]:
    """A tracker, followed by so many servers that registered with it under a key."""
    with ExitStack() as stack:
        lender = stack.enter_context(tracker())
        servers = []
        for _ in range(count):
            lent_by = ("127.0.0.1", lender.port)
            servers.append(Running(python, "server", tracker=lent_by, key=key))
            stack.callback(servers[-1].kill)
        wait_for_boards(Place("127.0.0.1", lender.port, key), count)
        yield [lender, *servers]
