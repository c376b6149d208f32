"""Candidates that share weights: each is a part of the largest candidate of its slot.

Source: once-for-all, Cai et al., ICLR 2020 (arXiv:1908.09791), Sec. 3.2, elastic kernels and
widths. A smaller kernel is the centre of the largest, without OFA's transformation matrices; a
smaller expansion is the first hidden units. So every step trains a part of every candidate.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import chain
from typing import Any

import torch
from torch import Size, Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from quadranas.acceleration.batch_norm import synchronize
from quadranas.layers import build_op
from quadranas.layers.quadratic import QuadraticLayer
from quadranas.layers.resizing import part_of
from quadranas.space.operation import OpSpec


def largest_of(specs: Sequence[OpSpec]) -> OpSpec:
    """The operation with the largest kernel and the largest expansion among candidates."""
    changes = {
        "kernel_size": max(spec.kernel_size for spec in specs),
        "expand_ratio": max(spec.expand_ratio for spec in specs),
    }
    return specs[0].model_copy(update=changes)


@lru_cache(maxsize=256)
def can_nest(specs: tuple[OpSpec, ...]) -> bool:
    """Whether the weights of all candidates are parts of those of the largest one.

    An `mbconv` of expansion 1 has no convolution that expands, and so is no part of a larger one.
    """
    largest = _shapes(largest_of(specs))
    return all(_are_parts(_shapes(spec), largest) for spec in specs)


def _shapes(spec: OpSpec) -> dict[str, Size]:
    with torch.device("meta"):
        return {name: tensor.shape for name, tensor in _tensors(build_op(spec))}


def _are_parts(shapes: dict[str, Size], whole: dict[str, Size]) -> bool:
    return shapes.keys() == whole.keys() and all(
        len(shape) == len(whole[name])
        and all(want <= have for want, have in zip(shape, whole[name], strict=True))
        for name, shape in shapes.items()
    )


class NestedCandidate(nn.Module):
    """A candidate that computes with a part of the weights of the largest one.

    Args:
        form: the candidate by itself, without memory for its weights.
        shared: the largest candidate, whose weights these are (`can_nest`).
        sources: the candidate's tensors whose names differ in the largest one, and these names.
    """

    def __init__(
        self,
        form: nn.Module,
        shared: nn.Module,
        sources: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        # In tuples, so that the weights are not registered a second time.
        self._shared, self._form = (shared,), (form,)
        self._shapes = {name: tensor.shape for name, tensor in _tensors(form)}
        self._sources = {name: (sources or {}).get(name, name) for name in self._shapes}

    def forward(self, x: Tensor) -> Tensor:
        """The operation on its part of the weights; shapes are those of the operation."""
        (form,) = self._form
        self._copy_modes()
        y: Tensor = functional_call(form, self.tensors(), (x,), strict=True)
        return y

    def _copy_modes(self) -> None:
        """Training or evaluation, and the state of norms and second-order terms, as there."""
        (shared,), (form,) = self._shared, self._form
        modules = dict(shared.named_modules())
        for name, here in form.named_modules():
            there = modules.get(name, shared)
            here.training = there.training
            if isinstance(here, BatchNorm) and isinstance(there, BatchNorm):
                here.track_running_stats = there.track_running_stats
                here.momentum = there.momentum
            if isinstance(here, QuadraticLayer) and isinstance(there, QuadraticLayer):
                here.second_order_factor = there.second_order_factor

    def tensors(self) -> dict[str, Tensor]:
        """The parts of the weights and buffers, as views."""
        (shared,) = self._shared
        whole = dict(_tensors(shared))
        return {
            name: part_of(whole[self._sources[name]], shape)
            for name, shape in self._shapes.items()
        }

    def parts(self) -> dict[nn.Parameter, Size]:
        """Which of the largest candidate's weights the operation uses: the shape of its part."""
        (shared,) = self._shared
        whole = dict(_tensors(shared))
        used = {whole[self._sources[name]]: shape for name, shape in self._shapes.items()}
        return {tensor: s for tensor, s in used.items() if isinstance(tensor, nn.Parameter)}

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Parameter]]:
        """Those of the largest candidate, which a step on this one changes."""
        (shared,) = self._shared
        return shared.named_parameters(*args, **kwargs)

    def state_dict(  # type: ignore[override]
        self, *args: Any, **kwargs: Any
    ) -> dict[str, Tensor]:
        """The tensors of the operation by itself, for a network that inherits them."""
        tensors = self.tensors()
        return {name: tensors[name].detach() for name in self._form[0].state_dict()}

    def synchronize(self) -> None:
        """Have BatchNorm use the statistics of all processes."""
        synchronize(self._form[0])


def nested_candidate(spec: OpSpec, shared: nn.Module) -> NestedCandidate:
    """A candidate of a slot whose largest one is `shared`."""
    with torch.device("meta"):
        form = build_op(spec)
    return NestedCandidate(form, shared)


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return chain(module.named_parameters(), module.named_buffers())
