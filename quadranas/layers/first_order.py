"""First-order maps: the linear operators in quadratic neurons."""

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional


class FirstOrderMap(Protocol):
    """The operator that the branches of a layer share; the weights are arguments."""

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The output of a branch."""

    def backward(
        self, gradient: Tensor, x: Tensor, weight: Tensor, mask: tuple[bool, bool, bool]
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Gradients in input, weight and bias; None where the mask is False."""

    def patches(self, x: Tensor) -> Tensor:
        """The inputs of every neuron: (B, G, n, P), G groups, n inputs, P positions."""

    def arrange(self, values: Tensor, x: Tensor) -> Tensor:
        """Values of neurons, (B, outputs, P), in the shape of the output for the input `x`."""

    def normed_view(self, output: Tensor) -> Tensor:
        """A branch's output with its channels on axis 1, where BatchNorm expects them."""

    def shifted(self, output: Tensor, bias: Tensor) -> Tensor:
        """An output plus a bias."""

    def weight_shape(self, fan_in: int) -> tuple[int, ...]:
        """Shape of the weights of a neuron with `fan_in` inputs."""


@dataclass(frozen=True)
class LinearMap:
    """A matrix applied to the last axis."""

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

    def shifted(self, output: Tensor, bias: Tensor) -> Tensor:
        """See `FirstOrderMap`."""
        return output + bias

    def weight_shape(self, fan_in: int) -> tuple[int, ...]:
        """See `FirstOrderMap`."""
        return (fan_in,)


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

        The bias gradient is summed separately: computing it together with the weight gradient
        takes oneDNN 1.3 to 3 times as long for depthwise kernels of 5 and 7 (torch 2.13, one core
        of an EPYC).
        """
        axes = range(2, gradient.ndim)
        small = self._pads_less_than(gradient)
        flipped = mask[0] and small and self._prefers_flipped(weight)
        swapped = mask[1] and small and self._prefers_swapped(weight)
        of_input, of_weight, _ = torch.ops.aten.convolution_backward(
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
            [mask[0] and not flipped, mask[1] and not swapped, False],
        )
        if flipped:
            of_input = self._flipped_convolution(gradient, weight)
        if swapped:
            of_weight = self._swapped_convolution(gradient, x)
        return of_input, of_weight, gradient.sum((0, *axes)) if mask[2] else None

    def _pads_less_than(self, image: Tensor) -> bool:
        """Whether the padding is smaller than an image, as oneDNN's fast kernels need it."""
        return all(p < size for p, size in zip(self.padding, image.shape[2:], strict=True))

    def _is_depthwise_on_cpu(self, weight: Tensor) -> bool:
        depthwise = weight.shape[:2] == (self.groups, 1) and max(self.stride) == 1
        return depthwise and weight.device.type == "cpu"

    def _prefers_flipped(self, weight: Tensor) -> bool:
        """Whether `_flipped_convolution` is the faster way to the input gradient.

        It is for depthwise convolutions on the CPU: 0.54 ms instead of 1.21 (torch 2.13, 64 x 240
        channels x 8 x 8, 5x5, channels_last, one core of an AMD EPYC, 2026-11-29).
        """
        fits = all(p <= span for p, span in zip(self.padding, self._spans(), strict=True))
        return fits and self._is_depthwise_on_cpu(weight)

    def _flipped_convolution(self, gradient: Tensor, weight: Tensor) -> Tensor:
        """The input gradient as a convolution with the flipped kernels."""
        margin = tuple(span - p for span, p in zip(self._spans(), self.padding, strict=True))
        kernels = weight.flip(list(range(2, weight.dim())))
        return replace(self, padding=margin)(gradient, kernels, None)

    def _prefers_swapped(self, weight: Tensor) -> bool:
        """Whether `_swapped_convolution` is the faster way to the weight gradient.

        It is for depthwise convolutions on the CPU that are wider than three pixels or dilated.
        For them oneDNN computes the gradients of 16 x 16 pairs of channels, of which 16 are used:
        8.6 ms instead of 4.5, and 77 instead of 2.5 in NCHW (as in `_prefers_flipped`).
        """
        wide = max(self.kernel_size) > 3 or max(self.dilation) > 1
        measured = weight.dtype == torch.float32 and len(self.kernel_size) == 2
        return wide and measured and self._is_depthwise_on_cpu(weight)

    def _swapped_convolution(self, gradient: Tensor, x: Tensor) -> Tensor:
        """The weight gradient as a convolution of every input channel with its gradient's."""
        batch, channels = x.shape[:2]
        images = x.reshape(1, batch * channels, *x.shape[2:])
        kernels = gradient.reshape(batch * channels, 1, *gradient.shape[2:])
        swapped = replace(
            self, stride=self.dilation, dilation=self.stride, groups=batch * channels
        )
        products = swapped(images, kernels, None)  # (1, B C, *kernel)
        return products.reshape(batch, channels, 1, *self.kernel_size).sum(0)

    def _spans(self) -> list[int]:
        return [d * (k - 1) for d, k in zip(self.dilation, self.kernel_size, strict=True)]

    def patches(self, x: Tensor) -> Tensor:
        """See `FirstOrderMap`.

        A convolution with one-hot kernels extracts them; `unfold` supports two axes only.
        """
        batch, channels = x.shape[:2]
        size = torch.Size(self.kernel_size).numel()
        one_hot = torch.eye(size, dtype=x.dtype, device=x.device)
        one_hot = one_hot.reshape(size, 1, *self.kernel_size)
        kernels = one_hot.repeat(channels, *(1 for _ in one_hot.shape[1:]))  # (C K, 1, *kernel)
        patches = self._convolve(x, kernels, None, channels)  # (B, C K, *size')
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

    def shifted(self, output: Tensor, bias: Tensor) -> Tensor:
        """See `FirstOrderMap`."""
        return output + bias.reshape(-1, *(1 for _ in self.kernel_size))

    def weight_shape(self, fan_in: int) -> tuple[int, ...]:
        """See `FirstOrderMap`."""
        return (fan_in // torch.Size(self.kernel_size).numel(), *self.kernel_size)
