"""The passes of `fused_depthwise` as PyTorch operators, for autograd and `torch.compile`.

They are custom operators rather than `torch.library.triton_op`: nothing can be fused into these
kernels, and an opaque operator also runs on the CPU with Triton's interpreter. Triton is imported
by the first call.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.flop_counter import register_flop_formula

TILE = 2048
"""Elements (pixels times channels) of a channels_last tile."""
TILE_CHANNELS = 32
"""Channels of a channels_last tile: 64 bytes of every pixel in 16 bits."""
PLANE_TILE = 512
"""Pixels of a tile in the contiguous layout; it has one channel."""
TILE_TAPS = 8
"""Taps per tile of `taps_gradient_kernel`; its tiles have 8 times fewer pixels."""
PROGRAMS = 1024
"""Target number of programs of `taps_gradient_kernel`; fixed, so that the order of summation does
not depend on the GPU."""


def ceil_div(number: int, size: int) -> int:
    """`number / size`, rounded up."""
    return -(-number // size)


class _Launch(NamedTuple):
    """The launch parameters of the kernels for a tensor."""

    geometry: tuple[int, ...]  # pixels of the batch, C, H, W, stride of a pixel, of a channel
    tile: tuple[int, int]  # pixels, channels

    @property
    def across(self) -> int:
        """The number of tiles along the channels."""
        return ceil_div(self.geometry[1], self.tile[1])

    @property
    def tiles(self) -> int:
        """The number of all tiles."""
        return ceil_div(self.geometry[0], self.tile[0]) * self.across


def _memory_format(x: Tensor) -> torch.memory_format:
    last = x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


def _launch(x: Tensor) -> _Launch:
    batch, channels, height, width = x.shape
    size = (batch * height * width, channels, height, width)
    if _memory_format(x) is torch.contiguous_format:
        return _Launch((*size, 1, height * width), (PLANE_TILE, 1))
    tile_channels = min(TILE_CHANNELS, 1 << (channels - 1).bit_length())
    return _Launch((*size, channels, 1), (TILE // tile_channels, tile_channels))


def _run(kernel: Any, programs: int, *arguments: Tensor | int) -> None:
    """Launch a kernel on the GPU of its first tensor."""
    with torch.cuda.device_of(arguments[0]):
        kernel[(programs,)](*arguments, enable_fp_fusion=True)


@torch.library.custom_op("quadranas::quadratic_depthwise", mutates_args=())
def quadratic_depthwise(x: Tensor, taps: Tensor, kernel_size: int) -> Tensor:
    """The forward pass.

    Args:
        x: (B, C, H, W).
        taps: (3, T, C), contiguous: the weights of a, b, c at the K^2 positions of the window,
            followed by their biases, if any.
        kernel_size: K.
    """
    from quadranas.layers import fused_depthwise_kernels as kernels

    x = x.contiguous(memory_format=_memory_format(x))
    y = torch.empty_like(x)
    launch = _launch(x)
    options = (*launch.geometry, kernel_size, taps.shape[1])
    _run(kernels.forward_kernel, launch.tiles, x, taps, y, *options, *launch.tile)
    return y


@torch.library.custom_op("quadranas::quadratic_depthwise_backward", mutates_args=())
def quadratic_depthwise_backward(
    gradient: Tensor, x: Tensor, taps: Tensor, kernel_size: int, for_x: bool, for_taps: bool
) -> tuple[Tensor, Tensor]:
    """The gradients in `x` and `taps`; empty tensors if not requested by `for_x`, `for_taps`."""
    from quadranas.layers import fused_depthwise_kernels as kernels

    layout = _memory_format(x)
    x, gradient = (t.contiguous(memory_format=layout) for t in (x, gradient))
    launch = _launch(x)
    options = (*launch.geometry, kernel_size, taps.shape[1])
    of_a, of_b = torch.empty_like(x), torch.empty_like(x)
    of_x, of_taps = x.new_empty(0), taps.new_empty(0)
    _run(
        kernels.branch_gradients_kernel, launch.tiles,
        x, taps, gradient, of_a, of_b, *options, *launch.tile,
    )  # fmt: skip
    if for_x:
        of_x = torch.empty_like(x)
        _run(
            kernels.input_gradient_kernel, launch.tiles,
            of_a, of_b, gradient, taps, of_x, *options, *launch.tile,
        )  # fmt: skip
    if for_taps:
        of_taps = _taps_gradient(x, (of_a, of_b, gradient), options, launch).to(taps.dtype)
    return of_x, of_taps


def _taps_gradient(
    x: Tensor, branch_gradients: tuple[Tensor, ...], options: tuple[int, ...], launch: _Launch
) -> Tensor:
    """Sum over parts of the pixels, then over the parts: in a fixed order, without atomics."""
    from quadranas.layers import fused_depthwise_kernels as kernels

    num_taps = options[-1]
    tile_pixels, tile_channels = max(1, launch.tile[0] // TILE_TAPS), launch.tile[1]
    programs = ceil_div(num_taps, TILE_TAPS) * launch.across
    num_tiles = ceil_div(launch.geometry[0], tile_pixels)
    tiles_per_part = ceil_div(num_tiles, max(1, PROGRAMS // programs))
    parts = ceil_div(num_tiles, tiles_per_part)
    partial = x.new_empty(parts, 3, num_taps, x.shape[1], dtype=torch.float32)
    _run(
        kernels.taps_gradient_kernel, parts * programs,
        x, *branch_gradients, partial, tiles_per_part * tile_pixels, *options,
        TILE_TAPS, tile_pixels, tile_channels,
    )  # fmt: skip
    return partial.sum(0)


@quadratic_depthwise.register_fake
def _(x: Tensor, taps: Tensor, kernel_size: int) -> Tensor:
    return torch.empty_like(x, memory_format=_memory_format(x))


@quadratic_depthwise_backward.register_fake
def _(
    gradient: Tensor, x: Tensor, taps: Tensor, kernel_size: int, for_x: bool, for_taps: bool
) -> tuple[Tensor, Tensor]:
    of_x = torch.empty_like(x, memory_format=_memory_format(x)) if for_x else x.new_empty(0)
    return of_x, torch.empty_like(taps) if for_taps else taps.new_empty(0)


def composed(x: Tensor, taps: Tensor, kernel_size: int) -> Tensor:
    """The forward pass as three convolutions of PyTorch."""
    channels, places = x.shape[1], kernel_size**2
    outputs = [
        functional.conv2d(
            x,
            branch[:places].T.reshape(channels, 1, kernel_size, kernel_size),
            branch[places] if len(branch) > places else None,
            padding=kernel_size // 2,
            groups=channels,
        )
        for branch in taps
    ]
    return torch.addcmul(outputs[2], outputs[0], outputs[1])


def _setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, int], output: Tensor) -> None:
    *tensors, ctx.kernel_size = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
    (x, taps), needed = ctx.saved_tensors, ctx.needs_input_grad[:2]
    if torch.is_grad_enabled():  # a second derivative follows; the kernels have none
        y = composed(x, taps, ctx.kernel_size)
        inputs = [tensor for tensor, on in zip((x, taps), needed, strict=True) if on]
        gradients = list(torch.autograd.grad(y, inputs, gradient, create_graph=True))
    else:
        both = quadratic_depthwise_backward(gradient, x, taps, ctx.kernel_size, *needed)
        gradients = [part for part, on in zip(both, needed, strict=True) if on]
    of_x, of_taps = (gradients.pop(0) if on else None for on in needed)
    return of_x, of_taps, None


quadratic_depthwise.register_autograd(_backward, setup_context=_setup_context)


@register_flop_formula(torch.ops.quadranas.quadratic_depthwise)
def _count_flops(
    x_shape: Sequence[int], taps_shape: Sequence[int], kernel_size: int, **_: Any
) -> int:
    """FLOPs of the three convolutions, two per multiply-add as in PyTorch."""
    return 2 * 3 * kernel_size**2 * math.prod(x_shape)
