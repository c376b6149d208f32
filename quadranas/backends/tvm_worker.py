"""The boards of a device: one process per board, replaced when a board is lost."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

from quadranas.backends.tvm_reach import Place, count_boards, count_free
from quadranas.errors import DeviceLostError, QuadranasError

START_S = 120.0
"""Time to import TVM on a busy machine."""
CONNECT_S = 15.0
"""Time to open a session; a server that is in use does not answer."""
CLOSE_S = 3.0
START = """
import sys
sys.modules["torch"] = None  # TVM 0.27 imports it if it can, which takes most of the time
try:
    from quadranas.backends.tvm_board import serve
except Exception as error:
    from multiprocessing.connection import Connection
    Connection(int(sys.argv[1])).send(("lost", f"it did not start: {error!r}"))
else:
    serve(int(sys.argv[1]))
"""


ALONE = {"TVM_USE_RUNTIME_LIB": "1", "TVM_BIND_THREADS": "0"}
"""The process imports TVM without its compiler, in half the time, and TVM 0.27 does not move its
calling thread away from the cores it is pinned to."""


class BoardLostError(Exception):
    """The board of a job no longer responds."""


class Worker:
    """A process that holds a board.

    Raises:
        BoardLostError: the board cannot be opened.
    """

    def __init__(self, place: Place | None, threads: int) -> None:
        self.connection, other = Pipe()
        paths = os.pathsep.join(path or str(Path.cwd()) for path in sys.path)
        self.process = subprocess.Popen(
            [sys.executable, "-c", START, str(other.fileno())],
            env=os.environ | ALONE | {"PYTHONPATH": paths},
            pass_fds=[other.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # only the caller gets an interrupt, and closes this process
        )
        other.close()
        self._receive(START_S)
        self.exchange((place, threads), CONNECT_S)

    def call(self, method: str, arguments: Sequence[object], timeout_s: float) -> Any:
        """Call a method of the board.

        Raises:
            BoardLostError: the connection broke, or no answer came in time.
            QuadranasError: the board refused the job and still responds.
        """
        return self.exchange((method, arguments), timeout_s)

    def exchange(self, message: object, timeout_s: float) -> Any:
        """Send a message and wait for its answer."""
        try:
            self.connection.send(message)
        except OSError as error:
            self.kill()
            raise BoardLostError("the process that held it ended") from error
        return self._receive(timeout_s)

    def _receive(self, timeout_s: float) -> Any:
        try:
            if not self.connection.poll(timeout_s):
                raise BoardLostError(f"it did not respond for {timeout_s:.0f} s")
            outcome, value = self.connection.recv()
            if outcome == "lost":
                raise BoardLostError(value)
        except (EOFError, OSError) as error:
            self.kill()
            raise BoardLostError("the process that held it ended") from error
        except BaseException:  # interrupts too: otherwise the next call would receive this answer
            self.kill()
            raise
        if outcome == "failed":
            raise QuadranasError(f"TVM could not run a program: {value}")
        return value

    def kill(self) -> None:
        """Release the board at once, by breaking the connection."""
        self.process.kill()
        self.process.wait()
        self.connection.close()

    def close(self) -> None:
        """Release the board."""
        self.connection.close()  # ends the process
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(CLOSE_S)
        self.process.kill()
        self.process.wait()


class Boards:
    """All boards of a device. A job runs on an idle board; if that is lost, on another one.

    Args:
        place: `None` for this machine.
        threads: number of threads of a program on a board.
        hang_s: time without an answer, beyond the expected time of a job, after which a board is
            lost.
        greet: called for every opened board; raises if the board is not suitable.

    Raises:
        QuadranasError: no board can be opened.
    """

    def __init__(
        self, place: Place | None, threads: int, hang_s: float, greet: Callable[[Worker], None]
    ) -> None:
        self.place, self.threads, self.hang_s, self.greet = place, threads, hang_s, greet
        self.found = 1 if place is None else count_boards(place)
        self.usable = self.found
        self.held: set[Worker] = set()
        self.idle: list[Worker] = []
        self.opening = 0
        self.changed = threading.Condition()
        self.closed = False
        if place is not None:
            self._open_first(place)

    def _open_first(self, place: Place) -> None:
        try:
            self._give_back(self._borrow())
        except BoardLostError as error:
            self.close()
            raise QuadranasError(
                f"cannot open a board at {place}: {error}",
                "Check that a TVM RPC server runs there and that no other program uses it.",
            ) from error

    def call(
        self, method: str, *arguments: object, expected_s: float = 0.0, attempts: int | None = None
    ) -> Any:
        """Call a method of `Board` on some board.

        Args:
            attempts: number of boards to try. Default: one more than there are, since a lost board
                may come back.

        Raises:
            DeviceLostError: no board is left.
            QuadranasError: the program fails.
        """
        reason = ""
        for _ in range(attempts or self.found + 1):
            try:
                worker = self._borrow(reason)
            except BoardLostError as error:
                reason = str(error)
                continue
            try:
                if self.place is None:
                    worker.call("pin", [sorted(os.sched_getaffinity(0))], self.hang_s)
                value = worker.call(method, arguments, self.hang_s + expected_s)
            except BoardLostError as error:
                reason = str(error)
                self._discard(worker)
            except QuadranasError:
                self._give_back(worker)
                raise
            except BaseException:
                self._discard(worker)
                raise
            else:
                self._give_back(worker)
                return value
        raise self._all_lost(reason)

    def _all_lost(self, reason: str) -> DeviceLostError:
        if self.place is None:
            return DeviceLostError(f"the process that runs TVM's programs ended: {reason}")
        where = f"at {self.place}"
        if self.place.key is not None:
            where = f"under the key {self.place.key!r} of the tracker {where}"
        return DeviceLostError(
            f"no board {where} responds{f': {reason}' if reason else ''}",
            "Check that the board is on and its RPC server runs, then repeat the command.",
        )

    def _borrow(self, reason: str = "") -> Worker:
        """Take an idle board, open one, or wait for one.

        Args:
            reason: why the previous board was lost.
        """
        with self.changed:
            while not self.idle:
                if self.closed or self.usable == 0:
                    raise self._all_lost(reason)
                if len(self.held) + self.opening < self.usable:
                    self.opening += 1
                    break
                self.changed.wait()
            else:
                return self.idle.pop()
        worker = None
        try:
            opened = Worker(self.place, self.threads)
            try:
                self.greet(opened)
            except BaseException:
                opened.kill()
                raise
            worker = opened
        finally:
            with self.changed:
                self.opening -= 1
                if worker is None:
                    self.usable -= 1
                elif not self.closed:
                    self.held.add(worker)
                self.changed.notify_all()
        return worker

    def _give_back(self, worker: Worker) -> None:
        with self.changed:
            if worker in self.held:
                self.idle.append(worker)
            self.changed.notify()

    def _discard(self, worker: Worker) -> None:
        """Drop a lost board, and count the boards held and those that could be opened now."""
        worker.kill()
        free = count_free(self.place)
        with self.changed:
            self.held.discard(worker)
            left = len(self.held) + max(self.opening, free)
            self.usable = min(self.usable, left)
            self.changed.notify_all()

    def close(self) -> None:
        """Release all boards."""
        with self.changed:
            self.closed = True
            held, self.held = self.held, set()
            self.idle.clear()
            self.changed.notify_all()
        for worker in held:
            worker.close()
