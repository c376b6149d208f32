"""What every runtime offers: compile a network, run it, time it; save it where that is possible.

A backend is opened for one device and belongs to whoever opened it. What it compiles is what is
timed, and what `save` writes.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self, runtime_checkable

from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """What a latency was taken on, for a table's header.

    Args:
        runtime: with its version, such as `ONNX Runtime 1.31.1`.
        hardware: as the machine names itself, such as a CPU's model.
        versions: of the packages that made the program.
        settings: what else decides the speed: tuning, clocks, driver.
        emulated: the hardware is imitated by software, so times mean nothing.
    """

    runtime: str
    hardware: str
    versions: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)
    emulated: bool = False


def call_times_ms(call: Callable[[], object], repeats: int) -> list[float]:
    """Milliseconds of each of so many calls in this process."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter_ns()
        call()
        times.append((time.perf_counter_ns() - start) / 1e6)
    return times


class Program(Protocol):
    """A compiled network, for one input shape."""

    def run(self, images: Tensor) -> Tensor:
        """The network's output for one input of the shape it was compiled for, float32."""

    def time_ms(self, repeats: int) -> list[float]:
        """Milliseconds of each of so many calls, after one that is discarded.

        Raises:
            DeviceLostError: the device no longer answers; the call can be made again on a backend
                opened anew.
            QuadranasError: the device is emulated, so its times are no latencies.
        """


@runtime_checkable
class SavableProgram(Program, Protocol):
    """A program that can be handed over as a file."""

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all."""


class ClosedOnExit:
    """A backend that a `with` statement gives back."""

    def close(self) -> None:
        """See `Backend`."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class Backend(Protocol):
    """A runtime opened for a device; `contextlib.closing` gives it back."""

    def compile(self, network: nn.Module, input_shape: Sequence[int]) -> Program:
        """Make a network in evaluation mode ready to run on inputs of one shape, (B, C, H, W).

        Raises:
            QuadranasError: the runtime refuses the network, or the device's precision.
            DeviceLostError: the device no longer answers.
        """

    @property
    def max_parallel(self) -> int:
        """How many programs can be timed at once without disturbing each other: one per board."""

    def provenance(self) -> Provenance:
        """What its latencies are taken on."""

    def close(self) -> None:
        """Let go of the device. Programs must not be used any more."""
