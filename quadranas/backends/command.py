"""Any program that times a model file: the device's file says how it is called and read."""

import shlex
import tempfile
import time
from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from quadranas.backends.command_process import check_program, run_command, tool_error
from quadranas.backends.interface import (
    Backend,
    ClosedOnExit,
    Conversion,
    ConvertedFile,
    FileBackend,
    Provenance,
    TimingBackend,
    as_shape,
    only_shape,
)
from quadranas.backends.registry import backend_class
from quadranas.errors import QuadranasError
from quadranas.latency.device import Device
from quadranas.latency.measuring_command import (
    PLACEHOLDER,
    MeasuringCommand,
    ReportedTimes,
    filled,
)
from quadranas.latency.runtimes import RUNTIMES, file_formats, files_of


def command_of(device: Device) -> MeasuringCommand:
    """The section 'command' of a device.

    Raises:
        QuadranasError: it has none, or its command runs in another precision.
    """
    command = device.command
    if command is None:
        raise QuadranasError(
            f"device {device.name!r} has no section 'command'",
            "Name the device's own file with --device; a run folder or a bundle never chooses "
            "what is started. In that file, describe the program that times a model file.",
        )
    if device.precision != command.precision:
        raise QuadranasError(
            f"device {device.name!r}: its command runs {command.precision}, not "
            f"{device.precision}",
            "Write the precision that the program runs in as command.precision, and its options "
            "in command.run.",
        )
    return command


def open_writer(device: Device, records: Path) -> FileBackend:
    """The runtime of this machine that writes the files of a device's command.

    Raises:
        MissingExtraError: it is not installed.
    """
    command = command_of(device)
    runtime = file_formats()[command.format]
    writer = Device(name=device.name, title=device.title, runtime=runtime, precision="fp32")
    return cast("FileBackend", backend_class(runtime)(writer, records))


def conversion_for(device: Device, input_shape: Sequence[int]) -> Conversion:
    """How a network becomes a file for a device's command."""
    conversion = Conversion(input_shape=as_shape(input_shape), opset=command_of(device).opset)
    conversion.check(RUNTIMES[file_formats()[command_of(device).format]])
    return conversion


class CommandBackend(ClosedOnExit, Backend):
    """Writes files in a folder of its own, and has the device's command time them."""

    max_parallel = 1

    def __init__(self, device: Device, records: Path) -> None:
        self.device, self.command = device, command_of(device)
        self._check_allowed()
        self.writer = open_writer(device, records)
        self.lowering = self.writer.lowering
        self.folder = tempfile.TemporaryDirectory(prefix="quadranas-")
        self.num_programs = 0

    def _check_allowed(self) -> None:
        name, command = self.device.name, self.command
        if command.run is None:
            raise QuadranasError(
                f"device {name!r} is measured by hand: its section 'command' has no key 'run'",
                "Write the files to time with: quadranas build-lut --device FILE --probes FOLDER",
            )
        if not self.device.allows_commands:
            raise QuadranasError(
                f"device {name!r} is measured by a command of its file: {shlex.join(command.run)}",
                "If you trust the file, add --allow-commands.",
            )
        for arguments in (command.run, command.setup):
            if arguments is not None and not PLACEHOLDER.search(arguments[0]):
                check_program(arguments[0], name)

    def compile(self, network: nn.Module, input_shape: Sequence[int]) -> "CommandProgram":
        """See `Backend`."""
        folder = self._new_folder()
        path = folder / f"{folder.name}{files_of(self.command.format).suffix}"
        self.writer.convert(network, conversion_for(self.device, input_shape), path)
        return CommandProgram(self.device, path, folder, input_shape)

    def convert(self, network: nn.Module, conversion: Conversion, path: Path) -> ConvertedFile:
        """See `FileBackend`."""
        return self.writer.convert(network, conversion, path)

    def load(self, path: Path, input_shape: Sequence[int]) -> "CommandProgram":
        """See `FileBackend`: the file is used where it is."""
        if not path.is_file():
            raise QuadranasError(f"{path} does not exist", "Name the file of a model.")
        return CommandProgram(self.device, path.absolute(), self._new_folder(), input_shape)

    def input_shapes(self, path: Path) -> dict[str, tuple[int | None, ...]]:
        """See `TimingBackend`."""
        assert isinstance(self.writer, TimingBackend)
        return self.writer.input_shapes(path)

    def open_file(self, path: Path, shapes: Mapping[str, Sequence[int]]) -> "CommandProgram":
        """See `TimingBackend`."""
        return self.load(path, only_shape(path, shapes))

    def count_operators(self, path: Path) -> dict[str, int]:
        """See `FileBackend`."""
        return self.writer.count_operators(path)

    def _new_folder(self) -> Path:
        self.num_programs += 1
        folder = Path(self.folder.name) / f"model{self.num_programs:04d}"
        folder.mkdir()
        return folder

    def provenance(self) -> Provenance:
        """See `Backend`."""
        return Provenance(
            runtime=self.command.tool,
            hardware=self.device.title,
            versions=self.writer.provenance().versions,
            settings=self.command.settings,
        )

    def close(self) -> None:
        """See `Backend`."""
        self.writer.close()
        self.folder.cleanup()


