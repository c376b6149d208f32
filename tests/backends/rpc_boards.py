"""TVM RPC servers and trackers as processes of this machine, to be killed at work."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress

from quadranas.backends.tvm_reach import Place, count_boards
from quadranas.errors import QuadranasError

START_S = 60.0
SMALL = {"TVM_USE_RUNTIME_LIB": "1", "TVM_BIND_THREADS": "0", "TVM_NUM_THREADS": "1"}
"""A quick start, without the compiler, and no thread pinned to a core that is somebody else's."""


class Running:
    """A process with its children, listening on a port."""

    def __init__(self, command: Sequence[str], port: int) -> None:
        self.port = port
        self.process = subprocess.Popen(
            command,
            env=os.environ | SMALL,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        self.process.wait()


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
        time.sleep(0.2)
        with suppress(QuadranasError):
            found = count_boards(place)


@contextmanager
def tracker() -> Iterator[Running]:
    port = free_port()
    options = ["--host", "127.0.0.1", "--port", str(port), "--port-end", str(port + 1)]
    running = Running([sys.executable, "-m", "tvm.exec.rpc_tracker", *options], port)
    try:
        deadline = time.monotonic() + START_S
        while True:
            with suppress(OSError):
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            assert time.monotonic() < deadline
            time.sleep(0.1)
        yield running
    finally:
        running.kill()


def _server(python: str, *options: str) -> Running:
    port = free_port()
    where = ["--host", "127.0.0.1", "--port", str(port), "--port-end", str(port + 1)]
    return Running([python, "-m", "tvm.exec.rpc_server", *where, *options], port)


@contextmanager
def server(python: str = sys.executable) -> Iterator[Running]:
    running = _server(python)
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
            servers.append(_server(python, "--tracker", lender.address, "--key", key))
            stack.callback(servers[-1].kill)
        wait_for_boards(Place("127.0.0.1", lender.port, key), count)
        yield [lender, *servers]
