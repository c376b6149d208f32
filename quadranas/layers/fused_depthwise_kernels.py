"""The Triton kernels that `fused_depthwise_ops` launches. Importing this module imports triton.

Weights and biases are passed as `taps`, (3, T, C): the weights of `a`, `b` and `c` at each of the
K^2 positions of the window; biases, if any, are one more tap, whose input is 1.

A tile is a number of pixels times a number of channels. Pixels are numbered through the whole
batch, so that small images fill a tile too. The two memory layouts differ in the strides of pixels
and channels and in the shape of the tile, which is wide along the contiguous axis.
"""

import triton
import triton.language as tl


@triton.jit  # type: ignore[untyped-decorator]
def _tile(  # type: ignore[no-untyped-def]
    first_pixel, first_channel, num_pixels, channels, height, width, pixel_stride, channel_stride,
    tile_pixels: tl.constexpr, tile_channels: tl.constexpr,
):  # fmt: skip
    """Offsets in memory (P, C), rows and columns (P, 1), channels (1, C), mask of elements."""
    pixel = (first_pixel + tl.arange(0, tile_pixels))[:, None]
    channel = (first_channel + tl.arange(0, tile_channels))[None, :]
    place = pixel % (height * width)
    image = pixel // (height * width)
    offset = image * (channels * height * width) + place * pixel_stride + channel * channel_stride
    real = (pixel < num_pixels) & (channel < channels)
    return offset, place // width, place % width, channel, real


@triton.jit  # type: ignore[untyped-decorator]
def _own_tile(  # type: ignore[no-untyped-def]
    num_pixels, channels, height, width, pixel_stride, channel_stride,
    tile_pixels: tl.constexpr, tile_channels: tl.constexpr,
):  # fmt: skip
    """The tile of this program, for kernels with one program per tile."""
    across = tl.cdiv(channels, tile_channels)
    program = tl.program_id(0)
    return _tile(
        program // across * tile_pixels, program % across * tile_channels,
        num_pixels, channels, height, width, pixel_stride, channel_stride,
        tile_pixels, tile_channels,
    )  # fmt: skip


@triton.jit
def _shifted(  # type: ignore[no-untyped-def]
    image_ptr, offset, row, column, real, down, right, height, width, pixel_stride
):
    """The elements `down` rows and `right` columns from every pixel; zeros outside the image."""
    inside = (row + down >= 0) & (row + down < height)
    inside &= (column + right >= 0) & (column + right < width)
    shift = (down * width + right) * pixel_stride
    return tl.load(image_ptr + offset + shift, mask=real & inside, other=0.0).to(tl.float32)


@triton.jit  # type: ignore[untyped-decorator]
def _tap(taps_ptr, branch, tap, channel, channels, num_taps: tl.constexpr):  # type: ignore[no-untyped-def]
    at = taps_ptr + (branch * num_taps + tap) * channels + channel
    return tl.load(at, mask=channel < channels, other=0.0).to(tl.float32)


@triton.jit  # type: ignore[untyped-decorator]
def _branches(  # type: ignore[no-untyped-def]
    x_ptr, taps_ptr, offset, row, column, channel, real, channels, height, width, pixel_stride,
    kernel_size: tl.constexpr, num_taps: tl.constexpr, linear: tl.constexpr,
):  # fmt: skip
    """The outputs of a, b and, if `linear`, c on a tile."""
    places: tl.constexpr = kernel_size * kernel_size
    a = tl.zeros(offset.shape, tl.float32)
    b = tl.zeros(offset.shape, tl.float32)
    c = tl.zeros(offset.shape, tl.float32)
    if num_taps > places:
        a += _tap(taps_ptr, 0, places, channel, channels, num_taps)
        b += _tap(taps_ptr, 1, places, channel, channels, num_taps)
        if linear:
            c += _tap(taps_ptr, 2, places, channel, channels, num_taps)
    for down in range(kernel_size):
        for right in tl.static_range(kernel_size):
            x = _shifted(
                x_ptr, offset, row, column, real, down - kernel_size // 2,
                right - kernel_size // 2, height, width, pixel_stride,
            )  # fmt: skip
            tap = down * kernel_size + right
            a += x * _tap(taps_ptr, 0, tap, channel, channels, num_taps)
            b += x * _tap(taps_ptr, 1, tap, channel, channels, num_taps)
            if linear:
                c += x * _tap(taps_ptr, 2, tap, channel, channels, num_taps)
    return a, b, c


@triton.jit  # type: ignore[untyped-decorator]
def forward_kernel(  # type: ignore[no-untyped-def]
    x_ptr, taps_ptr, y_ptr,
    num_pixels, channels, height, width, pixel_stride, channel_stride,
    kernel_size: tl.constexpr, num_taps: tl.constexpr,
    tile_pixels: tl.constexpr, tile_channels: tl.constexpr,
):  # fmt: skip
    """The output `a(x) b(x) + c(x)`."""
    offset, row, column, channel, real = _own_tile(
        num_pixels, channels, height, width, pixel_stride, channel_stride,
        tile_pixels, tile_channels,
    )  # fmt: skip
    a, b, c = _branches(
        x_ptr, taps_ptr, offset, row, column, channel, real, channels, height, width,
        pixel_stride, kernel_size, num_taps, True,
    )  # fmt: skip
    tl.store(y_ptr + offset, a * b + c, mask=real)


