"""ExecuTorch with XNNPACK, PyTorch's runtime for small devices, on this machine's CPU.

Written for ExecuTorch 1.4.1. Its thread pool belongs to the process and is used by all loaded
programs, so its size can only change while none is loaded (`_unsafe_reset_threadpool`).
"""

import logging
import warnings
import weakref
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
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
from quadranas.errors import QuadranasError
from quadranas.files import write_atomically
from quadranas.latency.device import Device
from quadranas.latency.host import cpu_name
from quadranas.latency.processor import call_times_ms
from quadranas.latency.runtimes import RUNTIMES

FACTS = RUNTIMES["executorch"]
METHOD = "forward"
LOADED: "weakref.WeakSet[ExecuTorchProgram]" = weakref.WeakSet()
"""The loaded programs."""


class ExecuTorchBackend(Backend):
    """Runs fp32; XNNPACK runs the operators that it has kernels for."""

    max_parallel = 1
    # No pass made a network faster. XNNPACK has no kernel for LayerNorm, nor for the means of its
    # decomposed form, which takes three times as long (experiments/lowering/).
    lowering = ("fold_batch_norm",)

    def __init__(self, device: Device, records: Path) -> None:
        with _quiet():
            FACTS.require()
        check_host_device(device, FACTS.title)
        self.threads = device.threads

    def compile(self, network: nn.Module, input_shape: Sequence[int]) -> "ExecuTorchProgram":
        """See `Backend`."""
        content = self._content(network, Conversion(input_shape=as_shape(input_shape)))
        return ExecuTorchProgram(content, input_shape, self.threads)

    def convert(self, network: nn.Module, conversion: Conversion, path: Path) -> ConvertedFile:
        """See `FileBackend`: one file (.pte) for any processor that XNNPACK supports."""
        conversion.check(FACTS)
        write_atomically(path, self._content(network, conversion))
        return ConvertedFile(path=path, passes=self.lowering)

    def load(self, path: Path, input_shape: Sequence[int]) -> "ExecuTorchProgram":
        """See `FileBackend`."""
        content = _read(path)
        try:
            return ExecuTorchProgram(content, input_shape, self.threads)
        except RuntimeError as error:
            raise _damaged(path, error) from error
        except QuadranasError as error:
            raise QuadranasError(f"{path}: {error.message}", error.hint) from error

    def input_shapes(self, path: Path) -> dict[str, tuple[int | None, ...]]:
        """See `TimingBackend`."""
        content = _read(path)
        try:
            with _quiet():
                from executorch.runtime import Runtime

                program = Runtime.get().load_program(content)
                return {
                    "images": tuple(
                        program.load_method(METHOD).metadata.input_tensor_meta(0).sizes()
                    )
                }
        except RuntimeError as error:
            raise _damaged(path, error) from error

    def open_file(self, path: Path, shapes: Mapping[str, Sequence[int]]) -> "ExecuTorchProgram":
        """See `TimingBackend`."""
        return self.load(path, only_shape(path, shapes))

    def count_operators(self, path: Path) -> dict[str, int]:
        """See `FileBackend`: XNNPACK's operators are called `XNNConv2d` and so on."""
        from quadranas.backends.executorch_reader import operators_of

        content = _read(path)
        try:
            with _quiet():
                return dict(Counter(operators_of(content)).most_common())
        except Exception as error:  # ExecuTorch's parsers raise many kinds
            raise _damaged(path, error) from error

    def _content(self, network: nn.Module, conversion: Conversion) -> bytes:
        # Weights of one input channel in channels_last are ambiguous to the partitioner.
        lowered = lower(network, self.lowering).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        try:
            with _quiet(), torch.no_grad():
                from executorch.backends.xnnpack.partition.xnnpack_partitioner import (
                    XnnpackPartitioner,
                )
                from executorch.exir import to_edge_transform_and_lower

                exported = torch.export.export(lowered, (torch.zeros(*conversion.input_shape),))
                program = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()])
                return bytes(program.to_executorch().buffer)
        except Exception as error:  # PyTorch and ExecuTorch raise many kinds
            raise QuadranasError(
                f"{type(network).__name__} cannot be converted for ExecuTorch: {reason_of(error)}"
            ) from error

    def provenance(self) -> Provenance:
        """See `Backend`."""
        return Provenance(
            runtime=f"ExecuTorch {version('executorch')} (XNNPACK)",
            hardware=cpu_name(),
            versions={name: version(name) for name in ("executorch", "torchao")}
            | {"torch": torch.__version__},
        )

    def close(self) -> None:
        """Nothing to release."""


class ExecuTorchProgram:
    """A loaded program.

    Raises:
        RuntimeError: ExecuTorch cannot read it.
        QuadranasError: it takes inputs of another shape.
    """

    def __init__(self, content: bytes, input_shape: Sequence[int], threads: int | None) -> None:
        self.shape = tuple(input_shape)
        _use(threads)
        with _quiet():
            from executorch.runtime import Runtime

            self.program: Any = Runtime.get().load_program(content)  # the method reads from it
            self.method: Any = self.program.load_method(METHOD)
        wanted = tuple(self.method.metadata.input_tensor_meta(0).sizes())
        refuse_shape("the program", wanted, self.shape)
        self.example = torch.randn(self.shape, generator=torch.Generator().manual_seed(0))
        LOADED.add(self)

    def run(self, images: Tensor) -> Tensor:
        """See `Program`."""
        if tuple(images.shape) != self.shape:
            raise QuadranasError(f"the program takes {self.shape}, got {tuple(images.shape)}")
        # Other memory formats would be read as this one (1.4.1).
        (output,) = self.method.execute([images.detach().contiguous()])
        return output.clone()  # type: ignore[no-any-return]

    def time_ms(self, repeats: int) -> list[float]:
        """See `Program`."""
        execute, example = self.method.execute, [self.example]
        return call_times_ms(lambda: execute(example), repeats)


def _use(threads: int | None) -> None:
    """Set the number of threads of all programs in this process.

    Raises:
        QuadranasError: loaded programs run with another number.
    """
    with _quiet():
        from executorch.extension.pybindings import portable_lib

        running = portable_lib._threadpool_get_thread_count()
        if threads in (None, running):
            return
        if len(LOADED):
            raise QuadranasError(
                f"ExecuTorch cannot run with {threads} threads: programs loaded in this process "
                f"run with {running}",
                "Delete them first, or use another process.",
            )
        portable_lib._unsafe_reset_threadpool(threads)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise QuadranasError(f"cannot read {path}: {error.strerror or error}") from error


def _damaged(path: Path, error: Exception) -> QuadranasError:
    return QuadranasError(
        f"{path} is not an ExecuTorch program, or it is damaged: {error}",
        "Convert the network again.",
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the warnings of ExecuTorch's packages (executorch 1.4.1, torchao 0.18)."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
