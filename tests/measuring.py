"""Machines whose times are scripted, and real ONNX files that are exported only once."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import quadranas.backends.onnxruntime
import quadranas.backends.openvino
from quadranas.backends.interface import Backend, Program, Provenance
from quadranas.backends.onnx_file import to_onnx
from quadranas.files import write_atomically
from quadranas.latency.device import Device


def remember_exports(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """Keep what PyTorch's exporter writes, which takes longer than everything else together.

    It is the same file for the same network every time; processes that name one folder share it.
    """

    def remembered(network: nn.Module, channels: int, resolution: int) -> bytes:
        digest = hashlib.sha256(f"{network} {channels} {resolution}".encode())
        for name, tensor in network.state_dict().items():
            digest.update(name.encode() + tensor.numpy().tobytes())
        path = folder / f"{digest.hexdigest()}.onnx"
        if not path.is_file():
            write_atomically(path, to_onnx(network, channels, resolution))
        return path.read_bytes()

    for module in (quadranas.backends.onnxruntime, quadranas.backends.openvino):
        patch.setattr(module, "to_onnx", remembered)


class ScriptedProgram(Program):
    """Takes the times that it is given, call by call; the last are for all that follow."""

    def __init__(self, times_ms: Iterable[Sequence[float] | float] | float) -> None:
        script = [times_ms] if isinstance(times_ms, int | float) else times_ms
        self.script: Iterator[Sequence[float] | float] = iter(script)
        self.last: Sequence[float] | float = ()
        self.calls = 0

    def run(self, images: Tensor) -> Tensor:
        """Whatever it is given."""
        return images

    def time_ms(self, repeats: int) -> list[float]:
        """The next times of the script."""
        self.calls += 1
        self.last = next(self.script, self.last)
        if isinstance(self.last, int | float):
            return [float(self.last)] * repeats
        assert len(self.last) == repeats
        return list(self.last)


class ScriptedBackend(Backend):
    """A machine that takes the time that a function says.

    Args:
        network_ms: of a network and its input's shape.
        before: called before every timing, with how many there were; may raise.
    """

    max_parallel = 1

    def __init__(
        self,
        network_ms: Callable[[nn.Module, Sequence[int]], float],
        before: Callable[[int], None] = lambda count: None,
        *,
        emulated: bool = False,
    ) -> None:
        self.network_ms = network_ms
        self.before = before
        self.emulated = emulated
        self.timed: Counter[str] = Counter()

    def compile(self, network: nn.Module, input_shape: Sequence[int]) -> Program:
        """See `Backend`."""
        backend, ms = self, self.network_ms(network, input_shape)
        name = f"{network} {tuple(input_shape)}"

        class Counted(ScriptedProgram):
            def time_ms(self, repeats: int) -> list[float]:
                backend.before(backend.timed.total())
                backend.timed[name] += 1
                return super().time_ms(repeats)

        return Counted(ms)

    def provenance(self) -> Provenance:
        """See `Backend`."""
        return Provenance(
            runtime="scripted 1",
            hardware="a script",
            versions={"torch": torch.__version__},
            emulated=self.emulated,
        )

    def close(self) -> None:
        """Nothing is held."""


def board(**changes: object) -> Device:
    """A device of one's own, without an analytic model."""
    content = {"name": "board", "title": "a board", "runtime": "onnxruntime", "precision": "fp32"}
    return Device.model_validate(content | {"threads": 1} | changes)