@triton.jit  # type: ignore[untyped-decorator]
def branch_gradients_kernel(  # type: ignore[no-untyped-def]
    x_ptr, taps_ptr, gradient_ptr, a_gradient_ptr, b_gradient_ptr,
    num_pixels, channels, height, width, pixel_stride, channel_stride,
    kernel_size: tl.constexpr, num_taps: tl.constexpr,
    tile_pixels: tl.constexpr, tile_channels: tl.constexpr,
):  # fmt: skip
    """The gradients in the outputs of a, `g b(x)`, and of b, `g a(x)`."""
    offset, row, column, channel, real = _own_tile(
        num_pixels, channels, height, width, pixel_stride, channel_stride,
        tile_pixels, tile_channels,
    )  # fmt: skip
    a, b, _ = _branches(
        x_ptr, taps_ptr, offset, row, column, channel, real, channels, height, width,
        pixel_stride, kernel_size, num_taps, False,
    )  # fmt: skip
    gradient = tl.load(gradient_ptr + offset, mask=real, other=0.0).to(tl.float32)
    tl.store(a_gradient_ptr + offset, gradient * b, mask=real)
    tl.store(b_gradient_ptr + offset, gradient * a, mask=real)


@triton.jit  # type: ignore[untyped-decorator]
def input_gradient_kernel(  # type: ignore[no-untyped-def]
    a_gradient_ptr, b_gradient_ptr, c_gradient_ptr, taps_ptr, x_gradient_ptr,
    num_pixels, channels, height, width, pixel_stride, channel_stride,
    kernel_size: tl.constexpr, num_taps: tl.constexpr,
    tile_pixels: tl.constexpr, tile_channels: tl.constexpr,
):  # fmt: skip
    """The branches' gradients correlated with the flipped weights."""
    offset, row, column, channel, real = _own_tile(
        num_pixels, channels, height, width, pixel_stride, channel_stride,
        tile_pixels, tile_channels,
    )  # fmt: skip
    total = tl.zeros(offset.shape, tl.float32)
    for down in range(kernel_size):
        for right in tl.static_range(kernel_size):
            for branch in tl.static_range(3):
                if branch == 0:
                    image_ptr = a_gradient_ptr
                elif branch == 1:
                    image_ptr = b_gradient_ptr
                else:
                    image_ptr = c_gradient_ptr
                gradient = _shifted(
                    image_ptr, offset, row, column, real, kernel_size // 2 - down,
                    kernel_size // 2 - right, height, width, pixel_stride,
                )  # fmt: skip
                tap = down * kernel_size + right
                total += gradient * _tap(taps_ptr, branch, tap, channel, channels, num_taps)
    tl.store(x_gradient_ptr + offset, total, mask=real)


@triton.jit  # type: ignore[untyped-decorator]
def taps_gradient_kernel(  # type: ignore[no-untyped-def]
    x_ptr, a_gradient_ptr, b_gradient_ptr, c_gradient_ptr, partial_ptr, pixels_per_part,
    num_pixels, channels, height, width, pixel_stride, channel_stride,
    kernel_size: tl.constexpr, num_taps: tl.constexpr,
    tile_taps: tl.constexpr, tile_pixels: tl.constexpr, tile_channels: tl.constexpr,
):  # fmt: skip
    """Gradients in some taps, summed over one part of the pixels."""
    # The sums over a tile's pixels are taken once, after the loop: `a`, `b` and `c` keep one
    # accumulator per pixel of the tile.
    blocks = tl.cdiv(num_taps, tile_taps)
    across = tl.cdiv(channels, tile_channels)
    part = tl.program_id(0) // (blocks * across)
    first_channel = tl.program_id(0) // blocks % across * tile_channels
    tap = tl.program_id(0) % blocks * tile_taps + tl.arange(0, tile_taps)
    down = (tap // kernel_size - kernel_size // 2)[:, None, None]
    right = (tap % kernel_size - kernel_size // 2)[:, None, None]
    is_bias = (tap == kernel_size * kernel_size)[:, None, None]
    a = tl.zeros((tile_taps, tile_pixels, tile_channels), tl.float32)
    b = tl.zeros((tile_taps, tile_pixels, tile_channels), tl.float32)
    c = tl.zeros((tile_taps, tile_pixels, tile_channels), tl.float32)
    begin = part * pixels_per_part
    for first_pixel in range(begin, min(begin + pixels_per_part, num_pixels), tile_pixels):
        offset, row, column, channel, real = _tile(
            first_pixel, first_channel,
            num_pixels, channels, height, width, pixel_stride, channel_stride,
            tile_pixels, tile_channels,
        )  # fmt: skip
        x = _shifted(
            x_ptr, offset[None, :, :], row[None, :, :], column[None, :, :], real[None, :, :],
            down, right, height, width, pixel_stride,
        )  # fmt: skip
        x = tl.where(is_bias, 1.0, x)
        a += x * tl.load(a_gradient_ptr + offset, mask=real, other=0.0).to(tl.float32)[None, :, :]
        b += x * tl.load(b_gradient_ptr + offset, mask=real, other=0.0).to(tl.float32)[None, :, :]
        c += x * tl.load(c_gradient_ptr + offset, mask=real, other=0.0).to(tl.float32)[None, :, :]
    channel = (first_channel + tl.arange(0, tile_channels))[None, :]
    at = partial_ptr + (part * 3 * num_taps + tap[:, None]) * channels + channel
    stored = (tap[:, None] < num_taps) & (channel < channels)
    tl.store(at, tl.sum(a, 1), mask=stored)
    tl.store(at + num_taps * channels, tl.sum(b, 1), mask=stored)
    tl.store(at + 2 * num_taps * channels, tl.sum(c, 1), mask=stored)
