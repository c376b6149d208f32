"""The weight of a replaced layer, as the modules around the layer read it.

Some networks compute with the weight of a layer instead of calling the layer, for example
`linear(x, self.qkv.weight, bias)`. In a replaced layer that would leave out the quadratic term.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._pytree import tree_leaves, tree_map_only

from quadranas.errors import QuadranasError

AXES = {functional.conv1d: 1, functional.conv2d: 2, functional.conv3d: 3}
"""The functions that compute a convolution, and their numbers of spatial axes."""

COMPUTES = frozenset(
    {
        *("linear", "bilinear", "embedding", "convolution", "_convolution", "conv_tbc"),
        *("conv1d", "conv2d", "conv3d"),
        *("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"),
        *("matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "mv", "chain_matmul", "multi_dot"),
        *("dot", "vdot", "inner", "outer", "einsum", "tensordot"),
        *("addmm", "addmm_", "addmv", "addmv_", "addbmm", "baddbmm"),
        *("multi_head_attention_forward", "scaled_dot_product_attention"),
    }
)
"""Names of the functions that apply a weight to other values."""


class _Call(NamedTuple):
    """The arguments of `linear` and of the convolutions, and their defaults."""

    input: Tensor
    weight: Tensor
    bias: Tensor | None = None
    stride: Any = 1
    padding: Any = 0
    dilation: Any = 1
    groups: int = 1


class ReadWeight(Tensor):
    """The weight of the linear term of a layer that has a quadratic term.

    It has the values, shape, type and gradient of that weight, and operations in place change the
    weight itself. `linear` and convolutions with this weight compute the layer, with their own
    bias in place of that of the linear term. Other products with it, and products with tensors
    computed from it, are refused, because they would leave out the quadratic term.
    """

    of: Tensor
    layer: nn.Module
    whole: bool

    @staticmethod
    def __new__(cls, of: Tensor, layer: nn.Module, whole: bool = True) -> "ReadWeight":
        """A view of a tensor; `whole` unless it is only computed from the weight."""
        # It holds no data of its own: what does not go through `__torch_function__` fails.
        new = Tensor._make_wrapper_subclass(cls, (0,), device=torch.device("meta"))
        new.of, new.layer, new.whole = of, layer, whole
        return new

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run an operation on the weight itself; see the class."""
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        read = next(tensor for tensor in tensors if isinstance(tensor, cls))
        name = getattr(func, "__name__", "").partition(".")[0]
        if name in COMPUTES and not all(isinstance(tensor, cls) for tensor in tensors):
            return _layer_output(func, name, read, args, kwargs)
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*_plain(args), **_plain(kwargs))

        def as_read(tensor: Tensor) -> Tensor:
            return cls(tensor, read.layer, read.whole and tensor is read.of)

        # A number, such as a norm, is no weight to compute a layer with.
        return tree_map_only(Tensor, lambda t: as_read(t) if t.dim() else t, result)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch 2.13 declares no `func`
        cls,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Refuse what does not go through `__torch_function__`."""
        tensors = tree_leaves((args, kwargs or {}))
        raise _refusal(next(t for t in tensors if isinstance(t, cls)), str(func))

    def __iter__(self) -> Iterator[Tensor]:
        """The rows, each a part of the weight as well."""
        return iter(self.unbind(0))


def _plain(arguments: Any) -> Any:
    """Arguments with the tensors that are read instead of their readings."""
    return tree_map_only(ReadWeight, lambda read: read.of, arguments)


def _layer_output(
    func: Callable[..., Any],
    name: str,
    read: ReadWeight,
    args: Sequence[Any],
    kwargs: dict[str, Any],
) -> Tensor:
    """The output of the layer, for a call of a function that computes its linear term.

    Raises:
        QuadranasError: the function computes something else.
    """
    layer = read.layer
    if func is functional.linear or func in AXES:
        call = _Call(*args, **kwargs)
        whole = call.weight is read and read.whole
        if whole and len(read.shape) == 2 + AXES.get(func, 0) and _same_window(call, layer):
            output: Tensor = layer(call.input, bias=call.bias)
            return output
    raise _refusal(read, name)


def _same_window(call: _Call, layer: Any) -> bool:
    """Whether a convolution has the stride, padding, dilation and groups of a layer."""
    if not hasattr(layer, "kernel_size"):
        return True
    axes = len(layer.kernel_size)

    def sizes(value: Any) -> Any:
        value = 0 if value == "valid" else value
        if isinstance(value, str):
            return value
        value = (value,) if isinstance(value, int) else tuple(value)
        return value * axes if len(value) == 1 else value

    names = ("stride", "padding", "dilation", "groups")
    return all(sizes(getattr(call, name)) == sizes(getattr(layer, name)) for name in names)


def _refusal(read: ReadWeight, operation: str) -> QuadranasError:
    name = getattr(read.layer, "path", "")
    layer = f"layer {name!r}" if name else f"a {type(read.layer).__name__}"
    return QuadranasError(
        f"the network computes {operation} with the weight of {layer} instead of calling the "
        "layer, which would leave out its quadratic term",
        "Do not convert or adapt this layer: exclude it with select=, where= or --layers.",
    )
