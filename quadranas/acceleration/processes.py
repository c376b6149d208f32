"""The processes that train one network together, started by `torchrun`.

All processes compute on a part of the same batch and hold the same weights. The main process, of
rank 0, alone decides and writes; the others follow.
"""

import hashlib
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import Tensor
from torch import distributed as dist
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from quadranas.errors import ProcessesEndedError, QuadranasError, RunInterruptedError
from quadranas.validation import environment_number

PATIENCE = timedelta(minutes=30)
"""How long a process waits for the others. One that has died is noticed at once, since its
connections close; this limit is for one that hangs."""

FAILED = "quadranas/failed"
"""The number of processes that have failed, in the store."""

SECONDS_FOR_OTHERS = 5.0

NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""The environment variables by which `torchrun` describes a process."""

Value = TypeVar("Value")


class Part(NamedTuple):
    """A part of a batch: its first image, the one after its last, and its share of the batch.

    A process for which no image is left computes on the first one, with a weight of zero.
    """

    start: int
    end: int
    weight: float


@dataclass(frozen=True)
class Processes:
    """This process among those that train together; by default the only one.

    Args:
        rank: its number, from 0.
        count: how many there are.
        local_rank: its number among those on this machine.
        control: the group that exchanges decisions, on processors; None for a single process.
        store: where processes leave notes for each other; None for a single process.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    control: Any = None
    store: Any = None

    @property
    def is_main(self) -> bool:
        """Whether this process decides and writes."""
        return self.rank == 0

    @property
    def is_alone(self) -> bool:
        """Whether there is no other process."""
        return self.count == 1

    def part(self, size: int, *, in_pairs: bool = False) -> "Part":
        """The part of a batch that this process computes.

        Args:
            size: number of images in the batch.
            in_pairs: keep every first and second image together.
        """
        unit = 2 if in_pairs else 1
        cuts = [unit * (size // unit * rank // self.count) for rank in range(self.count)]
        start, end = [*cuts, size][self.rank : self.rank + 2]
        weight = (end - start) / size
        return Part(start, end, weight) if weight else Part(0, 1, 0.0)

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors by their sums over all processes, in place and in one message."""
        if self.is_alone or not tensors:
            return
        flat = torch.cat([tensor.detach().reshape(-1) for tensor in tensors])
        with _noticing():
            dist.all_reduce(flat)
        with torch.no_grad():
            sizes = [tensor.numel() for tensor in tensors]
            for tensor, total in zip(tensors, flat.split(sizes), strict=True):
                tensor.copy_(total.view_as(tensor))

    def from_main(self, value: Value | None = None) -> Value:
        """What the main process passes, in every process."""
        if self.is_alone:
            return cast(Value, value)
        box = [value if self.is_main else None]
        with _noticing():
            dist.broadcast_object_list(box, src=0, group=self.control)
        return cast(Value, box[0])

    def decided(self, flag: bool) -> bool:
        """The main process's flag, in every process; costs little."""
        if self.is_alone:
            return flag
        byte = torch.tensor([flag], dtype=torch.uint8)
        with _noticing():
            dist.broadcast(byte, src=0, group=self.control)
        return bool(byte)

    def share(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors by those of the main process, in place."""
        if not self.is_alone:
            with _noticing(), torch.no_grad():
                for tensor in tensors:
                    dist.broadcast(tensor.data, src=0)

    def gathered(self, value: Value) -> list[Value]:
        """What every process passes, in the order of their ranks."""
        if self.is_alone:
            return [value]
        found: list[Any] = [None] * self.count
        with _noticing():
            dist.all_gather_object(found, value, group=self.control)
        return found

    def require_equal(self, what: str, value: bytes | str, hint: str) -> None:
        """Refuse to go on if a value is not the same in all processes.

        Raises:
            QuadranasError: names `what` and the processes that differ from the main one.
        """
        content = value.encode() if isinstance(value, str) else value
        digests = self.gathered(hashlib.sha256(content).hexdigest())
        others = [rank for rank, digest in enumerate(digests) if digest != digests[0]]
        if others:
            raise QuadranasError(
                f"{what} of process {', '.join(map(str, others))} differs from that of process 0",
                hint,
            )


ALONE = Processes()


@contextmanager
def together() -> Iterator[Processes]:
    """Join the processes that `torchrun` has started; without it, this process is alone.

    If one process fails, the others end as soon as they next wait for it; the first one to fail
    prints the reason.

    Raises:
        QuadranasError: the environment of `torchrun` is incomplete, or the processes do not meet.
    """
    if "RANK" not in os.environ or environment_number("WORLD_SIZE", 1, 1) == 1:
        yield ALONE
        return
    missing = [name for name in NAMES if name not in os.environ]
    if missing:
        raise QuadranasError(
            f"this process is one of several, but {', '.join(missing)} is not set",
            "Start the processes with: torchrun --nproc-per-node=N -m quadranas ...",
        )
    processes = _join()
    try:
        yield processes
    except (QuadranasError, RunInterruptedError) as error:
        error.is_printed = _is_first(processes)
        _leave()
        _wait_for_others(processes)
        raise
    finally:
        _leave()


def _join() -> Processes:
    try:
        store, rank, count = next(rendezvous("env://", timeout=PATIENCE))
        # With a static rendezvous, a restart finds the addresses of the attempt before.
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        store = PrefixStore(f"attempt-{attempt}", store)
        dist.init_process_group(store=store, rank=rank, world_size=count, timeout=PATIENCE)
        control = dist.new_group(backend="gloo", timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise QuadranasError(
            f"the processes did not meet: {str(error).splitlines()[0]}",
            "Start the same number on every machine, with the same --rdzv-endpoint.",
        ) from error
    return Processes(rank, count, environment_number("LOCAL_RANK", 0), control, store)


@contextmanager
def _noticing() -> Iterator[None]:
    """Turn a lost connection into an error."""
    try:
        yield
    except RuntimeError as error:  # what the backends of torch.distributed raise
        raise ProcessesEndedError(
            f"another process of this training has ended: {str(error).splitlines()[0]}",
            "Continue the run with --resume.",
        ) from error


def _is_first(processes: Processes) -> bool:
    """Whether this process is the first one to fail, which prints the reason for all."""
    try:
        return int(processes.store.add(FAILED, 1)) == 1
    except RuntimeError:  # the store has ended with the main process, which was killed
        return processes.rank == 1


def _leave() -> None:
    """Close the connections, so that processes that wait for this one notice."""
    with suppress(Exception):
        dist.destroy_process_group()


def _wait_for_others(processes: Processes) -> None:
    """Keep the store for a moment if this process holds it, until all others have failed too.

    `torchrun` holds the store itself.
    """
    if not processes.is_main or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        return
    end = time.monotonic() + SECONDS_FOR_OTHERS
    with suppress(RuntimeError):
        while time.monotonic() < end and processes.store.add(FAILED, 0) < processes.count:
            time.sleep(0.02)
