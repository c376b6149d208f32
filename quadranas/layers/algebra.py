"""The algebra that all quadratic layers share, and back-propagation that saves only their input.

Source: QuadraLib, Xu et al., MLSys 2022 (arXiv:2204.01701), the neuron types and "hybrid
back-propagation"; QuadraNet, Xu et al., ASP-DAC 2024 (arXiv:2311.17956), Sec. III.

A quadratic layer is made of first-order branches `a`, `b`, `c` (linear maps or convolutions of
one shape) and, in the bilinear forms, of a matrix per output.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from quadranas.errors import unknown


@dataclass(frozen=True, kw_only=True)
class Form:
    """One kind of neuron.

    Args:
        branches: which of the first-order branches it has.
        matrix: whether each output also has a full quadratic form over its inputs.
        equation: with `x` the inputs of a neuron (a patch, for a convolution).
        gains: variances of the branches' outputs, then of the matrix's, with which the layer's
            output has unit variance for independent normal inputs of unit variance.
    """

    branches: tuple[str, ...]
    matrix: bool = False
    equation: str
    gains: tuple[float, ...]

    def params_per_output(self, fan_in: int) -> int:
        """Weights of one neuron with `fan_in` inputs, biases not counted."""
        return len(self.branches) * fan_in + self.matrix * fan_in**2


QUADRATIC_SHARE = 1 / 256
"""Share of the second-order term in the output's variance at the start, beside a linear term.

With shares A and 1 - A the mean square q of a sample follows `q' = A q^2 + (1 - A) q` from layer
to layer: 1 is a fixed point, but an unstable one, so A must be small for a deep stack.
"""

FORMS = {
    "linear": Form(branches=("c",), equation="c(x)", gains=(1.0,)),
    "bilinear": Form(
        branches=("c",),
        matrix=True,
        equation="x^T W x + c(x)",
        gains=(1 - QUADRATIC_SHARE, QUADRATIC_SHARE),
    ),
    "pure_bilinear": Form(branches=(), matrix=True, equation="x^T W x", gains=(1.0,)),
    "input_square": Form(branches=("a",), equation="a(x^2)", gains=(1.0,)),
    # Var[u^2] = 2 Var[u]^2 for a normal u
    "output_square": Form(branches=("a",), equation="a(x)^2", gains=(2**-0.5,)),
    "product": Form(branches=("a", "b"), equation="a(x) * b(x)", gains=(1.0, 1.0)),
    "hadamard": Form(
        branches=("a", "b", "c"),
        equation="a(x) * b(x) + c(x)",
        gains=(QUADRATIC_SHARE**0.5, QUADRATIC_SHARE**0.5, 1 - QUADRATIC_SHARE),
    ),
}
"""The neurons of QuadraLib's comparison by their equations; `linear` is the first-order one."""


FACTORISED = frozenset(FORMS) - {"linear", "bilinear", "pure_bilinear"}
"""The second-order forms made of first-order branches alone."""


def find_form(name: str) -> Form:
    """A form by its name.

    Raises:
        QuadranasError: unknown; the nearest is suggested.
    """
    if name not in FORMS:
        raise unknown("form", name, FORMS)
    return FORMS[name]


class FirstOrderMap(Protocol):
    """What the branches of one layer compute, apart from their weights."""

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The output of a branch."""

    def backward(
        self, gradient: Tensor, x: Tensor, weight: Tensor, mask: tuple[bool, bool, bool]
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Gradients of input, weight and bias; those that the mask asks for."""

    def patches(self, x: Tensor) -> Tensor:
        """The inputs of every neuron: (B, G, n, P), G groups, n inputs, P positions."""

    def arrange(self, values: Tensor, x: Tensor) -> Tensor:
        """Values of neurons, (B, outputs, P), in the shape of the output for an input."""

    def normed_view(self, output: Tensor) -> Tensor:
        """A branch's output with its channels on axis 1, where BatchNorm expects them."""


