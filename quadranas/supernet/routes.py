"""Routes: the paths of a gate that run in a step, and the gradient of the loss in the gate."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Path = Callable[[Tensor], Tensor]


@dataclass
class Route:
    """The state of one gate in the current step.

    Args:
        active: index of the candidate that computes the output.
        inactive: other candidates for which the backward pass computes dL/dg.
        recompute: run these in the backward pass from the gate's input (memory of one path)
            instead of in the forward pass.
        gradients: dL/dg per candidate, filled by the backward pass.
    """

    active: int = 0
    inactive: tuple[int, ...] = ()
    recompute: bool = False
    gradients: dict[int, Tensor] = field(default_factory=dict)


def take(route: Route, paths: Sequence[Path], x: Tensor) -> Tensor:
    """Run the active path; in an architecture step, also compute dL/dg of the involved paths.

    In an architecture step the weights of all paths must be frozen. Inactive paths run without
    autograd.
    """
    output = paths[route.active](x)
    if not route.inactive or not torch.is_grad_enabled():
        return output
    # With frozen weights no input of the gate may require a gradient, and autograd would then
    # skip its backward pass. The anchor is an input that always does.
    anchor = torch.zeros((), requires_grad=True)
    # Storing keeps the outputs of the inactive paths until the backward pass, which a pair can
    # afford. With all candidates involved they would fill the memory, so each is computed when
    # the backward pass reaches the gate, and dropped.
    with torch.no_grad():
        if route.recompute:
            return _joined(_RecomputingGate, anchor, output, x.detach(), paths, route)
        others = [paths[index](x) for index in route.inactive]
    return _joined(_StoringGate, anchor, output, route, *others)


def _joined(gate: type[torch.autograd.Function], *args: Any) -> Tensor:
    with torch.enable_grad():
        joined: Tensor = gate.apply(*args)
    return joined


class _StoringGate(torch.autograd.Function):
    """Identity on the active output; stores all outputs for `<o_j, dL/dy>` in backward."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, output: Tensor, route: Route, *others: Tensor) -> Tensor:
        ctx.save_for_backward(output, *others)
        ctx.route = route
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        route: Route = ctx.route
        candidates = (route.active, *route.inactive)
        for index, output in zip(candidates, ctx.saved_tensors, strict=True):
            route.gradients[index] = _inner(output, grad)
        return None, grad, None, *(None for _ in route.inactive)


class _RecomputingGate(torch.autograd.Function):
    """The same with the memory of one path: inactive paths run in backward."""

    @staticmethod
    def forward(
        ctx: Any, anchor: Tensor, output: Tensor, x: Tensor, paths: Sequence[Path], route: Route
    ) -> Tensor:
        ctx.save_for_backward(output, x)
        ctx.paths, ctx.route, ctx.autocast = paths, route, _autocast_of(x)
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        output, x = ctx.saved_tensors
        route: Route = ctx.route
        route.gradients[route.active] = _inner(output, grad)
        for index in route.inactive:
            with torch.no_grad(), torch.autocast(x.device.type, **ctx.autocast):
                route.gradients[index] = _inner(ctx.paths[index](x), grad)
        return None, grad, None, None, None


def _autocast_of(x: Tensor) -> dict[str, Any]:
    """The settings of automatic mixed precision, which does not reach into a backward pass."""
    kind = x.device.type
    return {"enabled": torch.is_autocast_enabled(kind), "dtype": torch.get_autocast_dtype(kind)}


def _inner(output: Tensor, grad: Tensor) -> Tensor:
    """`<output, grad>` over all elements, as a scalar in at least float32."""
    if output.dtype != torch.float64:
        output, grad = output.float(), grad.float()
    # channels_last tensors are contiguous in this order, so `reshape` copies nothing.
    if output.ndim == 4:
        output, grad = output.permute(0, 2, 3, 1), grad.permute(0, 2, 3, 1)
    return torch.dot(output.reshape(-1), grad.reshape(-1))
