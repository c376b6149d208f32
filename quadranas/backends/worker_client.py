"""A worker that is replaced when it is lost, and the networks that are loaded in it."""

import base64
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from quadranas.backends.worker_process import RefusedError, WorkerLostError, WorkerProcess
from quadranas.errors import DeviceLostError, QuadranasError
from quadranas.latency.processor import CallTimes

Ask = Callable[[WorkerProcess], dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Patience:
    """Time limits of requests to a worker, and the number of retries.

    Args:
        load_s: time limit for opening the runtime, and for loading a network.
        call_s: time limit for running or timing a network.
        retries: number of retries of a request, each with a new worker.
    """

    load_s: float = 120
    call_s: float = 60
    retries: int = 3


class WorkerHost(Protocol):
    """Where a worker runs, and what its errors mean."""

    def start(self) -> WorkerProcess:
        """Start a worker.

        Raises:
            OSError, WorkerLostError: it does not start now, but may do so later.
            QuadranasError: it will not start.
        """

    def place(self, path: Path) -> str:
        """Make a file readable for the worker that was started last; returns its path there.

        Raises:
            WorkerLostError: the connection is lost.
            QuadranasError: there is no room for it.
        """

    def pause_s(self, attempt: int, loss: Exception) -> float:
        """Seconds to wait before a new worker is started after a loss.

        Args:
            attempt: how many were started for the same request, without the first.
        """

    def is_loss(self, refusal: RefusedError) -> bool:
        """Whether a refusal means that the hardware no longer responds."""

    def explained(self, what: str, refusal: RefusedError) -> QuadranasError:
        """The error for a refusal; `what` is what was asked for."""

    def lost(self, what: str, times: int, loss: Exception) -> DeviceLostError:
        """The error for workers that were lost `times` times."""

    def observe(self, answer: Mapping[str, Any]) -> None:
        """Look at what an answer says about the hardware besides the times.

        Raises:
            ThrottledError: it was slowed down during the calls.
        """


class WorkerClient:
    """Sends requests to a worker, and starts another one when it is lost.

    Args:
        host: where it runs.
        runtime, settings: what every worker opens first.
        max_loaded: limit on the number of networks that are kept loaded.

    Attributes:
        max_bytes: limit on the size of their files.
        facts: the answer to `open`.
        worker: the running one.
        loaded: the handles of the loaded networks, the longest unused first.
    """

    def __init__(
        self,
        host: WorkerHost,
        runtime: str,
        settings: Mapping[str, Any],
        patience: Patience,
        max_loaded: int = sys.maxsize,
    ) -> None:
        self.host = host
        self.runtime, self.settings = runtime, settings
        self.patience = patience
        self.max_loaded = max_loaded
        self.max_bytes = sys.maxsize
        self.facts: dict[str, Any] = {}
        self.worker: WorkerProcess | None = None
        self.loaded: dict[WorkerProgram, int] = {}
        self.has_loaded = False

    def start(self) -> WorkerProcess:
        """The running worker; started if there is none.

        Raises:
            OSError, WorkerLostError, RefusedError: it cannot open the runtime.
            QuadranasError: see `WorkerHost`.
        """
        if self.worker is None:
            self.worker = self.host.start()
            opening = {"runtime": self.runtime, "settings": self.settings}
            try:
                self.facts = self.worker.ask("open", self.patience.load_s, **opening)
            except BaseException:
                self.stop()
                raise
        return self.worker

    def stop(self) -> None:
        """End the worker."""
        self.loaded.clear()
        if self.worker is not None:
            self.worker.stop()
            self.worker = None

    def ask_facts(self) -> dict[str, Any]:
        """Ask again for what `open` answered."""
        self.facts = self._insist("name its hardware", lambda worker: self._ask(worker, "facts"))
        return self.facts

    def load(self, program: "WorkerProgram", name: str) -> None:
        """Load a network, so that errors show now.

        Args:
            name: what it is, for messages.
        """
        self._insist(f"load {name}", lambda worker: {"handle": self._handle(worker, program)})
        self.has_loaded = True

    def call(self, program: "WorkerProgram", do: str, **arguments: Any) -> dict[str, Any]:
        """Send a request for a program, and repeat it if the worker is lost."""

        def ask(worker: WorkerProcess) -> dict[str, Any]:
            return self._ask(worker, do, handle=self._handle(worker, program), **arguments)

        shapes = ", ".join(str(tuple(shape)) for shape in program.shapes.values())
        return self._insist(f"{do} a network of input {shapes}", ask)

    def _insist(self, what: str, ask: Ask) -> dict[str, Any]:
        """Get an answer; if the worker is lost, ask again with a new one."""
        for attempt in range(self.patience.retries + 1):
            try:
                return ask(self.start())
            except RefusedError as refusal:
                if not (self.has_loaded and self.host.is_loss(refusal)):
                    raise self.host.explained(what, refusal) from refusal
                loss: Exception = WorkerLostError(f"it answered: {refusal}")
            except (OSError, WorkerLostError) as error:
                loss = error
            self.stop()
            if attempt < self.patience.retries:
                time.sleep(self.host.pause_s(attempt, loss))
        raise self.host.lost(what, self.patience.retries + 1, loss) from loss

    def _ask(self, worker: WorkerProcess, do: str, **arguments: Any) -> dict[str, Any]:
        timeout_s = self.patience.load_s if do == "load" else self.patience.call_s
        return worker.ask(do, timeout_s, **arguments)

    def _handle(self, worker: WorkerProcess, program: "WorkerProgram") -> int:
        """The program's handle in the running worker; unloads others if necessary."""
        handle = self.loaded.pop(program, None)
        if handle is None:
            while self.loaded and not self._has_room(program):
                oldest = next(iter(self.loaded))
                self._ask(worker, "unload", handle=self.loaded.pop(oldest))
            request = {"shapes": program.shapes, "batch": program.batch}
            answer = self._ask(worker, "load", path=self.host.place(program.path), **request)
            handle = int(answer["handle"])
            program.notes = tuple(answer.get("notes", ()))
        self.loaded[program] = handle
        return handle

    def _has_room(self, program: "WorkerProgram") -> bool:
        """Whether a program can be loaded beside the loaded ones."""
        size = program.size + sum(other.size for other in self.loaded)
        return len(self.loaded) < self.max_loaded and size <= self.max_bytes


class WorkerProgram:
    """A network in a worker; it is loaded again when needed.

    Args:
        path: its file, which stays here.
        shapes: the shapes of its inputs by name.
        batch: the size of a free batch dimension; `None` without one.

    Attributes:
        notes: how it runs otherwise than asked for.
    """

    notes: tuple[str, ...] = ()

    def __init__(
        self,
        client: WorkerClient,
        path: Path,
        shapes: Mapping[str, Sequence[int]],
        batch: int | None = None,
    ) -> None:
        self.client = client
        self.path = path
        self.shapes = {name: list(shape) for name, shape in shapes.items()}
        self.batch = batch
        self.size = sum(file.stat().st_size for file in path.parent.glob(f"{path.stem}.*"))

    def run(self, images: Tensor) -> Tensor:
        """See `Program`."""
        (wanted,) = self.shapes.values()
        shape = list(images.shape)
        if shape != wanted:
            raise QuadranasError(
                f"the network was compiled for {tuple(wanted)}, got {tuple(shape)}"
            )
        content = images.detach().cpu().contiguous().numpy().astype("<f4").tobytes()
        given = base64.b64encode(content).decode()
        answer = self.client.call(self, "run", images=given, shape=shape)
        output = np.frombuffer(base64.b64decode(answer["output"]), "<f4").astype(np.float32)
        return torch.from_numpy(output.reshape(answer["shape"]))

    def time_ms(self, repeats: int) -> list[float]:
        """See `Program`."""
        answer = self.client.call(self, "time", repeats=repeats)
        times = _times(answer.get("ms"), repeats)
        self.client.host.observe(answer)
        lost = answer.get("lost_ms")
        return times if lost is None else CallTimes(times, lost)


def _times(answered: Any, repeats: int) -> list[float]:
    """The times of an answer.

    Raises:
        QuadranasError: they are no times, or others than asked for.
    """
    is_list = isinstance(answered, list) and len(answered) == repeats
    if is_list and all(isinstance(ms, float) and 0 < ms < math.inf for ms in answered):
        return list(answered)
    raise QuadranasError(
        f"the worker answered {str(answered)[:80]!r}, which are not {repeats} times in ms"
    )
