"""The quadratic depthwise convolution `y = a(x) * b(x) + c(x)` in one pass over a GPU's memory.

Operator: QuadraNet, Xu et al., ASP-DAC 2024 (arXiv:2311.17956), Sec. III. Here is what can be
fused, and what must move at the least; `fused_depthwise_ops` launches the kernels, which are in
`fused_depthwise_kernels`.

**The floor.** A tensor of the shape of `x` takes `N` bytes. The forward pass must read `x` and
write `y`: 2 N. The backward pass must read `x` and the gradient of `y`, and write the gradient of
`x`: 3 N. Weights and their gradients are under 2 per cent of that at the stages of QuadraNet36-T.
In millions of bytes at batch 128 (`floor_bytes`):

    stage           1: 64 x 56 x 56   2: 128 x 28 x 28   3: 256 x 14 x 14   4: 512 x 7 x 7
    forward  fp32        205.5              102.8               51.4             25.7
             16 bits     102.8               51.4               25.7             12.8
    backward fp32        308.3              154.1               77.1             38.5
             16 bits     154.1               77.1               38.5             19.3

**What moves.** Counting every tensor once per kernel that touches it (neighbouring tiles find
their common borders in the GPU's cache): forward 2 N, the floor. Backward 12 N: one kernel reads
`x` and `g` and writes `g v` and `g u`, with `u = a(x)` and `v = b(x)` computed again (4 N); one
correlates `g v`, `g u` and `g` with the flipped weights (4 N); one sums their products with `x`
for the weights (4 N, if programs that share pixels run together: each does eight of the K^2
taps), through at most 3 million bytes of partial sums. To reach 3 N, a tile would have to compute
`u` and `v` on its border too. The composition moves 10 N forward (three convolutions, then product
and sum) and, recomputing as here, 31 N backward.

**Arithmetic.** A forward pass takes `3 K^2` multiply-adds per output: 147 for K = 7, or 37 per
byte in 16 bits. A GPU that does fewer in the time its memory takes for a byte is bound by them.
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
"""The kernels count elements in 32 bits, and go past the last by less than as many again."""
LOWEST_CAPABILITY = 8
"""Major compute capability from which on Triton supports NVIDIA's GPUs."""


def floor_bytes(shape: Sequence[int], dtype: torch.dtype, *, backward: bool) -> int:
    """Bytes that a pass must move, whatever the implementation; see above.

    Args:
        shape: of the input, (B, C, H, W).
        backward: the backward pass alone instead of the forward pass.
    """
    return (3 if backward else 2) * math.prod(shape) * dtype.itemsize


def fits(operator: FirstOrderMap, form: str, channels: int) -> TypeGuard[Convolution]:
    """Whether a layer's arithmetic is the one that the kernels know."""
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
    """Whether `fused` can take this call; PyTorch's own operations take any other.

    Where the package triton is missing it takes none, silently: the kernels only save time.
    """
    return (
        HAS_TRITON
        and x.is_cuda
        and not torch.compiler.is_exporting()
        and not norms
        and x.dim() == 4
        and fits(operator, form, x.shape[1])
        and branches[0].weight.shape[0] == x.shape[1]
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
    """The same as `algebra.recomputed` where `runs_fused`; keeps only `x` and the weights.

    Sums are taken in float32 whatever the type, and in the same order in every run. The result
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
