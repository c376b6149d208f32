"""Machines whose times are scripted, and real files of networks that are written only once."""

import abc
import fcntl
import functools
import hashlib
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from random import Random

import pytest
import torch
from torch import Tensor, nn

import quadranas.backends.onnxruntime
import quadranas.backends.openvino
import quadranas.backends.openvino2021
from quadranas.backends.executorch import ExecuTorchBackend
from quadranas.backends.interface import Backend, Conversion, Program, Provenance
from quadranas.backends.litert_converter import VARIABLE, Converter
from quadranas.backends.lowering import lower
from quadranas.backends.onnx_file import TRACED_OPSETS, to_onnx
from quadranas.backends.tvm import TvmBackend
from quadranas.files import write_atomically
from quadranas.latency.device import Device
from quadranas.latency.processor import CallTimes
from quadranas.measurement.probes import REFERENCE_OP, chain_probe, network_probe
from quadranas.space.architecture import Architecture
from quadranas.space.operation import OpSpec

WRITE_EXECUTORCH, BUILD_TVM = ExecuTorchBackend._content, TvmBackend._build
WRITE_LITERT = Converter.convert


def remember_exports(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """Keep what exporters and compilers write, which takes longer than everything else together.

    It is the same file for the same network every time; processes that name one folder share it.
    """

    def remembered(network: nn.Module, settings: str, make: Callable[[], bytes]) -> bytes:
        digest = hashlib.sha256(f"{network} {settings}".encode())
        for name, tensor in network.state_dict().items():
            digest.update(name.encode() + tensor.numpy().tobytes())
        path = folder / digest.hexdigest()
        with path.with_suffix(".lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not path.is_file():
                write_atomically(path, make())
        return path.read_bytes()

    def remembered_onnx(network: nn.Module, conversion: Conversion) -> bytes:
        return remembered(network, f"ONNX {conversion}", lambda: to_onnx(network, conversion))

    def remembered_executorch(
        backend: ExecuTorchBackend, network: nn.Module, conversion: Conversion
    ) -> bytes:
        return remembered(
            lower(network, backend.lowering),
            f"ExecuTorch {conversion}",
            lambda: WRITE_EXECUTORCH(backend, network, conversion),
        )

    def remembered_litert(
        converter: Converter, network: nn.Module, shape: tuple[int, ...], **options: bool
    ) -> bytes:
        return remembered(
            *(network, f"LiteRT {shape} {options}"),
            lambda: WRITE_LITERT(converter, network, shape, **options),
        )

    def remembered_tvm(
        backend: TvmBackend, network: nn.Module, input_shape: Sequence[int], path: Path
    ) -> None:
        def build() -> bytes:
            BUILD_TVM(backend, network, input_shape, path)
            return path.read_bytes()

        if backend.tuner is not None:
            build()
            return
        settings = f"TVM {tuple(input_shape)} {backend.target} {backend.command}"
        path.write_bytes(remembered(lower(network, backend.lowering), settings, build))

    _write_with(patch, remembered_onnx, remembered_executorch, remembered_tvm, remembered_litert)


def trace_exports(patch: pytest.MonkeyPatch, runtime: str = "onnxruntime") -> None:
    """Have ONNX Runtime or OpenVINO measure files that are traced, an eighth of the time.

    A table needs some thirty networks. The exporter that writes them otherwise is tested with
    every operation in `tests/contracts/test_backends.py`, and with networks in
    `tests/commands/test_export.py`.
    """
    module = getattr(quadranas.backends, runtime)
    write: Callable[..., bytes] = vars(module)["to_onnx"]

    def traced(network: nn.Module, conversion: Conversion) -> bytes:
        return write(network, replace(conversion, opset=TRACED_OPSETS[0]))

    patch.setattr(module, "to_onnx", traced)


def remember_nothing(patch: pytest.MonkeyPatch) -> None:
    """Write every file anew."""
    _write_with(patch, to_onnx, WRITE_EXECUTORCH, BUILD_TVM, WRITE_LITERT)


def _write_with(
    patch: pytest.MonkeyPatch,
    write_onnx: Callable[..., bytes],
    write_executorch: Callable[..., bytes],
    build_tvm: Callable[..., None],
    write_litert: Callable[..., bytes],
) -> None:
    backends = quadranas.backends
    for module in (backends.onnxruntime, backends.openvino, backends.openvino2021):
        patch.setattr(module, "to_onnx", write_onnx)
    patch.setattr(ExecuTorchBackend, "_content", write_executorch)
    patch.setattr(TvmBackend, "_build", build_tvm)
    patch.setattr(Converter, "convert", write_litert)


REMEMBER = """
from pathlib import Path
import pytest
from tests.measuring import remember_exports
remember_exports(pytest.MonkeyPatch(), Path({folder!r}))
"""
"""The same in another process: the beginning of its prelude."""

TRACE = """
from tests.measuring import trace_exports
trace_exports(pytest.MonkeyPatch())
"""
"""What may follow `REMEMBER` there."""


def quicken_exporters(patch: pytest.MonkeyPatch) -> None:
    """Keep what torch 2.13 makes anew for every export, and takes most of its time for.

    These are the ONNX functions by PyTorch operation, which an export only reads, names for all
    operations of C++, which are the same unless others were registered, and annotations of
    functions, `Callable[...]`, of which an export makes twenty thousand. Nobody reads where in the
    code the nodes of a graph were made.
    """
    import torch._export.utils as exporting
    import torch.fx.config

    patch.setattr(torch.fx.config, "do_not_emit_stack_traces", True, raising=False)
    patch.setattr(torch._ops, "Callable", UnspecifiedCallable)

    name_operations = exporting._materialize_cpp_cia_ops
    named: list[str] = []
    seen: dict[str, tuple[int, int]] = {}

    def name_new_operations() -> None:
        # Thousands of calls for an export; to ask for all operations takes a millisecond.
        loaded = len(sys.modules), len(torch.ops.loaded_libraries)
        if loaded == seen.get("loaded"):
            return
        found = torch._C._dispatch_get_registrations_for_dispatch_key("CompositeImplicitAutograd")
        if found != named:
            name_operations()
            named[:] = found
        seen["loaded"] = loaded

    patch.setattr(exporting, "_materialize_cpp_cia_ops", name_new_operations)
    try:
        from torch.onnx._internal.exporter._registration import ONNXRegistry
    except ImportError:  # without onnxscript no ONNX is written
        return
    made = functools.cache(ONNXRegistry.from_torchlib)
    patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(made))


class UnspecifiedCallable(abc.ABC):  # noqa: B024 # only its `isinstance`
    """`Callable`, which is a quick annotation too."""

    def __class_getitem__(cls, item: object) -> type:
        return cls

    @classmethod
    def __subclasshook__(cls, other: type) -> bool:
        return hasattr(other, "__call__")  # noqa: B004 # not whether the class can be called


class Machine:
    """Takes its time for each operation, and for entering and leaving a shape of feature map.

    Args:
        specs: the operations that it may be asked for.
        networks: the same for whole networks, which it runs `scale` times as slowly.
        alone: how slowly it runs an operation that has nothing beside it.
    """

    null_ms = 0.004

    def __init__(
        self,
        specs: Iterable[OpSpec],
        networks: Iterable[Architecture] = (),
        scale: float = 1.0,
        alone: float = 1.0,
    ) -> None:
        self.scale = scale
        self.alone = alone
        self.specs: dict[tuple[str, int], OpSpec] = {}
        self.networks = {str(network_probe(network)): network for network in networks}
        self.ops_ms: dict[OpSpec, float] = {}
        self.boundaries_ms: dict[tuple[int, int], float] = {}
        for spec in (*specs, REFERENCE_OP):
            self._know(spec)
            for channels, resolution in self.ends(spec):
                keeping = {"in_channels": channels, "out_channels": channels}
                self._know(OpSpec(kind="conv_bn", resolution=resolution, **keeping))

    def _know(self, spec: OpSpec) -> None:
        self.specs[str(chain_probe([spec])[0]), spec.resolution] = spec
        self.ops_ms.setdefault(spec, Random(str(spec)).uniform(0.5, 1.5))
        for shape in self.ends(spec):
            self.boundaries_ms.setdefault(shape, Random(str(shape)).uniform(0, 0.3))

    @staticmethod
    def ends(spec: OpSpec) -> list[tuple[int, int]]:
        """The feature maps that an operation enters and leaves, images and scores apart."""
        found = [(spec.in_channels, spec.resolution), (spec.out_channels, spec.out_resolution)]
        return found[spec.in_channels == 3 : 1 if spec.is_head else 2]

    def network_ms(self, network: nn.Module, shape: Sequence[int]) -> float:
        """What a probe takes."""
        if isinstance(network, nn.ReLU):
            return self.null_ms
        if not isinstance(network, nn.Sequential):
            ops = self.networks[str(network)].ops()
            return self.null_ms + self.scale * sum(self.ops_ms[op] for op in ops)
        specs, resolution = [], shape[2]
        for module in network:
            specs.append(self.specs[str(module), resolution])
            resolution = specs[-1].out_resolution
        first, last = self.ends(specs[0]), self.ends(specs[-1])
        ends = [*first[: specs[0].in_channels > 3], *last[len(last) - (not specs[-1].is_head) :]]
        boundary_ms = sum(self.boundaries_ms[end] for end in ends) / 2
        slower = self.alone if len(specs) == 1 else 1.0
        return self.null_ms + boundary_ms + slower * sum(self.ops_ms[spec] for spec in specs)


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
        lost: the share of the time of a network's calls that they waited for a processor; without
            it that is unknown.
    """

    max_parallel = 1

    def __init__(
        self,
        network_ms: Callable[[nn.Module, Sequence[int]], float],
        before: Callable[[int], None] = lambda count: None,
        *,
        emulated: bool = False,
        lost: Callable[[nn.Module, Sequence[int]], float] | None = None,
    ) -> None:
        self.network_ms = network_ms
        self.lost = lost
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
                times = super().time_ms(repeats)
                if backend.lost is None:
                    return times
                share = backend.lost(network, input_shape)
                return CallTimes(times, [ms * share for ms in times])

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


def measured_by(backend: Backend, patch: pytest.MonkeyPatch) -> None:
    """Have devices of the runtime `onnxruntime` measured by a script."""
    module = quadranas.backends.onnxruntime
    patch.setattr(module, "OnnxRuntimeBackend", lambda device, records: backend)


def skip_without_litert() -> None:
    """Skip a test that writes LiteRT files."""
    pytest.importorskip("ai_edge_litert")
    if VARIABLE not in os.environ and find_spec("litert_torch") is None:
        pytest.skip(
            f"{VARIABLE} names no Python with litert-torch; make one with "
            ".ci/install_litert_converter FOLDER"
        )


def board(**changes: object) -> Device:
    """A device of one's own, without an analytic model."""
    content = {"name": "board", "title": "a board", "runtime": "onnxruntime", "precision": "fp32"}
    return Device.model_validate(content | {"threads": 1} | changes)
