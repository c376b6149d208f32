"""Networks whose tensors have shapes, layouts and life times, but no memory."""

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
    """A context in which new tensors are fake, and failures tell what of the model is to blame.

    Raises:
        QuadranasError: the model does not take the input, has nothing to train or computes shapes
            from values, or the device is not here.
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
            f"the memory of {name} cannot be predicted: {error.func} depends on values, or has no "
            "rule for its shape",
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
            "Set requires_grad on what is to be trained.",
        )
    kind = device.partition(":")[0]
    if kind not in ("cpu", "cuda") or (kind == "cuda" and not torch.cuda.is_available()):
        # Without CUDA, PyTorch 2.13 ends the process when autograd meets such a tensor
        raise QuadranasError(
            f"memory cannot be predicted for device {device!r} here; accepted: cpu, and cuda "
            "where PyTorch finds a GPU"
        )


def fake_copy(model: nn.Module, device: str) -> Any:
    """The model with fake tensors; its own are not copied."""
    fakes: dict[int, Any] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        fake = torch.empty_strided(
            tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device
        )
        if isinstance(tensor, nn.Parameter):
            fake = nn.Parameter(fake, requires_grad=tensor.requires_grad)
        fakes[id(tensor)] = fake
    return copy.deepcopy(model, fakes)