@dataclass(frozen=True)
class LinearMap:
    """A matrix on the last axis."""

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Shapes: (..., n) to (..., m)."""
        return functional.linear(x, weight, bias)

    def backward(
        self, gradient: Tensor, x: Tensor, weight: Tensor, mask: tuple[bool, bool, bool]
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """See `FirstOrderMap`."""
        rows = gradient.reshape(-1, gradient.shape[-1])
        return (
            gradient @ weight if mask[0] else None,
            rows.T @ x.reshape(-1, x.shape[-1]) if mask[1] else None,
            rows.sum(0) if mask[2] else None,
        )

    def patches(self, x: Tensor) -> Tensor:
        """See `FirstOrderMap`; shape (1, 1, n, rows)."""
        return x.reshape(1, 1, -1, x.shape[-1]).transpose(2, 3)

    def arrange(self, values: Tensor, x: Tensor) -> Tensor:
        """See `FirstOrderMap`."""
        return values[0].T.reshape(*x.shape[:-1], -1)

    def normed_view(self, output: Tensor) -> Tensor:
        """See `FirstOrderMap`."""
        return output.reshape(-1, output.shape[-1])


CONVOLUTIONS = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}


@dataclass(frozen=True, kw_only=True)
class Convolution:
    """A convolution over one, two or three axes, zero-padded."""

    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    def _convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None, groups: int) -> Tensor:
        convolve = CONVOLUTIONS[len(self.kernel_size)]
        return convolve(x, weight, bias, self.stride, self.padding, self.dilation, groups)

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Shapes: (B, C, *size) to (B, C', *size')."""
        return self._convolve(x, weight, bias, self.groups)

    def backward(
        self, gradient: Tensor, x: Tensor, weight: Tensor, mask: tuple[bool, bool, bool]
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """See `FirstOrderMap`.

        The bias's gradient is a sum of its own: oneDNN, asked for it with the weight's, takes 1.3
        to 3 times as long for depthwise kernels of 5 and 7 (torch 2.13, one core of an EPYC).
        """
        axes = range(2, gradient.ndim)
        turned = mask[0] and self._turns(weight)
        along, along_weight, _ = torch.ops.aten.convolution_backward(
            gradient,
            x,
            weight,
            None,
            self.stride,
            self.padding,
            self.dilation,
            False,  # not transposed
            [0] * len(self.stride),
            self.groups,
            [mask[0] and not turned, mask[1], False],
        )
        if turned:
            along = self._turned(gradient, weight)
        return along, along_weight, gradient.sum((0, *axes)) if mask[2] else None

    def _turns(self, weight: Tensor) -> bool:
        """Whether the input's gradient is quicker had by `_turned`.

        So for dilated depthwise convolutions on the CPU: 0.4 ms against 5.2 (torch 2.13, 64 x 72
        channels x 16 x 16, 3x3, dilation 2, one core of an AMD EPYC, 2026-11-21).
        """
        depthwise = weight.shape[:2] == (self.groups, 1)
        fits = all(p <= span for p, span in zip(self.padding, self._spans(), strict=True))
        dilated = max(self.dilation) > 1 and max(self.stride) == 1
        return depthwise and dilated and fits and weight.device.type == "cpu"

    def _turned(self, gradient: Tensor, weight: Tensor) -> Tensor:
        """The input's gradient as a convolution with the turned kernels."""
        margin = tuple(span - p for span, p in zip(self._spans(), self.padding, strict=True))
        kernels = weight.flip(list(range(2, weight.dim())))
        return replace(self, padding=margin)(gradient, kernels, None)

    def _spans(self) -> list[int]:
        return [d * (k - 1) for d, k in zip(self.dilation, self.kernel_size, strict=True)]

    def patches(self, x: Tensor) -> Tensor:
        """See `FirstOrderMap`; cut out by a convolution, which works in every dimension."""
        batch, channels = x.shape[:2]
        size = torch.Size(self.kernel_size).numel()
        cut = torch.eye(size, dtype=x.dtype, device=x.device).reshape(size, 1, *self.kernel_size)
        cut = cut.repeat(channels, *(1 for _ in cut.shape[1:]))  # (C K, 1, *kernel)
        patches = self._convolve(x, cut, None, channels)  # (B, C K, *size')
        return patches.reshape(batch, self.groups, channels // self.groups * size, -1)

    def arrange(self, values: Tensor, x: Tensor) -> Tensor:
        """See `FirstOrderMap`."""
        windows = zip(
            x.shape[2:], self.kernel_size, self.stride, self.padding, self.dilation, strict=True
        )
        size = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in windows]
        return values.reshape(*values.shape[:2], *size)

    def normed_view(self, output: Tensor) -> Tensor:
        """See `FirstOrderMap`."""
        return output


def quadratic_forms(patches: Tensor, matrices: Tensor) -> Tensor:
    """The value of every neuron's quadratic form.

    Args:
        patches: (B, G, n, P).
        matrices: (outputs, n, n), the outputs of a group together.

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
    """A factorised form of its branches' outputs."""
    if form in ("linear", "input_square", "bilinear"):
        return outputs[0]
    if form == "output_square":
        return outputs[0].square()
    if form == "product":
        return outputs[0] * outputs[1]
    return torch.addcmul(outputs[2], outputs[0], outputs[1])


def _branch_gradients(form: str, gradient: Tensor, outputs: Sequence[Tensor]) -> list[Tensor]:
    """The gradients of the branches' outputs; `outputs` are those of `a` and `b`."""
    if form in ("linear", "input_square"):
        return [gradient]
    if form == "output_square":
        return [2 * gradient * outputs[0]]
    found = [gradient * outputs[1], gradient * outputs[0]]
    return [*found, gradient] if form == "hadamard" else found


class Branch(NamedTuple):
    """The tensors of a branch: its weights, and its norm's if it has one."""

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
    """A factorised form, differentiated by autograd, which keeps the branches' outputs.

    Args:
        norms: one per branch, or none.
    """
    return combine(form, _outputs(form, operator, x, branches, norms))


def recomputed(
    form: str,
    operator: FirstOrderMap,
    x: Tensor,
    branches: Sequence[Branch],
    norms: Sequence[BatchNorm],
) -> Tensor:
    """A factorised form that keeps only `x` and the weights for its backward pass.

    The backward pass computes the branches `a` and `b` once more and applies the symbolic
    derivative: with `u = a(x)`, `v = b(x)` and `g` the output's gradient, `a` receives `g v`,
    `b` receives `g u` and `c` receives `g`.
    Source: QuadraLib, Xu et al., MLSys 2022 (arXiv:2204.01701), there for linear maps.

    Args:
        norms: one per branch, in training, or none.
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
        # A norm's output is a view here, and what follows may not change such a one in place.
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
        branches, wanted = _branches(flat), ctx.needs_input_grad[4:]
        at = x.square() if form == "input_square" else x
        needed = len(branches) if eps is not None else SECOND_ORDER_BRANCHES.get(form, 0)
        maps = [operator(at, branch.weight, branch.bias) for branch in branches[:needed]]
        outputs = maps
        if eps is not None:
            outputs = [
                _normalised(operator, m, b, eps) for m, b in zip(maps, branches, strict=True)
            ]
        found: list[Tensor | None] = []
        total: Tensor | None = None
        for index, part in enumerate(_branch_gradients(form, gradient, outputs)):
            norm_gradients: Sequence[Tensor | None] = (None, None)
            if eps is not None:
                part, *norm_gradients = _norm_backward(
                    operator, part, maps[index], branches[index], eps
                )
            masks = (ctx.needs_input_grad[3], wanted[4 * index], wanted[4 * index + 1])
            along, weight, bias = operator.backward(part, at, branches[index].weight, masks)
            found += [weight, bias, *norm_gradients]
            if along is not None:
                total = along if total is None else total.add_(along)
        if form == "input_square" and total is not None:
            total = 2 * x * total
        return None, None, None, total, *found


SECOND_ORDER_BRANCHES = {"output_square": 1, "product": 2, "hadamard": 2}
"""How many branches, from the first, the symbolic derivative needs the outputs of."""


def _branches(flat: Sequence[Tensor | None]) -> list[Branch]:
    return [Branch(*flat[start : start + 4]) for start in range(0, len(flat), 4)]  # type: ignore[arg-type]


def _outputs(
    form: str,
    operator: FirstOrderMap,
    x: Tensor,
    branches: Sequence[Branch],
    norms: Sequence[BatchNorm],
) -> list[Tensor]:
    at = x.square() if form == "input_square" else x
    outputs = [operator(at, branch.weight, branch.bias) for branch in branches]
    if not norms:
        return outputs
    return [
        norm(operator.normed_view(output)).view_as(output)
        for norm, output in zip(norms, outputs, strict=True)
    ]


def _normalised(operator: FirstOrderMap, output: Tensor, branch: Branch, eps: float) -> Tensor:
    """BatchNorm by the batch's own statistics, as in training; no running averages."""
    view = operator.normed_view(output)
    scaled = functional.batch_norm(view, None, None, branch.scale, branch.shift, True, 0.0, eps)
    return scaled.view_as(output)


def _norm_backward(
    operator: FirstOrderMap, gradient: Tensor, output: Tensor, branch: Branch, eps: float
) -> tuple[Tensor, ...]:
    """Gradients of a norm's input, scale and shift."""
    with torch.enable_grad():
        assert branch.scale is not None
        assert branch.shift is not None
        tensors = [t.detach().requires_grad_() for t in (output, branch.scale, branch.shift)]
        y = _normalised(
            operator, tensors[0], branch._replace(scale=tensors[1], shift=tensors[2]), eps
        )
        return torch.autograd.grad(y, tensors, gradient)


def autocast(tensor: Tensor | None) -> Any:
    """A tensor in the type that an autocast region asks for; as it is outside of one."""
    if tensor is None or not torch.amp.is_autocast_available(tensor.device.type):
        return tensor
    kind = tensor.device.type
    on = torch.is_autocast_enabled(kind)
    return tensor.to(torch.get_autocast_dtype(kind)) if on else tensor
