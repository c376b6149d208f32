"""The interface of a runtime: compile a network, run it, time it; optionally through a file.

A backend is opened for one device and belongs to the code that opened it. For a runtime with
files, `compile` gives the same program as `convert` followed by `load`.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from quadranas.errors import QuadranasError
from quadranas.latency.conditions import Conditions
from quadranas.latency.device import Device
from quadranas.latency.runtimes import Runtime

BATCH = "batch"
"""Name of the free batch dimension."""


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Runtime, hardware and settings of a measurement, for a table's header.

    Args:
        runtime: name and version, such as `ONNX Runtime 1.31.1`.
        hardware: name of the hardware, such as a CPU's model.
        versions: versions of the packages that made the program.
        settings: other settings that affect the speed: tuning, clocks, driver.
        emulated: whether the hardware is emulated; emulated times are not latencies.
    """

    runtime: str
    hardware: str
    versions: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)
    emulated: bool = False

    @property
    def conditions(self) -> Conditions:
        """Conditions known from the runtime."""
        return Conditions(
            runtime=self.runtime, hardware=self.hardware, settings=dict(self.settings)
        )


def as_shape(input_shape: Sequence[int]) -> tuple[int, int, int, int]:
    """An input shape as a tuple, (B, C, H, W)."""
    batch, channels, height, width = input_shape
    return batch, channels, height, width


class Program(Protocol):
    """A compiled network, for one input shape."""

    def run(self, images: Tensor) -> Tensor:
        """The network's output, float32, for an input of the shape it was compiled for."""

    def time_ms(self, repeats: int) -> list[float]:
        """Time `repeats` calls, in milliseconds, after one that is discarded.

        Returns: `CallTimes` where the time that calls lost to other processes is known.

        Raises:
            DeviceLostError: the device no longer responds; the call can be repeated after opening
                the backend again.
            ThrottledError: the device lowered its clock during the calls.
            QuadranasError: the device is emulated; emulated times are not latencies.
        """


@runtime_checkable
class ProgramWithNotes(Program, Protocol):
    """A program that may run otherwise than asked for."""

    notes: tuple[str, ...]
    """How it does so, for a person to read; empty if it does not."""


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """How a network becomes a file.

    Args:
        input_shape: (B, C, H, W) of the file's input.
        dynamic_batch: the file takes any batch size; B is an example.
        opset: ONNX opset; `None` for the runtime's default.
        half_weights: weights are stored in half precision.
    """

    input_shape: tuple[int, int, int, int]
    dynamic_batch: bool = False
    opset: int | None = None
    half_weights: bool = False

    def check(self, runtime: Runtime) -> None:
        """Check that a runtime can write such a file.

        Raises:
            QuadranasError: it cannot; names the key.
        """
        for name, is_offered in runtime.own_files.options.items():
            value = getattr(self, name)
            if value and not is_offered:
                raise QuadranasError(
                    f"{runtime.title} files do not support {name}, got {value}",
                    "Omit it for this runtime.",
                )

    def capture_inputs(self) -> tuple[Tensor, Any]:
        """An example input for `torch.export`, and its free sizes."""
        if not self.dynamic_batch:
            return torch.zeros(*self.input_shape), None
        # With one image as the example, torch.export would treat the batch size as a constant.
        return torch.zeros(2, *self.input_shape[1:]), ({0: torch.export.Dim(BATCH)},)


@dataclass(frozen=True, kw_only=True)
class ConvertedFile:
    """A network converted to a file.

    Args:
        path: the file; it may refer to other files with the same stem.
        passes: names of the lowering passes that were applied.
        opset: ONNX opset; `None` for other formats.
    """

    path: Path
    passes: tuple[str, ...]
    opset: int | None = None


