"""Addresses of boards: a TVM RPC server, or a tracker of several boards. Does not import TVM."""

import json
import socket
import struct
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

from quadranas.errors import QuadranasError
from quadranas.latency.device import Reach

TRACKER_MAGIC = 0x2F271
SUMMARY = 6
SUCCESS = 0
CONNECT_S = 4.0
SETTLE_S = 3.0
"""Time until a board is free again after its last use."""


@dataclass(frozen=True)
class Place:
    """Address of a server; with a key, of a tracker with boards under this key."""

    host: str
    port: int
    key: str | None = None

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


def find_place(reach: Reach) -> Place | None:
    """The address of a device; `None` for this machine."""
    address = reach.rpc or reach.rpc_tracker
    if address is None:
        return None
    host, _, port = address.rpartition(":")
    return Place(host, int(port), reach.rpc_key)


def count_boards(place: Place) -> int:
    """Number of boards that can be opened.

    Raises:
        QuadranasError: there are none; says how to start one.
    """
    if place.key is None:
        _check_server(place)
        return 1
    deadline = time.monotonic() + SETTLE_S
    while True:
        registered, free = _ask_tracker(place)
        mine = registered[place.key]
        if mine == 0 or free == mine or (time.monotonic() > deadline and free):
            break
        if time.monotonic() > deadline:
            raise QuadranasError(
                f"all {mine} boards under the key {place.key!r} at {place} are in use",
                "Wait until they are free, or end the programs that hold them.",
            )
        time.sleep(0.1)
    if mine == 0:
        known = ", ".join(f"{count} x {key!r}" for key, count in sorted(registered.items()))
        raise QuadranasError(
            f"the tracker at {place} has no board under the key {place.key!r}; "
            f"it has {known or 'no boards'}",
            "Register one with, on the board: python -m tvm.exec.rpc_server "
            f"--tracker {place} --key {place.key}",
        )
    return free


def count_free(place: Place | None) -> int:
    """Number of boards that can be opened now, after one was lost."""
    if place is None:
        return 1
    try:
        if place.key is not None:
            return _ask_tracker(place)[1]
        _check_server(place)
    except QuadranasError:
        return 0
    return 1


def _check_server(place: Place) -> None:
    try:
        socket.create_connection((place.host, place.port), CONNECT_S).close()
    except OSError as error:
        raise QuadranasError(
            f"no TVM RPC server responds at {place}: {error.strerror or error}",
            "Start it on the board with: "
            f"python -m tvm.exec.rpc_server --host 0.0.0.0 --port {place.port}",
        ) from error


def _ask_tracker(place: Place) -> tuple[Counter[str], int]:
    """Number of registered boards by key, and of free boards under the place's key."""
    try:
        with socket.create_connection((place.host, place.port), CONNECT_S) as connection:
            connection.settimeout(CONNECT_S)
            connection.sendall(struct.pack("<i", TRACKER_MAGIC))
            if struct.unpack("<i", _receive(connection, 4))[0] != TRACKER_MAGIC:
                raise QuadranasError(f"the server at {place} is not a TVM RPC tracker")
            request = json.dumps([SUMMARY]).encode()
            connection.sendall(struct.pack("<i", len(request)) + request)
            size = struct.unpack("<i", _receive(connection, 4))[0]
            code, summary = json.loads(_receive(connection, size))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise QuadranasError(
            f"no TVM RPC tracker responds at {place}: {reason}",
            "Start it with: python -m tvm.exec.rpc_tracker --host 0.0.0.0 "
            f"--port {place.port} --port-end {place.port + 1}",
        ) from error
    assert code == SUCCESS
    return _count(summary, place.key)


def _count(summary: dict[str, Any], key: str | None) -> tuple[Counter[str], int]:
    names = [server["key"].removeprefix("server:") for server in summary["server_info"]]
    queue = summary["queue_info"].get(key, {"free": 0})
    return Counter(names), int(queue["free"])


def _receive(connection: socket.socket, size: int) -> bytes:
    received = b""
    while len(received) < size:
        part = connection.recv(size - len(received))
        if not part:
            raise ConnectionError("it closed the connection")
        received += part
    return received
