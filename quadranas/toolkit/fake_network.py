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
def without_memory(model: nn.Module, input_shape: Sequence[int]) -> Iterator[None]:
    """A context in which new tensors are fake, and failures tell what of the model is to blame.

    Raises:
        QuadranasError: the model does not take the input, or computes shapes from values.
    """
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
            "Measure it instead: quadranas.toolkit.measure_memory.",
        ) from error
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise QuadranasError(
            f"{name} does not train on an input of shape {tuple(input_shape)}: {error}"
        ) from error


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
