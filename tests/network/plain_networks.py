"""QuadraNets and networks of inverted bottlenecks from their equations, in NumPy and float64."""

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from quadranas.space.architecture import Architecture

Array = NDArray[np.float64]
Weights = Mapping[str, Array]

DEPTHS = (2, 3, 18, 2)


def layer_norm(x: Array, weights: Weights, name: str) -> Array:
    """Over the last axis."""
    centred = x - x.sum(-1, keepdims=True) / x.shape[-1]
    variance = (centred**2).sum(-1, keepdims=True) / x.shape[-1]
    scaled: Array = centred / np.sqrt(variance + 1e-6)
    return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def linear(x: Array, weights: Weights, name: str) -> Array:
    rows = x.reshape(-1, x.shape[-1])
    out = rows @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]
    return out.reshape(*x.shape[:-1], -1)


def gelu(x: Array) -> Array:
    erf: Array = np.vectorize(math.erf, otypes=[np.float64])(x / math.sqrt(2))
    return x * 0.5 * (1 + erf)


def convolution(x: Array, kernel: Array, stride: int, padding: int, *, depthwise: bool) -> Array:
    """A sum over taps. Shapes: x (B, H, W, C), kernel (C_out, C_in or 1, K, K)."""
    size = kernel.shape[-1]
    x = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    high, wide = ((n - size) // stride + 1 for n in x.shape[1:3])
    out = np.zeros((x.shape[0], high, wide, kernel.shape[0]))
    for row in range(size):
        for column in range(size):
            rows = slice(row, row + stride * (high - 1) + 1, stride)
            columns = slice(column, column + stride * (wide - 1) + 1, stride)
            tap = x[:, rows, columns]
            weights = kernel[..., row, column]  # (C_out, C_in or 1)
            out += tap * weights[:, 0] if depthwise else tap @ weights.T
    return out


def patches(x: Array, weights: Weights, name: str) -> Array:
    """A convolution whose stride is its kernel."""
    kernel = weights[f"{name}.weight"]
    out = convolution(x, kernel, kernel.shape[-1], 0, depthwise=False)
    return out + weights[f"{name}.bias"]


def quadratic_depthwise(x: Array, weights: Weights, names: tuple[str, str, str]) -> Array:
    a, b, c = (
        convolution(x, kernel, 1, kernel.shape[-1] // 2, depthwise=True) + weights[f"{name}.bias"]
        for name in names
        for kernel in [weights[f"{name}.weight"]]
    )
    return a * b + c


def maybe_quadratic(x: Array, weights: Weights, name: str) -> Array:
    if f"{name}.a.weight" not in weights:
        return linear(x, weights, name)
    a, b, c = (linear(x, weights, f"{name}.{branch}") for branch in "abc")
    return a * b + c


def plain_quadranet(images: Array, weights: Weights) -> Array:
    """QuadraNet25 from the equations, under our names."""
    x = patches(images, weights, "blocks.stage1_entry.patch_stem.conv")
    x = layer_norm(x, weights, "blocks.stage1_entry.patch_stem.norm")
    for stage, depth in enumerate(DEPTHS, start=1):
        if stage > 1:
            entry = f"blocks.stage{stage}_entry.downsample"
            x = patches(layer_norm(x, weights, f"{entry}.norm"), weights, f"{entry}.conv")
        for index in range(1, depth + 1):
            block = f"blocks.stage{stage}_block{index}"
            conv, part = f"{block}.quadratic_depthwise", f"{block}.feed_forward"
            branches = (f"{conv}.conv.a", f"{conv}.conv.b", f"{conv}.conv.c")
            y = quadratic_depthwise(layer_norm(x, weights, f"{conv}.norm"), weights, branches)
            x = x + weights[f"{conv}.gamma"] * y
            y = maybe_quadratic(layer_norm(x, weights, f"{part}.norm"), weights, f"{part}.expand")
            y = maybe_quadratic(gelu(y), weights, f"{part}.project")
            x = x + weights[f"{part}.gamma"] * y
    x = layer_norm(x.mean((1, 2)), weights, "blocks.head.norm_head.norm")
    return linear(x, weights, "blocks.head.norm_head.linear")


def published_quadranet(images: Array, weights: Weights, depths: tuple[int, ...]) -> Array:
    """QuadraNet from the equations, under the names of the published checkpoints."""
    x = images
    for stage, depth in enumerate(depths):
        entry = f"downsample_layers.{stage}"
        if stage == 0:
            x = layer_norm(patches(x, weights, f"{entry}.0"), weights, f"{entry}.1")
        else:
            x = patches(layer_norm(x, weights, f"{entry}.0"), weights, f"{entry}.1")
        for index in range(depth):
            block = f"stages.{stage}.{index}"
            conv = f"{block}.QuadraConv.conv"
            y = layer_norm(x, weights, f"{block}.norm1")
            y = quadratic_depthwise(y, weights, (f"{conv}1", f"{conv}2", f"{conv}3"))
            x = x + weights[f"{block}.gamma1"] * y
            y = linear(layer_norm(x, weights, f"{block}.norm2"), weights, f"{block}.pwconv1")
            x = x + weights[f"{block}.gamma2"] * linear(gelu(y), weights, f"{block}.pwconv2")
    return linear(layer_norm(x.mean((1, 2)), weights, "norm"), weights, "head")


def batch_norm(x: Array, weights: Weights, name: str) -> Array:
    centred = x - weights[f"{name}.running_mean"]
    scaled = centred / np.sqrt(weights[f"{name}.running_var"] + 1e-5)
    return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def plain_mobile_network(images: Array, weights: Weights, network: Architecture) -> Array:
    """A network of inverted bottlenecks from the equations, in evaluation mode."""
    x = images
    for block in network.blocks:
        (op,) = block.ops
        prefix = f"blocks.{block.name}.{op.kind}"
        if op.kind == "conv_bn":
            kernel = weights[f"{prefix}.0.weight"]
            x = convolution(x, kernel, op.stride, op.kernel_size // 2, depthwise=False)
            x = np.clip(batch_norm(x, weights, f"{prefix}.1"), 0, 6)
        elif op.kind == "mbconv":
            layer, y = 0, x
            if op.expand_ratio > 1:
                y = convolution(y, weights[f"{prefix}.layers.0.weight"], 1, 0, depthwise=False)
                y = np.clip(batch_norm(y, weights, f"{prefix}.layers.1"), 0, 6)
                layer = 3
            kernel = weights[f"{prefix}.layers.{layer}.weight"]
            y = convolution(y, kernel, op.stride, op.kernel_size // 2, depthwise=True)
            y = np.clip(batch_norm(y, weights, f"{prefix}.layers.{layer + 1}"), 0, 6)
            kernel = weights[f"{prefix}.layers.{layer + 3}.weight"]
            y = convolution(y, kernel, 1, 0, depthwise=False)
            y = batch_norm(y, weights, f"{prefix}.layers.{layer + 4}")
            x = x + y if (op.stride, op.in_channels) == (1, op.out_channels) else y
        else:
            x = linear(x.mean((1, 2)), weights, f"{prefix}.linear")
    return x


def arrays(tensors: Mapping[str, Tensor]) -> dict[str, Array]:
    return {name: tensor.double().numpy() for name, tensor in tensors.items()}
