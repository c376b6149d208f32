"""Quadratic layers: linear maps and convolutions of second-order neurons.

Source: QuadraLib, Xu et al., MLSys 2022 (arXiv:2204.01701), Table 1 and Sec. 3; QuadraNet, Xu et
al., ASP-DAC 2024 (arXiv:2311.17956), Sec. III. `forms.FORMS` lists the neurons.
Layout: B, C, then one to three spatial axes.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from quadranas.errors import QuadranasError
from quadranas.layers import algebra, fused_depthwise
from quadranas.layers.first_order import Convolution, FirstOrderMap, LinearMap
from quadranas.layers.forms import FACTORISED, FORMS, find_form
from quadranas.layers.read_weight import ReadWeight

Init = Literal["unit", "torch"]
Size = int | tuple[int, ...]


class QuadraticLayer(nn.Module):
    """Base of linear and convolutional quadratic layers: branches, norms, matrix, algebra.

    Attributes:
        a, b, c: the branches of the form, each a `nn.Linear` or `nn.ConvNd`; others are absent.
        matrix: (outputs, n, n), the matrices of the bilinear neurons; absent in other forms.
        norms: a BatchNorm per branch (QuadraLib normalises the branches), or empty.
        memory_efficient: in training, store only the input for the backward pass and recompute
            the branches (factorised forms); the gradients are the same. On a GPU with Triton it
            also lets depthwise convolutions run fused, in training and inference
            (`fused_depthwise`).
        weight, bias: those of the linear term, as modules around the layer read them
            (`read_weight`). They are zero in forms without a linear term; the bias is None in
            layers without biases.
        second_order_factor: a scalar by which the second-order term is multiplied in a training
            that warms it up; None for none. Only for layers with `has_factor`.
        path: path of the layer in the network that it was made for, for messages.
    """

    path = ""

    def __init__(
        self,
        form: str,
        operator: FirstOrderMap,
        make_branch: Callable[[], nn.Module],
        make_norm: Callable[[], BatchNorm] | None,
        *,
        num_outputs: int,
        fan_in: int,
        biased: bool,
        init: Init,
        memory_efficient: bool,
        factory: dict[str, Any],
    ) -> None:
        super().__init__()
        self.form, self.operator, self.fan_in = form, operator, fan_in
        self.memory_efficient = memory_efficient
        self.second_order_factor: Tensor | None = None
        self._num_outputs, self._biased = num_outputs, biased
        spec = find_form(form)
        if init not in ("unit", "torch"):
            raise QuadranasError(f"unknown init {init!r}; accepted: torch, unit")
        for name in spec.branches:
            self.add_module(name, make_branch())
        self.norms = nn.ModuleDict({name: make_norm() for name in spec.branches if make_norm})
        if spec.matrix:
            self.matrix = nn.Parameter(torch.empty(num_outputs, fan_in, fan_in, **factory))
            nn.init.uniform_(self.matrix, -1 / fan_in, 1 / fan_in)
        if init == "unit":
            self.init_unit_variance()

    @torch.no_grad()
    def init_unit_variance(self) -> None:
        """Draw weights for which inputs of unit variance give outputs of unit variance.

        Weights are normal, biases zero. In forms with a linear term the second-order term starts
        small (`forms.QUADRATIC_SHARE`), which keeps the variance through 50 such layers. Stacks of
        purely second-order neurons cannot keep it with any weights, because every layer squares a
        sample's deviation: put a LayerNorm between them.
        """
        normed, gains = len(self.norms) > 0, FORMS[self.form].gains
        # input_square sums squares of normal inputs, and E[x^4] = 3.
        fan_in = self.fan_in * (3 if self.form == "input_square" else 1)
        for (name, branch), gain in zip(self.branches.items(), gains, strict=False):
            nn.init.normal_(branch.weight, std=((1 if normed else gain) / fan_in) ** 0.5)  # type: ignore[arg-type]
            if branch.bias is not None:
                nn.init.zeros_(branch.bias)  # type: ignore[arg-type]
            if normed:
                nn.init.constant_(self.norms[name].weight, gain**0.5)  # type: ignore[arg-type]
        if FORMS[self.form].matrix:
            nn.init.normal_(self.matrix, std=gains[-1] ** 0.5 / self.fan_in)

    @property
    def branches(self) -> dict[str, nn.Module]:
        """The first-order branches by name."""
        return {name: self.get_submodule(name) for name in FORMS[self.form].branches}

    @property
    def second_order(self) -> bool:
        """Whether the layer has a quadratic term."""
        return self.form != "linear"

    @property
    def has_factor(self) -> bool:
        """Whether `second_order_factor` can be set: there are both terms, and no norms."""
        return self.second_order and "c" in FORMS[self.form].branches and not len(self.norms)

    @property
    def weight(self) -> Tensor:
        """The weight of the linear term, to be read; it has the shape of a first-order layer's."""
        if "c" in FORMS[self.form].branches:
            return ReadWeight(self.branches["c"].weight, self)  # type: ignore[arg-type]
        shape = (self._num_outputs, *self.operator.weight_shape(self.fan_in))
        return ReadWeight(next(self.parameters()).new_zeros(shape), self)

    @property
    def bias(self) -> Tensor | None:
        """The bias of the linear term; None in layers without biases."""
        if "c" in FORMS[self.form].branches:
            return self.branches["c"].bias  # type: ignore[return-value]
        return next(self.parameters()).new_zeros(self._num_outputs) if self._biased else None

    def forward(self, input: Tensor, *, bias: Tensor | Literal["own"] | None = "own") -> Tensor:
        """Shapes: (..., n) to (..., m), or (B, C, *size) to (B, C', *size').

        Args:
            input: named as in PyTorch's layers, which some networks call with this keyword.
            bias: a bias of the linear term to use instead of the layer's own; in a form without a
                linear term it is added to the output.
        """
        x, branches = self._cast(input)
        if isinstance(bias, str):
            return self._value(x, branches)
        given: Tensor | None = algebra.autocast(bias)
        if "c" in FORMS[self.form].branches:
            return self._value(x, [*branches[:-1], branches[-1]._replace(bias=given)])
        y = self._value(x, branches)
        return y if given is None else self.operator.shifted(y, given)

    def _value(self, x: Tensor, branches: list[algebra.Branch]) -> Tensor:
        norms = [norm for norm in self.norms.values() if isinstance(norm, BatchNorm)]
        spec = FORMS[self.form]
        if not spec.branches:
            return self._matrix_term(x)
        # `recomputed` normalises by the batch, so not with norms in inference; and its custom
        # function can be neither exported nor, with norms as arguments, compiled.
        recompute = (
            self.memory_efficient
            and torch.is_grad_enabled()
            and (self.training or not norms)
            and not torch.compiler.is_exporting()
            and not (norms and torch.compiler.is_compiling())
        )
        run = algebra.recomputed if recompute and self.form in FACTORISED else algebra.direct
        call = (self.form, self.operator, x, branches, norms)
        if self.memory_efficient and fused_depthwise.runs_fused(*call):
            run = fused_depthwise.fused
        y = run(*call)
        return y + self._matrix_term(x) if spec.matrix else y

    def terms(self, x: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """The first-order and the second-order part of the output; their sum is the output.

        A part that the form does not have is None.
        """
        x, branches = self._cast(x)
        norms = [norm for norm in self.norms.values() if isinstance(norm, BatchNorm)]
        if self.form == "linear":
            return algebra.direct("linear", self.operator, x, branches, norms), None
        if self.form in ("hadamard", "bilinear"):
            first = algebra.direct("linear", self.operator, x, branches[-1:], norms[-1:])
            if self.form == "bilinear":
                return first, self._matrix_term(x)
            second = algebra.direct("product", self.operator, x, branches[:2], norms[:2])
            return first, second
        return None, self.forward(x)  # `self(x)` would run the hooks again

    def _cast(self, x: Tensor) -> tuple[Tensor, list[algebra.Branch]]:
        """Input and branches in the dtype of the current autocast region."""
        tensors = []
        for name, branch in self.branches.items():
            cast = [algebra.autocast(tensor) for tensor in (branch.weight, branch.bias)]  # type: ignore[arg-type]
            norm = [self.norms[name].weight, self.norms[name].bias] if len(self.norms) else []
            branch_tensors = algebra.Branch(*cast, *norm)
            is_factor = name == "a" and self.second_order_factor is not None
            tensors.append(self._scaled(branch_tensors) if is_factor else branch_tensors)
        return algebra.autocast(x), tensors

    def _scaled(self, branch: algebra.Branch) -> algebra.Branch:
        """A factor of the second-order term, multiplied by `second_order_factor`."""
        factor = self.second_order_factor
        assert factor is not None
        bias = None if branch.bias is None else branch.bias * factor.to(branch.bias.dtype)
        return branch._replace(weight=branch.weight * factor.to(branch.weight.dtype), bias=bias)

    def _matrix_term(self, x: Tensor) -> Tensor:
        matrix: Tensor = self.matrix
        if self.second_order_factor is not None:
            matrix = matrix * self.second_order_factor
        values = algebra.quadratic_forms(self.operator.patches(x), algebra.autocast(matrix))
        return self.operator.arrange(values, x)


class QuadraticLinear(QuadraticLayer):
    """Second-order neurons on the last axis.

    Args:
        bias: whether every branch has a bias.
        form: the neuron, a key of `forms.FORMS`.
        norm: whether the output of every branch has a BatchNorm.
        init: `unit` keeps the variance (`init_unit_variance`); `torch` initialises the branches
            by PyTorch's defaults.
        memory_efficient: see `QuadraticLayer`.

    Raises:
        QuadranasError: unknown form or init.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        form: str = "hadamard",
        norm: bool = False,
        init: Init = "unit",
        memory_efficient: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        super().__init__(
            form,
            LinearMap(),
            lambda: nn.Linear(in_features, out_features, bias, **factory),
            (lambda: nn.BatchNorm1d(out_features, **factory)) if norm else None,
            num_outputs=out_features,
            fan_in=in_features,
            biased=bias,
            init=init,
            memory_efficient=memory_efficient,
            factory=factory,
        )
        self.in_features, self.out_features = in_features, out_features

    def extra_repr(self) -> str:
        """What `print` shows."""
        return f"{self.in_features}, {self.out_features}, form={self.form!r}"


def _of_operator(name: str) -> Any:
    """A property with an attribute of a convolution's operator; it cannot be set."""
    return property(lambda layer: getattr(layer.operator, name))


CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


class _QuadraticConv(QuadraticLayer):
    """Second-order neurons on patches, over 1, 2 or 3 spatial axes."""

    num_axes: int

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size | Literal["same", "valid"] = 0,
        dilation: Size = 1,
        groups: int = 1,
        bias: bool = True,
        *,
        form: str = "hadamard",
        norm: bool = False,
        init: Init = "unit",
        memory_efficient: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        conv, batch_norm = CONVS[self.num_axes], NORMS[self.num_axes]
        kernel, step, spread = (
            self._per_axis(name, size)
            for name, size in (
                ("kernel_size", kernel_size), ("stride", stride), ("dilation", dilation)
            )
        )  # fmt: skip
        margin = self._margin(padding, kernel, step, spread)
        operator = Convolution(
            kernel_size=kernel, stride=step, padding=margin, dilation=spread, groups=groups
        )
        channels = (in_channels, out_channels)
        if groups < 1 or any(count % groups for count in channels):
            raise QuadranasError(
                f"groups {groups} must divide in_channels {in_channels} and out_channels "
                f"{out_channels}"
            )
        super().__init__(
            form,
            operator,
            lambda: conv(*channels, kernel, step, margin, spread, groups, bias, **factory),  # type: ignore[arg-type]
            (lambda: batch_norm(out_channels, **factory)) if norm else None,
            num_outputs=out_channels,
            fan_in=in_channels // groups * torch.Size(kernel).numel(),
            biased=bias,
            init=init,
            memory_efficient=memory_efficient,
            factory=factory,
        )
        self.in_channels, self.out_channels = channels
        self._padding = padding if isinstance(padding, str) else margin

    # As in the convolutions of PyTorch, for modules around the layer.
    kernel_size = _of_operator("kernel_size")
    stride = _of_operator("stride")
    dilation = _of_operator("dilation")
    groups = _of_operator("groups")
    padding_mode: Literal["zeros"] = "zeros"
    transposed: Literal[False] = False

    @property
    def padding(self) -> tuple[int, ...] | str:
        """The padding as it was given: numbers per axis, or `same` or `valid`."""
        return self._padding

    @property
    def output_padding(self) -> tuple[int, ...]:
        """Zero per axis, since the convolution is not transposed."""
        return (0,) * self.num_axes

    def _per_axis(self, name: str, value: Size) -> tuple[int, ...]:
        sizes = (value,) * self.num_axes if isinstance(value, int) else tuple(value)
        lowest = 0 if name == "padding" else 1
        if len(sizes) != self.num_axes or min(sizes) < lowest:
            raise QuadranasError(
                f"{name} {value} must be an integer of at least {lowest}, or {self.num_axes} of "
                "them"
            )
        return sizes

    def _margin(
        self,
        padding: Size | str,
        kernel: tuple[int, ...],
        stride: tuple[int, ...],
        dilation: tuple[int, ...],
    ) -> tuple[int, ...]:
        if padding == "valid":
            return (0,) * self.num_axes
        if not isinstance(padding, str):
            return self._per_axis("padding", padding)
        spans = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        if padding != "same" or max(stride) > 1 or any(span % 2 for span in spans):
            raise QuadranasError(
                f"padding {padding!r} does not fit kernel_size {kernel}, stride {stride}, "
                f"dilation {dilation}; accepted: integers, 'valid', and 'same' with stride 1 and "
                "an even dilation * (kernel_size - 1)"
            )
        return tuple(span // 2 for span in spans)

    def extra_repr(self) -> str:
        """What `print` shows."""
        o = self.operator
        return f"{self.in_channels}, {self.out_channels}, form={self.form!r}, {o}"


class QuadraticConv1d(_QuadraticConv):
    """Second-order neurons on patches of a sequence.

    The arguments are those of `nn.Conv1d`, then those of `QuadraticLinear`.

    Raises:
        QuadranasError: unknown form or init, or inconsistent sizes.
    """

    num_axes = 1


class QuadraticConv2d(_QuadraticConv):
    """Second-order neurons on patches of an image.

    The arguments are those of `nn.Conv2d`, then those of `QuadraticLinear`.

    Raises:
        QuadranasError: unknown form or init, or inconsistent sizes.
    """

    num_axes = 2


class QuadraticConv3d(_QuadraticConv):
    """Second-order neurons on patches of a volume.

    The arguments are those of `nn.Conv3d`, then those of `QuadraticLinear`.

    Raises:
        QuadranasError: unknown form or init, or inconsistent sizes.
    """

    num_axes = 3


QUADRATIC_CONVS: dict[type[nn.Module], type[Any]] = {
    nn.Conv1d: QuadraticConv1d,
    nn.Conv2d: QuadraticConv2d,
    nn.Conv3d: QuadraticConv3d,
}
"""The quadratic version of each convolution."""
