"""The process that holds one board: it loads, runs and times programs there.

`tvm_worker.py` starts it, and can kill it: TVM's RPC calls wait forever for a silent board, and a
session stays open until every handle to it is gone (TVM 0.27).
"""

import gc
import os
import time
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import rpc
from tvm.runtime.vm import VirtualMachine  # without `relax`, which needs the compiler

from quadranas.backends.tvm_reach import Place
from quadranas.backends.tvm_reader import PATH_SIZE
from quadranas.latency.processor import open_watch, own_threads

KEPT_BYTES = 512 * 2**20
"""Maximum size of the programs that a board keeps loaded, so that each is loaded once."""
BIG_CORES = 1
"""TVM's `kBig`: threads go to the fast cores first."""


class Board:
    """A session with a board, or this machine.

    Args:
        place: `None` for this machine.
        threads: number of threads of a program.
    """

    def __init__(self, place: Place | None, threads: int) -> None:
        self.session = _connect(place) if place is not None else None
        self.cpu = self.session.cpu() if self.session is not None else tvm.cpu()
        self.programs: OrderedDict[str, Any] = OrderedDict()
        self.sizes: dict[str, int] = {}
        self.arguments: list[Any] = []
        self.filled: tuple[tuple[str, Sequence[int]], ...] = ()
        self._function("runtime.config_threadpool")(BIG_CORES, threads)

    def run(self, library: str, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """A program's output."""
        machine = self._machine(library)
        machine.set_input("main", self._tensor(images))
        machine.invoke_stateful("main")
        output: NDArray[np.float32] = machine.get_outputs("main").numpy()
        return output

    def time_s(
        self, library: str, shape: Sequence[int], repeats: int
    ) -> tuple[list[float], float | None]:
        """Time calls, in seconds; `time_evaluator` discards one before them.

        Returns: the times, and how long all calls together waited for a processor, in
            milliseconds; `None` on another machine, where that is unknown.
        """
        machine = self._machine(library)
        images = np.random.default_rng(0).standard_normal(shape, np.float32)
        machine.set_input("main", self._tensor(images))
        timer = machine.time_evaluator("invoke_stateful", self.cpu, number=1, repeat=repeats)
        with open_watch(own_threads()) as watch:
            watch.start()
            start = time.perf_counter()
            seconds = [float(each) for each in timer("main").results]
            lost_ms = watch.lost_ms(1e3 * (time.perf_counter() - start))
        return seconds, lost_ms if self.session is None else None

    def try_kernel(
        self, library: str, tensors: Sequence[tuple[str, Sequence[int]]], min_repeat_ms: int
    ) -> list[float]:
        """Time one schedule of a kernel, in seconds, for tuning.

        Args:
            tensors: type and shape of every argument.
            min_repeat_ms: the schedule is repeated until this time has passed.
        """
        if tuple(tensors) != self.filled:  # the schedules of one kernel share their arguments
            random = np.random.default_rng(0)
            self.arguments = [
                self._tensor(random.uniform(0.5, 1.5, shape).astype(dtype))
                for dtype, shape in tensors
            ]
            self.filled = tuple(tensors)
        kernel = self._load(library)
        timer = kernel.time_evaluator(
            "main", self.cpu, number=1, repeat=1, min_repeat_ms=min_repeat_ms
        )
        try:
            return [float(seconds) for seconds in timer(*self.arguments).results]
        finally:
            del kernel, timer
            self._remove(library)

    def read(self, reader: str, paths: Sequence[str]) -> list[bytes]:
        """Read the beginnings of files on the board; empty for unreadable files."""
        contents = []
        kernel = self._load(reader)
        for path in paths:
            name = np.zeros(PATH_SIZE, np.uint8)
            name[: len(path)] = list(path.encode())
            content = self._tensor(np.zeros(2**16, np.uint8))
            kernel["read_file"](self._tensor(name), content)
            contents.append(bytes(content.numpy()).rstrip(b"\0"))
        return contents

    def pin(self, cores: Sequence[int]) -> None:
        """Pin the threads to the cores of the calling thread, if the board is this machine."""
        if self.session is None and set(cores) != os.sched_getaffinity(0):
            for thread in Path("/proc/self/task").iterdir():  # TVM's own threads, too
                os.sched_setaffinity(int(thread.name), cores)

    def answers(self) -> bool:
        """Whether the connection still works."""
        if self.session is None:
            return True
        try:
            self.session.get_function("tvm.rpc.server.workpath")("x")
        except Exception:  # TVM raises various kinds for a broken connection
            return False
        return True

    def _function(self, name: str) -> Any:
        if self.session is None:
            return tvm.get_global_func(name)
        return self.session.get_function(name)

    def _tensor(self, array: NDArray[Any]) -> Any:
        return tvm.runtime.tensor(array, self.cpu)

    def _load(self, library: str) -> Any:
        if self.session is None:
            return tvm.runtime.load_module(library)
        name = Path(library).name
        self.session.upload(library, name)
        return self.session.load_module(name)

    def _machine(self, library: str) -> Any:
        """The virtual machine of a program; the least recently used ones are unloaded."""
        if library not in self.programs:
            self.sizes[library] = Path(library).stat().st_size
            self.programs[library] = VirtualMachine(self._load(library), self.cpu)
        self.programs.move_to_end(library)
        while sum(self.sizes.values()) > KEPT_BYTES and len(self.programs) > 1:
            oldest, machine = self.programs.popitem(last=False)
            del machine, self.sizes[oldest]
            self._remove(oldest)
        return self.programs[library]

    def _remove(self, library: str) -> None:
        gc.collect()
        if self.session is not None:
            self.session.remove(Path(library).name)


def _connect(place: Place) -> Any:
    if place.key is None:
        return rpc.connect(place.host, place.port)
    tracker = rpc.connect_tracker(place.host, place.port)
    return tracker.request(place.key, max_retry=1)


def serve(handle: int) -> None:
    """Serve requests from a connection until it closes.

    The first message sent says that the process is ready. The first message received is the place
    and the threads of the board; every other one is a method's name and its arguments. An answer
    is `("done", value)`, `("failed", why)`, or `("lost", why)` if the board no longer responds.
    """
    with Connection(handle) as connection:
        connection.send(("done", None))
        place, threads = connection.recv()
        try:
            board = Board(place, threads)
        except Exception as error:  # every error is passed on
            connection.send(("lost", _words(error)))
            return
        connection.send(("done", None))
        with suppress(EOFError):
            while True:
                method, arguments = connection.recv()
                connection.send(_answer(board, method, arguments))


def _answer(board: Board, method: str, arguments: Sequence[Any]) -> tuple[str, Any]:
    try:
        return "done", getattr(board, method)(*arguments)
    except Exception as error:  # every error is passed on
        return "failed" if board.answers() else "lost", _words(error)


def _words(error: Exception) -> str:
    """An error's message without TVM's stack trace."""
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1].strip() if lines else ''}"[:500]
