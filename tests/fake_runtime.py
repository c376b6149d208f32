"""A runtime that does not exist: PyTorch behind a made-up file format."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import nn

from quadranas.backends.interface import Backend, Conversion, ConvertedFile, Program, Provenance
from quadranas.backends.pytorch import PyTorchBackend
from quadranas.latency.device import Device
from quadranas.latency.runtimes import RUNTIMES, Runtime, RuntimeFiles, ScriptCode

FAKE = "fakert"
FACTS = Runtime(
    title="Fake Runtime",
    backend="tests.fake_runtime:FakeBackend",
    found_by="torch",
    files=RuntimeFiles(
        format="fake",
        artefact="model.fake",
        package="fake-runtime",
        script=ScriptCode(
            imports="torch",
            model="torch.export.load(artefact).module()",
            logits="model(torch.from_numpy(images)).detach().numpy()[0]",
        ),
    ),
)
"""All that there is to say about it."""


def register(patch: pytest.MonkeyPatch) -> None:
    """Add the runtime, as an entry of facts would."""
    patch.setitem(RUNTIMES, FAKE, FACTS)


class FakeBackend(Backend):
    """Writes files for one batch size."""

    max_parallel = 1
    lowering = PyTorchBackend.lowering

    def __init__(self, device: Device, records: Path) -> None:
        self.torch = PyTorchBackend(device, records)

    def compile(self, network: nn.Module, input_shape: Sequence[int]) -> Program:
        """See `Backend`."""
        return self.torch.compile(network, input_shape)

    def convert(self, network: nn.Module, conversion: Conversion, path: Path) -> ConvertedFile:
        """See `FileBackend`."""
        conversion.check(FACTS)
        return self.torch.convert(network, conversion, path)

    def load(self, path: Path, input_shape: Sequence[int]) -> Program:
        """See `FileBackend`."""
        return self.torch.load(path, input_shape)

    def count_operators(self, path: Path) -> dict[str, int]:
        """See `FileBackend`."""
        return self.torch.count_operators(path)

    def provenance(self) -> Provenance:
        """See `Backend`."""
        versions = {"torch": torch.__version__}
        return Provenance(runtime="Fake Runtime 1.0", hardware="a machine", versions=versions)

    def close(self) -> None:
        """Nothing to release."""
