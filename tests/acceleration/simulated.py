"""An accelerator that is simulated: its tensors compute on the processor, and are not its own.

Operations refuse to mix them with tensors of the processor, as a real accelerator does, and what
the processor reads of them is counted. Once imported, PyTorch knows a device `simulated`.
"""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map
from torch.utils.backend_registration import (
    _DummyBackendModule,
    _setup_privateuseone_for_python_backend,
)

NAME = "simulated"
aten = torch.ops.aten

READS: list[str] = []
"""What the processor has read of the accelerator's tensors, and so waited for."""


class Module(_DummyBackendModule):
    """What PyTorch asks a backend for."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    def is_available(self) -> bool:
        return True

    def device_count(self) -> int:
        return 1

    def current_device(self) -> int:
        return 0


_setup_privateuseone_for_python_backend(NAME, backend_module=Module())


class OnDevice(torch.Tensor):
    """A tensor on the simulated accelerator; `held` holds its values."""

    held: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> "OnDevice":
        tensor = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=torch.device(NAME, 0),
            requires_grad=inner.requires_grad,
        )
        tensor.held = inner.detach()
        return tensor

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return dispatch(func, args, kwargs or {})


def dispatch(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run an operation on the values; refuse to mix devices."""
    if func is aten._local_scalar_dense.default or func is aten.is_nonzero.default:
        READS.append(str(func))
        return func(args[0].held)
    target = kwargs.get("device")
    if func is aten._to_copy.default:
        source = args[0]
        if target is not None and torch.device(target).type == "cpu":
            READS.append(str(func))
            return func(source.held, **kwargs)
        inner = source.held if isinstance(source, OnDevice) else source
        return OnDevice(func(inner, **{k: v for k, v in kwargs.items() if k != "device"}))
    if func is aten.copy_.default:
        into, source = args[:2]
        if not isinstance(into, OnDevice):
            READS.append(str(func))
        aten.copy_(*(t.held if isinstance(t, OnDevice) else t for t in (into, source)))
        return into
    flat: list[Tensor] = []
    tree_map(lambda x: flat.append(x) if isinstance(x, Tensor) else None, (args, kwargs))
    strangers = [t for t in flat if not isinstance(t, OnDevice) and t.ndim > 0]
    if strangers:
        raise RuntimeError(
            f"{func} mixes devices: a tensor of shape {tuple(strangers[0].shape)} was left behind"
        )
    if target is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    unwrapped = tree_map(lambda x: x.held if isinstance(x, OnDevice) else x, (args, kwargs))
    result = func(*unwrapped[0], **unwrapped[1])
    known = {id(t.held): t for t in flat if isinstance(t, OnDevice)}

    def wrapped(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return known[id(value)] if id(value) in known else OnDevice(value)

    return tree_map(wrapped, result)


library = torch.library.Library("aten", "IMPL")


def _empty(size: Any, *, memory_format: Any = None, dtype: Any = None, **_: Any) -> Tensor:
    order = memory_format or torch.contiguous_format
    return OnDevice(torch.empty(size, dtype=dtype, memory_format=order))


def _empty_strided(size: Any, stride: Any, *, dtype: Any = None, **_: Any) -> Tensor:
    return OnDevice(torch.empty_strided(size, stride, dtype=dtype))


library.impl("empty.memory_format", _empty, "PrivateUse1")
library.impl("empty_strided", _empty_strided, "PrivateUse1")


def count_reads(phases: Iterable[type], path: Path) -> None:
    """Have the phases write, for each step, its phase, its values and how often it waited."""

    def counted(step: Callable[..., Any]) -> Callable[..., Any]:
        def counting(phase: Any, number: int) -> Any:
            READS.clear()
            values = step(phase, number)
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps([phase.name, sorted(values), READS]) + "\n")
            return values

        return counting

    for phase in phases:
        phase.step = counted(phase.step)  # type: ignore[attr-defined]
