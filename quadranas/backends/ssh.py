"""Any runtime of a board that is reached by ssh: files are written here, and run there.

The board needs an OpenSSH server, Python 3.6 or newer and the runtime's package; nothing of
quadranas is installed there.
"""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from quadranas.backends.interface import (
    ClosedOnExit,
    Conversion,
    ConvertedFile,
    FileBackend,
    Provenance,
    QuantizingBackend,
    TimingBackend,
    as_shape,
    refuse_shape,
)
from quadranas.backends.onnxruntime_providers import named_providers
from quadranas.backends.registry import backend_class
from quadranas.backends.ssh_host import SshHost
from quadranas.backends.worker_client import Patience, WorkerClient, WorkerProgram
from quadranas.backends.worker_process import RefusedError, WorkerLostError
from quadranas.errors import QuadranasError
from quadranas.latency.device import Device
from quadranas.latency.runtimes import RUNTIMES, Runtime

PATIENCE = Patience(load_s=300, call_s=600, retries=5)

SHARE = 4
"""A quarter of the board's free memory is used for the files of loaded networks, which take about
as much again once they are loaded."""


class SshBackend(ClosedOnExit):
    """A runtime on a board.

    Args:
        device: its reach names the board.
        records: for the runtime of this machine that writes the files.
        patience: time limits.

    Raises:
        MissingExtraError: the runtime that writes the files is not installed here.
        ThrottledError: its clock is lowered now, and would be taken for its setting.
        QuadranasError: the board cannot be reached, or lacks the runtime, or the runtime does not
            support the device's settings.
    """

    max_parallel = 1

    def __init__(self, device: Device, records: Path, patience: Patience = PATIENCE) -> None:
        self.device = device
        self.facts = _facts_of(device)
        settings = _settings_of(device)
        here = Device(
            name=device.name, title=device.title, runtime=device.runtime, precision="fp32"
        )
        self.writer = cast("FileBackend", backend_class(device.runtime or "")(here, records))
        self.lowering = self.writer.lowering
        if isinstance(self.writer, QuantizingBackend):
            self.quantize, self.layers = self.writer.quantize, self.writer.layers
        self.num_programs = 0
        self.folder = tempfile.TemporaryDirectory(prefix="quadranas-ssh-")
        self.warn: Callable[[str], None] = lambda text: None
        self.host = SshHost(device, Path(self.folder.name), lambda text: self.warn(text))
        self.client = WorkerClient(
            self.host,
            device.runtime or "",
            settings,
            patience,
        )
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        try:
            self.client.start()
        except RefusedError as refusal:
            raise self.host.explained(f"open {self.facts.title}", refusal) from refusal
        except WorkerLostError as loss:
            raise QuadranasError(
                f"device {self.device.name!r} ({self.host.address}): {loss}",
                "Check that the board runs, and that this works: ssh " + self.host.address,
            ) from loss
        self.host.observe(self.client.facts)
        self.host.observed.clear()  # of an idle board
        free = self.client.facts.get("memory_bytes")
        if isinstance(free, int):
            self.client.max_bytes = free // SHARE

    def compile(self, network: nn.Module, input_shape: Sequence[int]) -> WorkerProgram:
        """See `Backend`: writes a file here and loads it there.

        Raises:
            QuadranasError: it cannot be written or loaded.
            DeviceLostError: the board was lost repeatedly.
        """
        path = self._new_path()
        self.writer.convert(network, Conversion(input_shape=as_shape(input_shape)), path)
        return self._loaded(path, {"images": input_shape}, type(network).__name__)

    def convert(self, network: nn.Module, conversion: Conversion, path: Path) -> ConvertedFile:
        """See `FileBackend`."""
        return self.writer.convert(network, conversion, path)

    def load(self, path: Path, input_shape: Sequence[int]) -> WorkerProgram:
        """See `FileBackend`."""
        ((name, wanted),) = self.input_shapes(path).items()
        refuse_shape(path, wanted, input_shape)
        return self._copied(path, {name: input_shape}, input_shape[0])

    def input_shapes(self, path: Path) -> dict[str, tuple[int | None, ...]]:
        """See `TimingBackend`: read here, so that no file that is damaged is copied."""
        return cast("TimingBackend", self.writer).input_shapes(path)

    def open_file(self, path: Path, shapes: Mapping[str, Sequence[int]]) -> WorkerProgram:
        """See `TimingBackend`."""
        return self._copied(path, shapes)

    def count_operators(self, path: Path) -> dict[str, int]:
        """See `FileBackend`."""
        return self.writer.count_operators(path)

    def _new_path(self) -> Path:
        self.num_programs += 1
        name = f"{self.num_programs}{self.facts.own_files.suffix}"
        return Path(self.folder.name) / name

    def _copied(
        self, path: Path, shapes: Mapping[str, Sequence[int]], batch: int | None = None
    ) -> WorkerProgram:
        """Load a copy of a file, so that the program does not depend on the file."""
        copy = self._new_path()
        for source in (path, path.with_suffix(".bin")):
            if source == path or (path.suffix == ".xml" and source.is_file()):
                copy.with_suffix(source.suffix).write_bytes(source.read_bytes())
        return self._loaded(copy, shapes, str(path), batch)

    def _loaded(
        self,
        path: Path,
        shapes: Mapping[str, Sequence[int]],
        name: str,
        batch: int | None = None,
    ) -> WorkerProgram:
        program = WorkerProgram(self.client, path, shapes, batch)
        self.client.load(program, name)
        return program

    def provenance(self) -> Provenance:
        """See `Backend`."""
        facts, device = self.client.facts, self.device
        is_cpu = device.runtime != "onnxruntime" or named_providers(device).is_cpu
        copies = {} if is_cpu or not device.time_copies else {"copies": "timed"}
        return Provenance(
            runtime=facts["runtime"],
            hardware=facts["hardware"] if is_cpu else f"{device.title}, {facts['hardware']}",
            versions={"torch": torch.__version__} | facts["versions"],
            settings=facts["settings"] | copies,
        )

    def observations(self) -> dict[str, float]:
        """See `ObservesHardware`."""
        return dict(self.host.observed)

    def close(self) -> None:
        """End the worker, which removes its folder there."""
        try:
            self.client.stop()
            self.writer.close()
        finally:
            self.folder.cleanup()


def _settings_of(device: Device) -> dict[str, Any]:
    """The settings that a worker opens the runtime with.

    Raises:
        QuadranasError: its target is no list of execution providers, or they do not run in its
            precision.
    """
    settings = {
        "on_board": True,
        "threads": device.threads,
        "target": device.target,
        "precision": device.precision,
    }
    if device.runtime != "onnxruntime":
        return settings
    providers = named_providers(device)
    is_copied = providers.is_cpu or device.time_copies
    return settings | {
        "providers": [(provider.name, provider.texts) for provider in providers.chosen],
        "memory": None if is_copied else providers.memory,
    }


def _facts_of(device: Device) -> Runtime:
    """The facts about the runtime of a device.

    Raises:
        QuadranasError: over ssh, it does not support the precision.
    """
    facts = RUNTIMES[device.runtime or ""]
    if device.precision not in facts.over_ssh:
        raise QuadranasError(
            f"device {device.name!r}: over ssh, {facts.title} runs {', '.join(facts.over_ssh)}, "
            f"not {device.precision}",
            "Set another precision.",
        )
    return facts
