"""The quadratic depthwise convolution `y = a(x) * b(x) + c(x)` in one pass over a GPU's memory.

Operator: QuadraNet, Xu et al., ASP-DAC 2024 (arXiv:2311.17956), Sec. III. This module decides
which calls run fused, and states the minimum memory traffic; `fused_depthwise_ops` launches the
kernels in `fused_depthwise_kernels`.

**Minimum traffic.** A tensor of the shape of `x` takes `N` bytes. The forward pass must read `x`
and write `y`: 2 N. The backward pass must read `x` and the gradient of `y`, and write the gradient
of `x`: 3 N. Weights and their gradients are under 2 per cent of that at the stages of
QuadraNet36-T. In millions of bytes at batch 128 (`floor_bytes`):

    stage           1: 64 x 56 x 56   2: 128 x 28 x 28   3: 256 x 14 x 14   4: 512 x 7 x 7
    forward  fp32        205.5              102.8               51.4             25.7
             16 bits     102.8               51.4               25.7             12.8
    backward fp32        308.3              154.1               77.1             38.5
             16 bits     154.1               77.1               38.5             19.3

**Actual traffic.** Every tensor counts once per kernel that reads or writes it (the common borders
of neighbouring tiles come from the GPU's cache). Forward: 2 N, the minimum. Backward: 12 N. One
kernel reads `x` and `g`, recomputes `u = a(x)` and `v = b(x)`, and writes `g v` and `g u` (4 N);
one correlates `g v`, `g u` and `g` with the flipped weights (4 N); one sums their products with
`x` for the weights (4 N, if programs that share pixels run together: each computes eight of the
K^2 taps), through at most 3 million bytes of partial sums. For 3 N, a tile would have to compute
`u` and `v` on its border too. PyTorch's own operations move 10 N forward (three convolutions, then
product and sum) and, with the same recomputation, 31 N backward.

**Arithmetic.** A forward pass takes `3 K^2` multiply-adds per output: 147 for K = 7, or 37 per
byte in 16 bits. It is compute-bound on a GPU with fewer multiply-adds per byte of memory traffic.
"""

import importlib.util
import math
from collections.abc import Sequence
from typing import TypeGuard

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from quadranas.layers.algebra import Branch
from quadranas.layers.first_order import Convolution, FirstOrderMap
from quadranas.layers.fused_depthwise_ops import quadratic_depthwise

HAS_TRITON = importlib.util.find_spec("triton") is not None
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
MAX_KERNEL_SIZE = 13
MAX_NUMEL = 2**30
"""Maximum number of elements: the kernels index in 32 bits, up to almost twice the last index."""
LOWEST_CAPABILITY = 8
"""Lowest major compute capability of the NVIDIA GPUs that Triton supports."""


def floor_bytes(shape: Sequence[int], dtype: torch.dtype, *, backward: bool) -> int:
    """Minimum memory traffic of a pass in bytes, for any implementation; see above.

    Args:
        shape: shape of the input, (B, C, H, W).
        backward: the backward pass alone instead of the forward pass.
    """
    return (3 if backward else 2) * math.prod(shape) * dtype.itemsize


def fits(operator: FirstOrderMap, form: str, channels: int) -> TypeGuard[Convolution]:
    """Whether a layer computes what the kernels do: an odd, square, "same" depthwise window."""
    if form != "hadamard" or not isinstance(operator, Convolution):
        return False
    size = operator.kernel_size[0]
    return (
        operator.kernel_size == (size, size)
        and size % 2 == 1
        and size <= MAX_KERNEL_SIZE
        and operator.padding == (size // 2, size // 2)
        and operator.stride == operator.dilation == (1, 1)
        and operator.groups == channels
    )


def runs_fused(
    form: str,
    operator: FirstOrderMap,
    x: Tensor,
    branches: Sequence[Branch],
    norms: Sequence[BatchNorm],
) -> bool:
    """Whether `fused` supports this call; all others run as PyTorch's own operations.

    Without the package `triton` this is False and no message is given: the kernels only save time.
    """
    return (
        HAS_TRITON
        and x.is_cuda
        and not torch.compiler.is_exporting()
        and not norms
        and x.dim() == 4
        and fits(operator, form, x.shape[1])
        and branches[0].weight.shape[0] == x.shape[1]
        and len({branch.bias is None for branch in branches}) == 1
        and x.dtype in DTYPES
        and all((b.weight.dtype, b.weight.device) == (x.dtype, x.device) for b in branches)
        and 0 < x.numel() <= MAX_NUMEL
        and torch.cuda.get_device_properties(x.device).major >= LOWEST_CAPABILITY
    )


def fused(
    form: str,
    operator: FirstOrderMap,
    x: Tensor,
    branches: Sequence[Branch],
    norms: Sequence[BatchNorm],
) -> Tensor:
    """The fused version of `algebra.recomputed`, for calls that `runs_fused` accepts.

    Sums are accumulated in float32 for every dtype, and in the same order in every run. The result
    is channels_last if `x` is, otherwise contiguous. It can be differentiated twice.
    """
    assert fits(operator, form, x.shape[1])
    columns = [
        tensor.reshape(x.shape[1], -1)
        for branch in branches
        for tensor in (branch.weight, branch.bias)
        if tensor is not None
    ]
    taps = torch.cat(columns, 1).T.contiguous()
    y: Tensor = quadratic_depthwise(
        x, taps.reshape(len(branches), -1, x.shape[1]), operator.kernel_size[0]
    )
    return y
