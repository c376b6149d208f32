"""PyTorch on this machine's CPU: networks exported by `torch.export` and run eagerly."""

import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from quadranas.backends.interface import (
    Backend,
    Conversion,
    ConvertedFile,
    Provenance,
    as_shape,
    check_host_device,
    only_shape,
    reason_of,
    refuse_shape,
)
from quadranas.backends.lowering import lower
from quadranas.backends.pytorch_archive import count_targets, read_archive
from quadranas.errors import QuadranasError
from quadranas.files import write_atomically
from quadranas.latency.device import Device
from quadranas.latency.host import cpu_name
from quadranas.latency.processor import call_times_ms
from quadranas.latency.runtimes import RUNTIMES

FACTS = RUNTIMES["torch"]
KEPT_NOTES = ("val", "nn_module_stack")
"""The node metadata that is kept: shape and layer."""


class PyTorchBackend(Backend):
    """Runs fp32. A file (.pt2) is read without running code that it may contain."""

    max_parallel = 1
    # Eagerly every operation is a pass over memory: with join_branches the smallest network of
    # quadranet-mobile at 224 pixels took 0.92 of the time, with linear_as_convolution 0.98, with
    # both 0.94 (2026-11-21, one thread of an AMD EPYC).
    lowering = ("fold_batch_norm", "fold_layer_scale", "join_branches")

    def __init__(self, device: Device, records: Path) -> None:
        check_host_device(device, FACTS.title, "; an NVIDIA GPU has the runtime cuda")
        self.threads = device.threads

    def compile(self, network: nn.Module, input_shape: Sequence[int]) -> "PyTorchProgram":
        """See `Backend`."""
        conversion = Conversion(input_shape=as_shape(input_shape))
        return PyTorchProgram(self._exported(network, conversion), input_shape, self.threads)

    def convert(self, network: nn.Module, conversion: Conversion, path: Path) -> ConvertedFile:
        """See `FileBackend`: an archive of `torch.export` (.pt2)."""
        conversion.check(FACTS)
        program = self._exported(network, conversion)
        archive = io.BytesIO()  # so that its records do not depend on the file's name
        with _quiet():
            torch.export.save(program, archive)
        write_atomically(path, archive.getvalue())
        return ConvertedFile(path=path, passes=self.lowering)

    def load(self, path: Path, input_shape: Sequence[int]) -> "PyTorchProgram":
        """See `FileBackend`."""
        program, wanted = _read(path)
        refuse_shape(path, wanted, input_shape)
        return PyTorchProgram(program, input_shape, self.threads)

    def input_shapes(self, path: Path) -> dict[str, tuple[int | None, ...]]:
        """See `TimingBackend`."""
        return {"images": _read(path)[1]}

    def open_file(self, path: Path, shapes: Mapping[str, Sequence[int]]) -> "PyTorchProgram":
        """See `TimingBackend`."""
        return self.load(path, only_shape(path, shapes))

    def count_operators(self, path: Path) -> dict[str, int]:
        """See `FileBackend`."""
        return count_targets(path)

    def _exported(self, network: nn.Module, conversion: Conversion) -> Any:
        example, free = conversion.capture_inputs()
        try:
            with _quiet(), torch.no_grad():
                program = torch.export.export(
                    lower(network, self.lowering), (example,), dynamic_shapes=free
                )
        except Exception as error:  # PyTorch raises many kinds
            raise QuadranasError(
                f"{type(network).__name__} cannot be exported by PyTorch {torch.__version__}: "
                f"{reason_of(error)}"
            ) from error
        for node in program.graph.nodes:  # other metadata holds paths of this machine, and code
            node.meta = {key: value for key, value in node.meta.items() if key in KEPT_NOTES}
        program.example_inputs = None  # they would be pickled
        program._guards_code = []
        return program

    def provenance(self) -> Provenance:
        """See `Backend`."""
        return Provenance(
            runtime=f"PyTorch {torch.__version__}, eager",
            hardware=cpu_name(),
            versions={"torch": torch.__version__},
            settings={"mkldnn": str(torch.backends.mkldnn.is_available())},
        )

    def close(self) -> None:
        """Nothing to release."""


class PyTorchProgram:
    """An exported network; PyTorch uses the program's number of threads while it runs."""

    def __init__(self, program: Any, input_shape: Sequence[int], threads: int | None) -> None:
        with _quiet():
            # Guards are not needed: `run` checks the input.
            self.module: nn.Module = program.module(check_guards=False)
        self.shape = tuple(input_shape)
        self.threads = threads or torch.get_num_threads()
        self.example = torch.randn(self.shape, generator=torch.Generator().manual_seed(0))

    def run(self, images: Tensor) -> Tensor:
        """See `Program`."""
        if tuple(images.shape) != self.shape:
            raise QuadranasError(f"the program takes {self.shape}, got {tuple(images.shape)}")
        with running_with(self.threads):
            output: Tensor = self.module(images)
        return output.clone()  # a copy made outside inference mode is an ordinary tensor

    def time_ms(self, repeats: int) -> list[float]:
        """See `Program`."""
        module, example = self.module, self.example
        with running_with(self.threads):
            return call_times_ms(lambda: module(example), repeats)


@contextmanager
def running_with(threads: int) -> Iterator[None]:
    """Run inference with a number of threads, and restore the previous number."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            yield
    finally:
        torch.set_num_threads(before)


def _read(path: Path) -> tuple[Any, tuple[int | None, ...]]:
    """The program in a file, and the shape of its input."""
    content = read_archive(path)
    try:
        with _quiet():
            program = torch.export.load(io.BytesIO(content))
        return program, _shape_of(program)
    except Exception as error:  # PyTorch raises many kinds
        raise QuadranasError(
            f"PyTorch {torch.__version__} cannot read {path}: {reason_of(error)}",
            "Convert the network again.",
        ) from error


def _shape_of(program: Any) -> tuple[int | None, ...]:
    """The input's sizes; `None` for any size."""
    (name,) = program.graph_signature.user_inputs
    (value,) = (node.meta["val"] for node in program.graph.nodes if node.name == name)
    return tuple(size if isinstance(size, int) else None for size in value.shape)


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the warnings of torch.export (torch 2.13)."""
    logger = logging.getLogger("torch.export")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
