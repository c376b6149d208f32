"""Hidden units of a block: those between a layer that mixes channels and the next one.

Source: once-for-all, Cai et al., ICLR 2020 (arXiv:1908.09791), Sec. 3.2, keeps the channels of
largest norm. The product over all layers is our own, since it does not change if a factor moves
from one layer to the next.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

NORM_EPS = 1e-5
"""What BatchNorm adds to a variance (PyTorch's default, which inverted bottlenecks use)."""


def importance(
    tensors: Mapping[str, Tensor], axes: Mapping[str, int], eps: Mapping[str, float] | None = None
) -> Tensor:
    """How much each hidden unit matters, (units,), float64.

    The product of the norms of its incoming, depthwise and outgoing weights, and of the factors by
    which BatchNorm multiplies them. The norm of a quadratic layer `a(x) * b(x) + c(x)` is that of
    `c` plus the product of those of `a` and `b`.

    Args:
        tensors: parameters and buffers of the layers, by name.
        axes: of the tensors that have hidden units, the axis along which these lie.
        eps: what BatchNorm adds to its variances, by their names, where it is not `NORM_EPS`.
    """
    norms: dict[str, Tensor] = {}
    for name, axis in axes.items():
        layer, _, leaf = name.rpartition(".")
        tensor = tensors[name].double()
        if leaf == "weight" and tensor.ndim > 1:
            norms[layer] = tensor.movedim(axis, 0).flatten(1).norm(dim=1)
        elif leaf == "running_var":
            scale = tensors.get(f"{layer}.weight", torch.ones_like(tensor))
            added = (eps or {}).get(name, NORM_EPS)
            norms[layer] = scale.double().abs() / (tensor + added).sqrt()
    for layer in [name.removesuffix(".c") for name in norms if name.endswith(".c")]:
        if {f"{layer}.a", f"{layer}.b"} <= norms.keys():
            norms[f"{layer}.c"] += norms.pop(f"{layer}.a") * norms.pop(f"{layer}.b")
    return torch.stack(list(norms.values())).prod(0)
