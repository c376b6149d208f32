"""The algebra of quadratic layers, and a back-propagation that stores only their input.

Source: QuadraLib, Xu et al., MLSys 2022 (arXiv:2204.01701), the neuron types and "hybrid
back-propagation"; QuadraNet, Xu et al., ASP-DAC 2024 (arXiv:2311.17956), Sec. III.

A quadratic layer consists of first-order branches `a`, `b`, `c` (linear maps or convolutions of
one shape) and, in the bilinear forms, a matrix per output.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from quadranas.layers.first_order import FirstOrderMap


def quadratic_forms(patches: Tensor, matrices: Tensor) -> Tensor:
    """The value of every neuron's quadratic form `x^T W x`.

    Args:
        patches: the inputs x, (B, G, n, P): G groups, n inputs, P positions.
        matrices: the weights W, (outputs, n, n), ordered by group.

    Returns: (B, outputs, P).
    """
    batch, groups, fan_in, positions = patches.shape
    rows = patches.transpose(2, 3).reshape(batch, groups, positions, fan_in)
    stacked = matrices.reshape(groups, -1, fan_in)  # (G, O n, n): row i of every matrix
    images = rows @ stacked.transpose(1, 2)  # (B, G, P, O n)
    images = images.reshape(batch, groups, positions, -1, fan_in)
    values = torch.einsum("bgpoi,bgpi->bgop", images, rows)
    return values.reshape(batch, -1, positions)


def combine(form: str, outputs: Sequence[Tensor]) -> Tensor:
    """The value of a form, computed from the outputs of its branches."""
    if form in ("linear", "input_square", "bilinear"):
        return outputs[0]
    if form == "output_square":
        return outputs[0].square()
    if form == "product":
        return outputs[0] * outputs[1]
    return torch.addcmul(outputs[2], outputs[0], outputs[1])


def _branch_gradients(form: str, gradient: Tensor, outputs: Sequence[Tensor]) -> list[Tensor]:
    """The gradients in the branches' outputs; `outputs` are those of `a` and `b`."""
    if form in ("linear", "input_square"):
        return [gradient]
    if form == "output_square":
        return [2 * gradient * outputs[0]]
    factors = [gradient * outputs[1], gradient * outputs[0]]
    return [*factors, gradient] if form == "hadamard" else factors


class Branch(NamedTuple):
    """The tensors of a branch: its weights, and those of its norm if it has one."""

    weight: Tensor
    bias: Tensor | None
    scale: Tensor | None = None
    shift: Tensor | None = None


def direct(
    form: str,
    operator: FirstOrderMap,
    x: Tensor,
    branches: Sequence[Branch],
    norms: Sequence[BatchNorm],
) -> Tensor:
    """The value of a factorised form; autograd stores the branches' outputs.

    Args:
        norms: one per branch, or empty.
    """
    return combine(form, _outputs(form, operator, x, branches, norms))


def recomputed(
    form: str,
    operator: FirstOrderMap,
    x: Tensor,
    branches: Sequence[Branch],
    norms: Sequence[BatchNorm],
) -> Tensor:
    """The value of a factorised form; only `x` and the weights are stored for the backward pass.

    The backward pass recomputes the branches `a` and `b` and applies the symbolic derivative: with
    `u = a(x)`, `v = b(x)` and `g` the output's gradient, `a` receives `g v`, `b` receives `g u`
    and `c` receives `g`.
    Source: QuadraLib, Xu et al., MLSys 2022 (arXiv:2204.01701), there for linear maps.

    Args:
        norms: one per branch, in training mode, or empty.
    """
    flat = [tensor for branch in branches for tensor in branch]
    y: Tensor = _Recomputed.apply(form, operator, norms, x, *flat)  # type: ignore[no-untyped-call]
    return y


