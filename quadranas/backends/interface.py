"""What every runtime offers: compile a network, run it, time it; or through a file, where it can.

A backend is opened for one device and belongs to whoever opened it. Where a runtime reads its
programs from files, what it compiles is what it would convert to a file and load from there.
"""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from quadranas.errors import QuadranasError

BATCH = "batch"
"""The name of the free dimension."""


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


def as_shape(input_shape: Sequence[int]) -> tuple[int, int, int, int]:
    """The four sizes of an input, (B, C, H, W)."""
    batch, channels, height, width = input_shape
    return batch, channels, height, width


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


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """How a network becomes a file.

    Args:
        input_shape: (B, C, H, W) of the file's input.
        dynamic_batch: B is only an example, the file takes any.
        opset: of ONNX; the runtime's own choice if none.
        half_weights: weights are stored in half precision.
    """

    input_shape: tuple[int, int, int, int]
    dynamic_batch: bool = False
    opset: int | None = None
    half_weights: bool = False

    def refuse(self, runtime: str, *names: str) -> None:
        """See that what a runtime cannot do is not asked for.

        Raises:
            QuadranasError: it is; names the key.
        """
        for name in names:
            value = getattr(self, name)
            if value:
                raise QuadranasError(
                    f"{runtime} files take no {name}, got {value}",
                    "Leave it out for this runtime.",
                )

    def capture_inputs(self) -> tuple[Tensor, Any]:
        """An example input for `torch.export`, and which of its sizes are free."""
        if not self.dynamic_batch:
            return torch.zeros(*self.input_shape), None
        # An example of one image would be taken for a constant.
        return torch.zeros(2, *self.input_shape[1:]), ({0: torch.export.Dim(BATCH)},)


def refuse_shape(name: object, wanted: Sequence[int | None], given: Sequence[int]) -> None:
    """See that a file is used with inputs that it takes.

    Args:
        name: of the file, for the message.
        wanted: sizes; none for any.

    Raises:
        QuadranasError: it takes inputs of another shape.
    """
    if len(wanted) == len(given) and all(
        size in (None, other) for size, other in zip(wanted, given, strict=True)
    ):
        return
    accepted = tuple("any" if size is None else size for size in wanted)
    raise QuadranasError(
        f"{name} takes inputs of {accepted}, got {tuple(given)}",
        "Convert the network for this shape.",
    )


def reason_of(error: Exception) -> str:
    """The first line of another package's error; its kind where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


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


@runtime_checkable
class ReportsProgress(Backend, Protocol):
    """A runtime with steps so long that it tells of them."""

    report: Callable[[str], None]
    """What it tells them to."""


@runtime_checkable
class FileBackend(Backend, Protocol):
    """A runtime whose programs can be handed over as files."""

    lowering: Sequence[str]
    """Names of the passes (`lowering.py`) that networks go through on their way to a file."""

    def convert(self, network: nn.Module, conversion: Conversion, path: Path) -> None:
        """Write a network in evaluation mode as a file, and files beside it of the same stem.

        They are written whole or not at all, and the same network gives the same bytes where the
        format allows.

        Raises:
            QuadranasError: the network or the conversion does not suit the runtime.
        """

    def load(self, path: Path, input_shape: Sequence[int]) -> Program:
        """Make a file that `convert` wrote ready to run on inputs of one shape.

        Raises:
            QuadranasError: the runtime cannot read it, or it takes inputs of another shape.
            DeviceLostError: the device no longer answers.
        """

    def count_operators(self, path: Path) -> dict[str, int]:
        """How many operators of each type a file holds, by the runtime's names for them."""


@runtime_checkable
class QuantizingBackend(FileBackend, Protocol):
    """A runtime whose files can be quantised to 8 bits after training."""

    def quantize(
        self,
        source: Path,
        target: Path,
        images: Sequence[NDArray[np.float32]],
        kept: Collection[str],
    ) -> None:
        """Write a converted file again with 8-bit weights and activations.

        Args:
            images: for calibration, each an input of the file, (B, C, H, W).
            kept: layers (paths in the network, such as `blocks.stage1_block1.feed_forward.expand`)
                that stay as they are.
        """

    def layers(self, path: Path) -> list[str]:
        """The layers of a converted file that `quantize` would quantise, in their order."""
