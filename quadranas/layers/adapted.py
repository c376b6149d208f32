"""Quadratic adaptation: a pre-trained first-order layer with an added low-rank quadratic term.

Source: QuadraNet V2, Xu et al., 2024 (arXiv:2405.03192): the pre-trained weights are the primary
term; the quadratic term is low-rank, atrous in convolutions, and zero at the start.
Layout: B, C, then one to three spatial axes.
"""

from typing import Any, Literal

from torch import Tensor, nn
from torch.nn import functional

from quadranas.errors import QuadranasError
from quadranas.layers.quadratic import QUADRATIC_CONVS, QuadraticLayer, QuadraticLinear
from quadranas.layers.read_weight import ReadWeight


def _of_first_order(name: str) -> Any:
    """A property with an attribute of the pre-trained layer; it cannot be set."""
    return property(lambda layer: getattr(layer.first_order, name))


class AdaptedLayer(nn.Module):
    """A first-order layer `f` plus a quadratic term of rank r: `f(x) + P (A x * B x)`.

    A and B are the operator of `f` with r outputs and without biases: a matrix, or the convolution
    with the same kernel size, stride and groups, but with a larger dilation and padding, so that
    the outputs have the same size and a larger receptive field. P mixes the r products into every
    output. It is zero at the start: the layer then computes exactly `f`, and of the term's weights
    only P has a non-zero gradient. Output o has the quadratic form `x^T (sum_k P_ok a_k b_k^T) x`.
    In a grouped convolution every group has r products of its own; in a depthwise one that is r
    per channel.

    With n inputs (of a patch, within a group), m outputs and g groups, the term adds
    `r (2 n g + m)` parameters, and as many MACs at every output position. Training stores its
    input and the r products (`quadranas.layers.algebra.recomputed`).

    Args:
        layer: the pre-trained layer; it becomes the submodule `first_order` with its weights.
        rank: r, at most `max_rank(layer)`.
        dilation: dilation of A and B as a multiple of the layer's own; 1 for the same patch.
            It is the attribute `term_dilation`; `dilation` is the layer's own.

    Modules around the layer read its attributes like those of the pre-trained layer: `weight`,
    `bias`, `in_features`, `kernel_size`, `stride` ... (`read_weight`).

    Raises:
        QuadranasError: invalid rank or dilation.
    """

    path = ""
    """Path of the layer in the network that it was made for, for messages."""

    def __init__(self, layer: nn.Module, *, rank: int = 1, dilation: int = 2) -> None:
        super().__init__()
        limit = max_rank(layer)
        if not 1 <= rank <= limit:
            raise QuadranasError(
                f"rank {rank} does not fit {layer}: its quadratic term has rank 1 to {limit}"
            )
        if dilation < 1:
            raise QuadranasError(f"dilation must be at least 1, got {dilation}")
        self.rank, self.term_dilation = rank, dilation
        self.first_order = layer
        self.product: QuadraticLayer
        self.mix: nn.Module
        self._cropped = False
        if isinstance(layer, nn.Linear):
            self.product = QuadraticLinear(layer.in_features, rank, False, form="product")
            self.mix = nn.Linear(rank, layer.out_features, bias=False)
        else:
            self._build_convolutions(layer)
        nn.init.zeros_(self.mix.weight)
        parameter = next(layer.parameters())
        self.to(parameter.device, parameter.dtype)

    def _build_convolutions(self, layer: Any) -> None:
        dilation = tuple(d * self.term_dilation for d in layer.dilation)
        spans = [
            around + (new - old) * (size - 1)
            for around, new, old, size in zip(
                _total_padding(layer), dilation, layer.dilation, layer.kernel_size, strict=True
            )
        ]
        # A kernel of even size may need one pixel more on one side. PyTorch pads both sides
        # alike, so the padding is rounded up and the surplus output cropped.
        self._cropped = any(span % 2 for span in spans)
        channels = self.rank * layer.groups
        self.product = QUADRATIC_CONVS[type(layer)](
            layer.in_channels,
            channels,
            layer.kernel_size,
            layer.stride,
            tuple(-(-span // 2) for span in spans),
            dilation,
            layer.groups,
            False,
            form="product",
        )
        self.mix = type(layer)(channels, layer.out_channels, 1, groups=layer.groups, bias=False)

    in_features = _of_first_order("in_features")
    out_features = _of_first_order("out_features")
    in_channels = _of_first_order("in_channels")
    out_channels = _of_first_order("out_channels")
    kernel_size = _of_first_order("kernel_size")
    stride = _of_first_order("stride")
    padding = _of_first_order("padding")
    dilation = _of_first_order("dilation")
    groups = _of_first_order("groups")
    padding_mode = _of_first_order("padding_mode")
    transposed = _of_first_order("transposed")
    output_padding = _of_first_order("output_padding")
    bias = _of_first_order("bias")

    @property
    def weight(self) -> Tensor:
        """The weight of the pre-trained layer, to be read."""
        return ReadWeight(self.first_order.weight, self)  # type: ignore[arg-type]

    def forward(self, input: Tensor, *, bias: Tensor | Literal["own"] | None = "own") -> Tensor:
        """Shapes: as in the first-order layer.

        Args:
            input: named as in PyTorch's layers, which some networks call with this keyword.
            bias: a bias to use instead of the pre-trained layer's own.
        """
        first, second = self.terms(input, bias=bias)
        return first + second

    def terms(
        self, x: Tensor, *, bias: Tensor | Literal["own"] | None = "own"
    ) -> tuple[Tensor, Tensor]:
        """The first-order and the second-order part of the output; their sum is the output."""
        layer: Any = self.first_order
        if isinstance(bias, str):
            first = layer(x)
        elif isinstance(layer, nn.Linear):
            first = functional.linear(x, layer.weight, bias)
        else:
            first = layer._conv_forward(x, layer.weight, bias)
        products = self.product(x)
        if self._cropped:
            for axis in range(-len(layer.kernel_size), 0):
                products = products.narrow(axis, 0, first.shape[axis])
        return first, self.mix(products)

    def extra_repr(self) -> str:
        """What `print` shows."""
        return f"rank={self.rank}, dilation={self.term_dilation}"


def max_rank(layer: Any) -> int:
    """The largest rank of a layer's quadratic term: its width.

    The width is the smaller of the numbers of inputs and outputs within a group. For groups with a
    single output, as in depthwise convolutions, it is the number of inputs, which limits the rank
    of any quadratic form.
    """
    if isinstance(layer, nn.Linear):
        fan_in, num_outputs = layer.in_features, layer.out_features
    else:
        fan_in, num_outputs = layer.weight[0].numel(), layer.out_channels // layer.groups
    return fan_in if num_outputs == 1 else min(fan_in, num_outputs)


def _total_padding(layer: Any) -> list[int]:
    """The padding of both sides together, per axis."""
    if layer.padding == "valid":
        return [0] * len(layer.kernel_size)
    if layer.padding == "same":
        return [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
    return [2 * one_side for one_side in layer.padding]


def adapted_layers(model: nn.Module) -> dict[str, AdaptedLayer]:
    """The adapted layers of a network, by path."""
    return {n: m for n, m in model.named_modules() if isinstance(m, AdaptedLayer)}
