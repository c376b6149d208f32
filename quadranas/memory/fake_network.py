"""Networks of fake tensors, which have shapes, layouts and lifetimes but no data."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    UnsupportedOperatorException,
)

from quadranas.errors import QuadranasError


@contextmanager
def without_memory(model: nn.Module, input_shape: Sequence[int], device: str) -> Iterator[None]:
    """A context in which new tensors are fake, and failures are explained.

    Raises:
        QuadranasError: the model does not accept the input, has no trainable parameter or
            computes shapes from values, or the device is not available.
    """
    _check(model, input_shape, device)
    name = type(model).__name__
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            yield
    except (
        DataDependentOutputException,
        DynamicOutputShapeException,
        UnsupportedOperatorException,
    ) as error:
        raise QuadranasError(
            f"the memory of {name} cannot be predicted: the output shape of {error.func} depends "
            "on values, or is unknown",
            "Measure it instead: quadranas.memory.measure_memory.",
        ) from error
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise QuadranasError(
            f"{name} does not train on an input of shape {tuple(input_shape)}: {error}"
        ) from error


def _check(model: nn.Module, input_shape: Sequence[int], device: str) -> None:
    if not input_shape or min(input_shape) < 1:
        raise QuadranasError(
            f"input_shape {tuple(input_shape)} must be sizes of at least 1, the batch first"
        )
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise QuadranasError(
            f"{type(model).__name__} has no trainable parameter, so it has no training step",
            "Set requires_grad on the parameters to train.",
        )
    kind = device.partition(":")[0]
    if kind not in ("cpu", "cuda") or (kind == "cuda" and not torch.cuda.is_available()):
        # Without CUDA, PyTorch 2.13 ends the process when autograd meets such a tensor
        raise QuadranasError(
            f"memory cannot be predicted for device {device!r}; accepted: cpu, and cuda if "
            "PyTorch finds a GPU"
        )


def fake_copy(model: nn.Module, device: str) -> Any:
    """A copy of the model with fake tensors; the data of its tensors are not copied."""
    fakes: dict[int, Any] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        fake = torch.empty_strided(
            tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device
        )
        if isinstance(tensor, nn.Parameter):
            fake = nn.Parameter(fake, requires_grad=tensor.requires_grad)
        fakes[id(tensor)] = fake
    return copy.deepcopy(model, fakes)