class _Recomputed(torch.autograd.Function):
    """See `recomputed`."""

    @staticmethod
    def forward(
        form: str,
        operator: FirstOrderMap,
        norms: Sequence[BatchNorm],
        x: Tensor,
        *flat: Tensor | None,
    ) -> Tensor:
        outputs = _outputs(form, operator, x, _branches(flat), norms)
        if form == "hadamard" and not norms:
            return outputs[2].addcmul_(outputs[0], outputs[1])
        y = combine(form, outputs)
        # A norm's output is a view here. PyTorch forbids in-place changes of a view that a custom
        # function returns, such as a following `ReLU(inplace=True)`.
        return y.clone() if norms and y is outputs[0] else y

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.form, ctx.operator, norms, x, *flat = inputs
        ctx.norm_eps = norms[0].eps if norms else None
        ctx.save_for_backward(x, *flat)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        form, operator, eps = ctx.form, ctx.operator, ctx.norm_eps
        x, *flat = ctx.saved_tensors
        branches, needs_grad = _branches(flat), ctx.needs_input_grad[4:]
        inputs = x.square() if form == "input_square" else x
        # A norm's own gradient needs its input, so with norms every branch is recomputed.
        num_maps = len(branches) if eps is not None else SECOND_ORDER_BRANCHES.get(form, 0)
        maps = [operator(inputs, branch.weight, branch.bias) for branch in branches[:num_maps]]
        outputs = maps
        if eps is not None:
            outputs = [
                _normalised(operator, m, b, eps) for m, b in zip(maps, branches, strict=True)
            ]
        of_branches: list[Tensor | None] = []
        total: Tensor | None = None
        for index, part in enumerate(_branch_gradients(form, gradient, outputs)):
            norm_gradients: Sequence[Tensor | None] = (None, None)
            if eps is not None:
                part, *norm_gradients = _norm_backward(
                    operator, part, maps[index], branches[index], eps
                )
            # Each branch has four flat tensors: weight, bias, scale and shift.
            mask = (ctx.needs_input_grad[3], needs_grad[4 * index], needs_grad[4 * index + 1])
            of_input, weight, bias = operator.backward(part, inputs, branches[index].weight, mask)
            of_branches += [weight, bias, *norm_gradients]
            if of_input is not None:
                total = of_input if total is None else total.add_(of_input)
        if form == "input_square" and total is not None:
            total = 2 * x * total
        return None, None, None, total, *of_branches


SECOND_ORDER_BRANCHES = {"output_square": 1, "product": 2, "hadamard": 2}
"""The number of leading branches whose outputs occur in the symbolic derivative."""


def _branches(flat: Sequence[Tensor | None]) -> list[Branch]:
    return [Branch(*flat[start : start + 4]) for start in range(0, len(flat), 4)]  # type: ignore[arg-type]


def _outputs(
    form: str,
    operator: FirstOrderMap,
    x: Tensor,
    branches: Sequence[Branch],
    norms: Sequence[BatchNorm],
) -> list[Tensor]:
    inputs = x.square() if form == "input_square" else x
    outputs = [operator(inputs, branch.weight, branch.bias) for branch in branches]
    if not norms:
        return outputs
    return [
        norm(operator.normed_view(output)).view_as(output)
        for norm, output in zip(norms, outputs, strict=True)
    ]


def _normalised(operator: FirstOrderMap, output: Tensor, branch: Branch, eps: float) -> Tensor:
    """BatchNorm with the statistics of the batch, as in training; no running averages."""
    view = operator.normed_view(output)
    scaled = functional.batch_norm(view, None, None, branch.scale, branch.shift, True, 0.0, eps)
    return scaled.view_as(output)


def _norm_backward(
    operator: FirstOrderMap, gradient: Tensor, output: Tensor, branch: Branch, eps: float
) -> tuple[Tensor, ...]:
    """Gradients in a norm's input, scale and shift."""
    with torch.enable_grad():
        assert branch.scale is not None
        assert branch.shift is not None
        tensors = [t.detach().requires_grad_() for t in (output, branch.scale, branch.shift)]
        y = _normalised(
            operator, tensors[0], branch._replace(scale=tensors[1], shift=tensors[2]), eps
        )
        return torch.autograd.grad(y, tensors, gradient)


def autocast(tensor: Tensor | None) -> Any:
    """A tensor in the dtype of the current autocast region; unchanged outside of one."""
    if tensor is None or not torch.amp.is_autocast_available(tensor.device.type):
        return tensor
    kind = tensor.device.type
    on = torch.is_autocast_enabled(kind)
    return tensor.to(torch.get_autocast_dtype(kind)) if on else tensor