def refuse_shape(name: object, wanted: Sequence[int | None], given: Sequence[int]) -> None:
    """Check that a file takes inputs of a shape.

    Args:
        name: name of the file, for the message.
        wanted: the file's input sizes; `None` for any size.

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


def example_input(shape: Sequence[int], dtype: "np.dtype[Any]") -> NDArray[Any]:
    """An input to time with: normal noise, or zeros for other types than floating point."""
    if dtype.kind != "f":
        return np.zeros(shape, dtype)
    generator = torch.Generator().manual_seed(0)
    return torch.randn(*shape, generator=generator).numpy().astype(dtype)


def calibration_noise(shape: Sequence[int]) -> list[NDArray[np.float32]]:
    """Inputs to quantise a network with that is only timed: normal noise.

    Which numbers an 8-bit network holds does not change its speed, only which operators do.
    """
    return [example_input(shape, np.dtype(np.float32))]


def only_shape(path: Path, shapes: Mapping[str, Sequence[int]]) -> Sequence[int]:
    """The shape of the only input of a file.

    Raises:
        QuadranasError: it has several.
    """
    if len(shapes) != 1:
        raise QuadranasError(
            f"{path} has {len(shapes)} inputs; this runtime times files with one input",
            "Time an ONNX file in ONNX Runtime or OpenVINO.",
        )
    (shape,) = shapes.values()
    return shape


def check_host_device(
    device: Device, title: str, instead: str = "", precisions: Sequence[str] = ("fp32",)
) -> None:
    """Check that a device suits a runtime of this machine's CPU.

    Args:
        title: name of the runtime, for the messages.
        instead: text to append to the hint for a device with a target.
        precisions: the precisions that it runs.

    Raises:
        QuadranasError: another precision, or a target.
    """
    if device.precision not in precisions:
        accepted = " or ".join(precisions)
        raise QuadranasError(
            f"device {device.name!r}: {title} on a CPU runs {accepted}, not {device.precision}",
            f"Set precision: {accepted}, or name another runtime.",
        )
    if device.target is not None:
        raise QuadranasError(
            f"device {device.name!r}: {title} runs on this machine's CPU and takes no target, got "
            f"{device.target!r}",
            f"Remove the key 'target'{instead}.",
        )


def reason_of(error: Exception) -> str:
    """The first line of another package's error, or its type if the message is empty."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


class ClosedOnExit:
    """A backend that a `with` statement closes."""

    def close(self) -> None:
        """See `Backend`."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()


class Backend(Protocol):
    """A runtime opened for a device; use `contextlib.closing` to close it."""

    def compile(self, network: nn.Module, input_shape: Sequence[int]) -> Program:
        """Compile a network in evaluation mode for inputs of one shape, (B, C, H, W).

        Raises:
            QuadranasError: the runtime does not support the network or the device's precision.
            DeviceLostError: the device no longer responds.
        """

    @property
    def max_parallel(self) -> int:
        """Number of programs that can be timed at once without affecting each other."""

    def provenance(self) -> Provenance:
        """Runtime, hardware and settings of its latencies."""

    def close(self) -> None:
        """Release the device. Its programs cannot be used after that."""


@runtime_checkable
class ReportsProgress(Backend, Protocol):
    """A runtime that reports the progress of long steps."""

    report: Callable[[str], None]
    """Called with every progress message."""


@runtime_checkable
class Reconnects(Backend, Protocol):
    """A runtime that connects again when a link breaks."""

    warn: Callable[[str], None]
    """Called with a message whenever that happens."""


@runtime_checkable
class ObservesHardware(Backend, Protocol):
    """A runtime that looks at the sensors of its hardware while it times programs."""

    def observations(self) -> dict[str, float]:
        """Extremes since it was opened, by the names in a table's header (`Measurement`)."""


@runtime_checkable
class FileBackend(Backend, Protocol):
    """A runtime that writes programs to files and loads them."""

    lowering: Sequence[str]
    """Names of the passes (`lowering.py`) that a network goes through before it is compiled."""

    def convert(self, network: nn.Module, conversion: Conversion, path: Path) -> ConvertedFile:
        """Write a network in evaluation mode as a file, and files beside it of the same stem.

        Files are written completely or not at all. The same network gives the same bytes where the
        format allows it.

        Raises:
            QuadranasError: the runtime cannot convert the network, or not with these options.
        """

    def load(self, path: Path, input_shape: Sequence[int]) -> Program:
        """Prepare a file that `convert` wrote to run on inputs of one shape.

        Raises:
            QuadranasError: the runtime cannot read it, or it takes inputs of another shape.
            DeviceLostError: the device no longer responds.
        """

    def count_operators(self, path: Path) -> dict[str, int]:
        """Number of operators of each type in a file, under the runtime's names for them."""


@runtime_checkable
class TimingBackend(Backend, Protocol):
    """A runtime that times files of any origin, with any number of inputs."""

    def input_shapes(self, path: Path) -> dict[str, tuple[int | None, ...]]:
        """The shapes of a file's inputs by name; `None` for a size that the file leaves open.

        Raises:
            QuadranasError: the runtime cannot read the file.
        """

    def open_file(self, path: Path, shapes: Mapping[str, Sequence[int]]) -> Program:
        """Prepare a file for timing.

        Args:
            shapes: the shapes of all inputs, by name.

        Raises:
            QuadranasError: the runtime cannot run the file on such inputs.
        """


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
            images: calibration images, each an input of the file, (B, C, H, W).
            kept: layers that are not quantised, by their paths in the network, such as
                `blocks.stage1_block1.feed_forward.expand`.
        """

    def layers(self, path: Path) -> list[str]:
        """The layers of a converted file that `quantize` can quantise, in order."""
