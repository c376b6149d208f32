"""The accelerator: the device of PyTorch that trains, and the precision of its arithmetic."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from quadranas.errors import QuadranasError

Precision = Literal["fp32", "bf16", "fp16"]

AUTOCAST: dict[Precision, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""The type of convolutions and matrix products; weights and sums stay in float32."""

PINNED = ("cuda", "xpu")
"""Accelerators that copy from page-locked memory while the processor goes on."""

PROCESSOR = torch.device("cpu")


@dataclass(frozen=True)
class Accelerator:
    """The hardware that trains.

    Args:
        device: a device of PyTorch.
        precision: `fp32`, or the type of automatic mixed precision (`torch.autocast`).
    """

    device: torch.device = PROCESSOR
    precision: Precision = "fp32"

    @property
    def name(self) -> str:
        """Name for configurations and results, such as `cpu` or `cuda:0`."""
        return str(self.device)

    @property
    def is_cpu(self) -> bool:
        """Whether the processor itself trains."""
        return self.device.type == "cpu"

    def autocast(self) -> AbstractContextManager[object]:
        """The context of a forward pass."""
        dtype = AUTOCAST.get(self.precision)
        return nullcontext() if dtype is None else torch.autocast(self.device.type, dtype=dtype)

    def put(self, tensor: Tensor) -> Tensor:
        """The tensor on the accelerator; the copy does not wait for the accelerator."""
        if self.is_cpu:
            return tensor
        if self.device.type in PINNED and tensor.device.type == "cpu":
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)

    def place(self, module: nn.Module) -> None:
        """Move a module to the accelerator, in place; convolutions become channels_last."""
        if not self.is_cpu:
            module.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def zero(self) -> Tensor:
        """A sum to add to."""
        return torch.zeros((), dtype=widest(self.device), device=self.device)


CPU = Accelerator()


def widest(device: torch.device) -> torch.dtype:
    """The most precise type that a device has, for sums."""
    return torch.float32 if device.type == "mps" else torch.float64


def find_accelerator(
    name: str = "auto", precision: Precision = "fp32", *, local_rank: int = 0
) -> Accelerator:
    """The accelerator of a name, after a small convolution on it.

    Args:
        name: `auto` for the best one there is, `cpu`, or a type such as `cuda`, `mps` or `xpu`,
            with a number (`cuda:1`) to choose among several.
        local_rank: number of this process among those on this machine; without a number in the
            name, each takes an accelerator of its own.

    Raises:
        QuadranasError: there is no such accelerator, it cannot compute in the precision, or there
            are more processes than accelerators.
    """
    kind, _, number = name.partition(":")
    found = torch.accelerator.current_accelerator(check_available=True)
    if name == "cpu" or (name == "auto" and found is None):
        accelerator = Accelerator(precision=precision)
    elif found is None or kind not in ("auto", found.type) or not (number or "0").isdecimal():
        raise _unknown(name)
    else:
        count = torch.accelerator.device_count()
        index = int(number) if number else local_rank
        if number and index >= count:
            raise _unknown(name)
        if index >= count:
            raise QuadranasError(
                f"process {local_rank + 1} on this machine has no accelerator: there are {count} "
                f"of type {found.type}",
                f"Start at most {count} processes here, or train with --accelerator cpu.",
            )
        accelerator = Accelerator(torch.device(found.type, index), precision)
        torch.accelerator.set_device_index(index)
    _try(accelerator)
    return accelerator


def available() -> Iterator[str]:
    """The names of the accelerators that are there."""
    yield "cpu"
    found = torch.accelerator.current_accelerator(check_available=True)
    if found is not None:
        yield from (f"{found.type}:{index}" for index in range(torch.accelerator.device_count()))


def _unknown(name: str) -> QuadranasError:
    there = ", ".join(available())
    hint = "Name one of them, or auto."
    if there == "cpu":
        hint += " For a GPU, install a build of PyTorch for it: https://pytorch.org/get-started/locally"
    return QuadranasError(f"there is no accelerator {name!r}; there is: {there}", hint)


def _try(accelerator: Accelerator) -> None:
    """Run a step of a small convolution, which fails where the precision is not supported."""
    if accelerator.precision == "fp32":
        return
    try:
        images = torch.ones(2, 3, 4, 4, device=accelerator.device)
        weight = torch.ones(4, 3, 3, 3, device=accelerator.device, requires_grad=True)
        with accelerator.autocast():
            output = functional.conv2d(images, weight)
        output.float().sum().backward()
        is_right = bool(torch.isfinite(output).all()) and weight.grad is not None
    except RuntimeError as error:
        raise _unsupported(accelerator) from error
    if not is_right:
        raise _unsupported(accelerator)


def _unsupported(accelerator: Accelerator) -> QuadranasError:
    return QuadranasError(
        f"accelerator {accelerator.name} cannot compute in {accelerator.precision}",
        "Use --precision fp32, which every accelerator has.",
    )