class CommandProgram:
    """A file that the device's command times.

    Args:
        folder: folder for the files that the command reads and writes.
    """

    def __init__(
        self, device: Device, path: Path, folder: Path, input_shape: Sequence[int]
    ) -> None:
        assert device.command is not None
        self.device, self.command = device, device.command
        self.path, self.folder = path, folder
        self.shape = tuple(input_shape)
        self.is_set_up = False

    def run(self, images: Tensor) -> Tensor:
        """See `Program`.

        Raises:
            QuadranasError: the command writes no output, or another one.
        """
        if self.command.output_file is None:
            raise QuadranasError(
                f"device {self.device.name!r}: its command writes no output, so its numbers "
                "cannot be compared",
                "If it can write one, set command.output_file and name {output} in command.run.",
            )
        self._write_input(images.contiguous().numpy())
        place = self._output
        place.unlink(missing_ok=True)
        arguments, text, _ = self._call(repeats=1)
        try:
            return self._read_output(place)
        except (OSError, ValueError) as error:
            fault = f"wrote no {self.command.output_file} file that can be read: {error}"
            raise tool_error(self.device.name, arguments, fault, text) from error

    def time_ms(self, repeats: int) -> list[float]:
        """See `Program`: the times that the command reports, fewer if it reports a statistic.

        Raises:
            QuadranasError: the command fails, or reports no times or impossible ones.
        """
        if not self._input.is_file():
            generator = torch.Generator().manual_seed(0)
            self._write_input(torch.randn(self.shape, generator=generator).numpy())
        times = self.command.times
        assert times is not None
        reported = self._place(times.file) if times.file is not None else None
        if reported is not None:
            reported.unlink(missing_ok=True)
        arguments, text, taken_ms = self._call(repeats)
        try:
            source = text if reported is None else reported.read_text(errors="replace")
            found = times.read_ms(source)
        except (OSError, ValueError) as error:
            raise tool_error(
                self.device.name, arguments, f"reported no time that can be read: {error}", text
            ) from error
        fault = _fault_of(found, times, taken_ms)
        if fault:
            raise tool_error(self.device.name, arguments, fault, text)
        return found

    @property
    def _input(self) -> Path:
        return self.folder / f"input.{'npy' if self.command.input_file == 'npy' else 'bin'}"

    @property
    def _output(self) -> Path:
        return self.folder / f"output.{'npy' if self.command.output_file == 'npy' else 'bin'}"

    def _write_input(self, images: np.ndarray) -> None:
        images = np.ascontiguousarray(images, dtype="<f4")
        if self.command.input_file == "npy":
            np.save(self._input, images)
        else:
            images.tofile(self._input)

    def _read_output(self, place: Path) -> Tensor:
        if self.command.output_file == "npy":
            output = np.load(place, allow_pickle=False)
        else:
            output = np.fromfile(place, dtype="<f4").reshape(self.shape[0], -1)
        return torch.from_numpy(np.ascontiguousarray(output, dtype=np.float32))

    def _values(self, repeats: int = 0) -> dict[str, object]:
        """The values of the placeholders."""
        return {
            "file": self.path,
            "name": self.path.name,
            "folder": self.folder,
            "input": self._input,
            "output": self._output,
            "shape": self.shape,
            "batch": self.shape[0],
            "repeats": repeats,
            "threads": self.device.threads or 1,
            "precision": self.device.precision,
        }

    def _place(self, text: str) -> Path:
        return Path(filled([text], self._values())[0])

    def _call(self, repeats: int) -> tuple[list[str], str, float]:
        """Run the command; returns its arguments, what it printed, and the wall time in ms."""
        command, values = self.command, self._values(repeats)
        assert command.run is not None
        if command.setup is not None and not self.is_set_up:
            run_command(filled(command.setup, values), command.timeout_seconds, self.device.name)
        self.is_set_up = True
        arguments = filled(command.run, values)
        start = time.perf_counter()
        text = run_command(arguments, command.timeout_seconds, self.device.name)
        return arguments, text, (time.perf_counter() - start) * 1e3


def _fault_of(found: Sequence[float], times: ReportedTimes, taken_ms: float) -> str:
    """Why reported times cannot be latencies; empty if they can."""
    if not found:
        place = f"in {times.file}" if times.file is not None else "in what it prints"
        return f"reported no time: {times.pattern or times.json_path!r} is not found {place}"
    if not all(isfinite(ms) and ms > 0 for ms in found):
        return f"reported times that are not positive: {min(found):g} ms"
    if min(found) > taken_ms:
        return (
            f"reported {min(found):.4g} ms per call, but ended after {taken_ms:.4g} ms; it does "
            f"not report {times.unit_text}"
        )
    return ""
