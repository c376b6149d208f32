"""The fused kernels against float64. `test_fused_depthwise` runs this file in other processes.

On a GPU, or with TRITON_INTERPRET=1 on the CPU; Triton reads that variable when it is imported.
There the tiles are made small: an interpreted operation takes the better part of a millisecond.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import triton
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from quadranas.layers import fused_depthwise, fused_depthwise_ops
from quadranas.layers.algebra import Branch
from quadranas.layers.first_order import Convolution
from quadranas.layers.fused_depthwise_ops import composed, quadratic_depthwise
from quadranas.layers.quadratic import QuadraticConv2d

INTERPRETED = triton.knobs.runtime.interpret
DEVICE = "cpu" if INTERPRETED else "cuda"
LAYOUTS = {"planes": torch.contiguous_format, "channels_last": torch.channels_last}
ROUNDING = {torch.float32: 2e-6, torch.float16: 2**-10, torch.bfloat16: 2**-7}
"""Accepted error as a share of the greatest value, or of 1: twice the rounding of a stored 16-bit
number, and in float32 what sums of thousands of products lose."""

# Layout; batch, channels, height, width, K, biases
SMALL = [
    ("channels_last", (2, 3, 5, 7, 3, True)),  # two tiles of pixels
    ("planes", (2, 2, 5, 7, 3, True)),
    ("channels_last", (1, 3, 3, 4, 5, False)),  # a window that is greater than the image
    ("channels_last", (2, 6, 5, 7, 1, True)),  # two tiles of pixels and two of channels
    ("planes", (2, 2, 3, 3, 1, True)),
]
TINY = [
    ("channels_last", (1, 2, 3, 4, 3, True), torch.float16),
    ("planes", (1, 2, 2, 2, 3, True), torch.bfloat16),  # a window greater than the image
]
"""A kernel computes in float32 whatever it reads, so that layouts and types are independent."""
LARGE = [
    (layout, case)
    for layout in LAYOUTS
    for case in (
        (3, 33, 28, 27, 7, True),
        (128, 64, 14, 14, 7, True),
        (2, 100, 57, 31, 13, False),
        (5, 3, 64, 33, 5, True),
    )
]


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    if INTERPRETED:
        for name, size in (("TILE", 256), ("TILE_CHANNELS", 4), ("PLANE_TILE", 64)):
            monkeypatch.setattr(fused_depthwise_ops, name, size)
        monkeypatch.setattr(fused_depthwise_ops, "PROGRAMS", 8)


def reference(x: Tensor, branches: list[Branch], size: int) -> Tensor:
    """The equation, written out window by window."""
    height, width = x.shape[2:]
    padded = functional.pad(x, (size // 2,) * 4)
    a, b, c = (
        sum(
            (
                padded[:, :, i : i + height, j : j + width] * branch.weight[:, 0, i, j, None, None]
                for i in range(size)
                for j in range(size)
            ),
            torch.zeros_like(x) if branch.bias is None else branch.bias[:, None, None],
        )
        for branch in branches
    )
    return a * b + c


def tensors(case: tuple[Any, ...], layout: str, dtype: torch.dtype) -> tuple[Tensor, list[Branch]]:
    batch, channels, height, width, size, bias = case
    x = torch.randn(batch, channels, height, width)
    drawn = [
        (torch.randn(channels, 1, size, size) / size, torch.randn(channels) if bias else None)
        for _ in range(3)
    ]
    place: dict[str, Any] = {"device": DEVICE, "dtype": dtype}
    branches = [Branch(w.to(**place), None if b is None else b.to(**place)) for w, b in drawn]
    return x.to(**place, memory_format=LAYOUTS[layout]), branches


def leaves(x: Tensor, branches: list[Branch]) -> list[Tensor]:
    flat = [tensor for branch in branches for tensor in branch[:2] if tensor is not None]
    return [tensor.requires_grad_() for tensor in (x, *flat)]


def convolution(size: int, channels: int) -> Convolution:
    return Convolution(
        kernel_size=(size, size),
        stride=(1, 1),
        padding=(size // 2, size // 2),
        dilation=(1, 1),
        groups=channels,
    )


def fused(x: Tensor, branches: list[Branch]) -> Tensor:
    size = branches[0].weight.shape[-1]
    return fused_depthwise.fused("hadamard", convolution(size, x.shape[1]), x, branches, ())


def close(actual: Tensor | None, expected: Tensor | None, dtype: torch.dtype) -> None:
    assert actual is not None
    assert expected is not None
    assert actual.dtype == dtype
    error = (actual.double() - expected.double()).abs().max()
    assert error <= ROUNDING[dtype] * max(1.0, expected.abs().max().item())


def check(case: tuple[Any, ...], layout: str, dtype: torch.dtype) -> None:
    x, branches = tensors(case, layout, dtype)
    inputs = leaves(x, branches)
    exact_x = x.detach().double()
    exact_branches = [
        Branch(*(None if t is None else t.detach().double() for t in branch[:2]))  # type: ignore[arg-type]
        for branch in branches
    ]
    exact_inputs = leaves(exact_x, exact_branches)
    y, exact = fused(x, branches), reference(exact_x, exact_branches, case[4])
    close(y, exact, dtype)
    assert y.is_contiguous(memory_format=LAYOUTS[layout])
    gradient = torch.randn(y.shape).to(y)
    y.backward(gradient)
    exact.backward(gradient.double())
    for tensor, wanted in zip(inputs, exact_inputs, strict=True):
        close(tensor.grad, wanted.grad, dtype)


@pytest.mark.parametrize(("layout", "case"), SMALL if INTERPRETED else SMALL + LARGE, ids=str)
def test_output_and_gradients_in_float32(layout: str, case: tuple[Any, ...]) -> None:
    check(case, layout, torch.float32)


@pytest.mark.parametrize(
    ("layout", "case", "dtype"),
    TINY
    if INTERPRETED
    else [(*case, dtype) for case in LARGE for dtype in (torch.float16, torch.bfloat16)],
    ids=str,
)
def test_output_and_gradients_in_16_bits(
    layout: str, case: tuple[Any, ...], dtype: torch.dtype
) -> None:
    check(case, layout, dtype)


def test_tiles_as_large_as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    check((1, 3, 5, 6, 3, True), "channels_last", torch.float32)
    check((1, 2, 3, 4, 3, True), "planes", torch.float32)


def test_the_greatest_window() -> None:
    x, branches = tensors((1, 2, 3, 4, 13, True), "channels_last", torch.float32)
    exact = [Branch(*(t.double() for t in branch[:2] if t is not None)) for branch in branches]
    close(fused(x, branches), reference(x.double(), exact, 13), torch.float32)


def pixelwise() -> tuple[Tensor, Tensor]:
    """Inputs for K = 1, which is quick, with `taps` as the operator takes them."""
    x = torch.randn(2, 2, 4, 3, device=DEVICE, requires_grad=True)
    return x, torch.randn(3, 2, 2, device=DEVICE, requires_grad=True)


def test_inputs_and_gradients_in_any_layout() -> None:
    x, taps = pixelwise()
    expected = torch.autograd.grad(composed(x, taps, 1).sum(), (x, taps))
    turned = x.detach().transpose(2, 3).contiguous().transpose(2, 3).requires_grad_()
    y = quadratic_depthwise(turned, taps, 1)
    found = torch.autograd.grad(y.sum(), (turned, taps))  # the gradient of a sum has no strides
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("frozen", [0, 1])
def test_only_what_is_asked_for_gets_a_gradient(frozen: int) -> None:
    inputs = pixelwise()
    inputs[frozen].requires_grad_(False)
    free = inputs[1 - frozen]
    (expected,) = torch.autograd.grad(composed(*inputs, 1).square().sum(), free)
    quadratic_depthwise(*inputs, 1).square().sum().backward()
    assert inputs[frozen].grad is None
    torch.testing.assert_close(free.grad, expected)


def test_second_derivatives() -> None:
    found = []
    x, taps = pixelwise()
    for function in (quadratic_depthwise, composed):
        (slope,) = torch.autograd.grad(function(x, taps, 1).square().sum(), x, create_graph=True)
        found.append(torch.autograd.grad(slope.square().sum(), (x, taps)))
    torch.testing.assert_close(*found)


def test_the_operators_keep_pytorchs_rules() -> None:
    x, taps = pixelwise()
    rules = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(quadratic_depthwise, (x, taps, 1), test_utils=rules)
    backward = fused_depthwise_ops.quadratic_depthwise_backward
    last = x.detach().contiguous(memory_format=torch.channels_last)
    for image, *wanted in ((x.detach(), True, True), (last, True, False), (last, False, True)):
        arguments = (torch.randn_like(image), image, taps.detach(), 1, *wanted)
        torch.library.opcheck(backward, arguments, test_utils=rules)


def test_macs_are_counted_as_those_of_three_convolutions() -> None:
    x, taps = tensors((2, 3, 4, 5, 3, False), "planes", torch.float32)[0], torch.randn(3, 9, 3)
    counts = []
    for function in (quadratic_depthwise, composed):
        with FlopCounterMode(display=False) as counter:
            function(x, taps.to(DEVICE), 3)
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


# ---------------------------------------------------------------- layers


@pytest.fixture
def layer(monkeypatch: pytest.MonkeyPatch) -> tuple[QuadraticConv2d, list[Tensor]]:
    """A layer that is taken for one on a GPU, and the inputs that came to the kernels."""
    seen: list[Tensor] = []
    real = fused_depthwise.fused

    def spy(*call: Any) -> Tensor:
        seen.append(call[2])
        return real(*call)

    if INTERPRETED:
        monkeypatch.setattr(fused_depthwise, "runs_fused", lambda *call: True)
    monkeypatch.setattr(fused_depthwise, "fused", spy)
    return QuadraticConv2d(2, 2, 3, padding=1, groups=2, init="torch").to(DEVICE), seen


def slopes(layer: nn.Module, run: Callable[[Tensor], Tensor], x: Tensor) -> list[Tensor]:
    x = x.clone().requires_grad_()
    y = run(x)
    found = torch.autograd.grad(y.float().square().sum(), [x, *layer.parameters()])
    return [y, *found]


def test_a_layer_uses_the_kernels_unless_told_otherwise(layer: Any) -> None:
    conv, seen = layer
    x = torch.randn(1, 2, 4, 3, device=DEVICE).contiguous(memory_format=torch.channels_last)
    found = slopes(conv, conv, x)
    assert len(seen) == 1
    conv.memory_efficient = False
    torch.testing.assert_close(found, slopes(conv, conv, x), rtol=1e-4, atol=1e-4)
    assert len(seen) == 1


def test_a_layer_under_autocast(layer: Any) -> None:
    conv, seen = layer
    x = torch.randn(1, 2, 4, 3, device=DEVICE).contiguous(memory_format=torch.channels_last)
    exact = slopes(conv, conv, x)
    with torch.autocast(DEVICE, torch.bfloat16):
        found = slopes(conv, conv, x)
    assert seen[-1].dtype == found[0].dtype == torch.bfloat16
    for tensor, expected in zip(found, exact, strict=True):
        scale = expected.abs().max().item()
        torch.testing.assert_close(tensor.float(), expected, rtol=0, atol=0.03 * scale)


def test_a_compiled_layer(layer: Any) -> None:
    conv, seen = layer
    x = torch.randn(1, 2, 4, 3, device=DEVICE).contiguous(memory_format=torch.channels_last)
    assert not seen
    backend = "aot_eager" if INTERPRETED else "inductor"
    compiled = torch.compile(conv, fullgraph=True, backend=backend)
    torch.testing.assert_close(
        slopes(conv, compiled, x), slopes(conv, conv, x), rtol=1e-4, atol=1e-4
    )


@pytest.mark.skipif(INTERPRETED, reason="an interpreted kernel runs in one thread")
def test_sums_are_taken_in_the_same_order_every_time() -> None:
    x, branches = tensors((16, 64, 28, 28, 7, True), "channels_last", torch.float16)
    runs = []
    for _ in range(3):
        inputs = leaves(x, branches)
        y = fused(x, branches)
        runs.append([y, *torch.autograd.grad(y, inputs, torch.ones_like(y))])
    for run in runs[1:]:
        assert all(torch.equal(*pair) for pair in zip(run, runs[0], strict=True))
