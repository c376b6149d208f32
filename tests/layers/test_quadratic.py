"""Quadratic layers against their equations, written out neuron by neuron in float64."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from quadranas.errors import QuadranasError
from quadranas.layers.forms import FORMS
from quadranas.layers.quadratic import (
    QuadraticConv1d,
    QuadraticConv2d,
    QuadraticConv3d,
    QuadraticLayer,
    QuadraticLinear,
)

CONVS: dict[int, Any] = {1: QuadraticConv1d, 2: QuadraticConv2d, 3: QuadraticConv3d}
WINDOWS = [
    {"kernel_size": 3},
    {"kernel_size": 3, "stride": 2, "padding": 1},
    {"kernel_size": 2, "dilation": 2, "padding": 2, "groups": 2},
    {"kernel_size": 3, "padding": "same", "groups": 4},  # depthwise
    {"kernel_size": 1, "bias": False},
]


def scrambled(layer: QuadraticLayer) -> QuadraticLayer:
    """Every tensor of a size that matters, biases too."""
    with torch.no_grad():
        for tensor in layer.parameters():
            tensor.normal_(0, 0.5)
    return layer


def neuron(layer: QuadraticLayer, output: int, patch: np.ndarray) -> float:
    """One neuron's equation; a patch holds its inputs."""

    def affine(name: str, inputs: np.ndarray) -> float:
        weight = tensors[f"{name}.weight"][output].flatten().numpy()
        bias = tensors.get(f"{name}.bias", torch.zeros(output + 1))
        return float(weight @ inputs) + float(bias[output])

    tensors = layer.state_dict()
    matrix = tensors["matrix"][output].numpy() if "matrix" in tensors else np.empty(0)
    equations: dict[str, Callable[[np.ndarray], float]] = {
        "linear": lambda x: affine("c", x),
        "bilinear": lambda x: x @ matrix @ x + affine("c", x),
        "pure_bilinear": lambda x: x @ matrix @ x,
        "input_square": lambda x: affine("a", x**2),
        "output_square": lambda x: affine("a", x) ** 2,
        "product": lambda x: affine("a", x) * affine("b", x),
        "hadamard": lambda x: affine("a", x) * affine("b", x) + affine("c", x),
    }
    return float(equations[layer.form](patch))


def convolved(layer: Any, x: np.ndarray, window: dict[str, Any]) -> np.ndarray:
    """Every neuron on every patch."""
    axes = x.ndim - 2
    k, s, d = window["kernel_size"], window.get("stride", 1), window.get("dilation", 1)
    p, groups = window.get("padding", 0), window.get("groups", 1)
    p = d * (k - 1) // 2 if p == "same" else p
    x = np.pad(x, [(0, 0), (0, 0)] + [(p, p)] * axes)
    size = [(n - d * (k - 1) - 1) // s + 1 for n in x.shape[2:]]
    out = np.zeros((x.shape[0], layer.out_channels, *size))
    inputs, outputs = layer.in_channels // groups, layer.out_channels // groups
    for position in itertools.product(*map(range, size)):
        cut = [slice(i * s, i * s + d * (k - 1) + 1, d) for i in position]
        for image, output in itertools.product(range(x.shape[0]), range(layer.out_channels)):
            first = output // outputs * inputs
            index: Any = (image, slice(first, first + inputs), *cut)
            patch = x[index].flatten()
            out[(image, output, *position)] = neuron(layer, output, patch)
    return out


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("form", FORMS)
class TestEquations:
    @pytest.mark.parametrize("bias", [True, False])
    def test_a_linear_layer(self, form: str, bias: bool) -> None:
        layer = scrambled(QuadraticLinear(5, 4, bias, form=form))
        x = torch.randn(2, 3, 5)
        rows = x.reshape(-1, 5).numpy()
        expected = np.array([[neuron(layer, o, row) for o in range(4)] for row in rows])
        np.testing.assert_allclose(layer(x).detach().reshape(6, 4), expected, rtol=1e-10)

    @pytest.mark.parametrize("window", WINDOWS, ids=str)
    @pytest.mark.parametrize("axes", [1, 2, 3])
    def test_a_convolution(self, form: str, axes: int, window: dict[str, Any]) -> None:
        layer = scrambled(CONVS[axes](4, 4, **window, form=form))
        x = torch.randn(2, 4, *(5, 4, 3)[:axes])
        expected = convolved(layer, x.numpy(), window)
        np.testing.assert_allclose(layer(x).detach(), expected, rtol=1e-9, atol=1e-9)

    def test_weights_are_as_many_as_the_neuron_says(self, form: str) -> None:
        counts = {
            "linear": lambda n: n,
            "bilinear": lambda n: n * n + n,
            "pure_bilinear": lambda n: n * n,
            "input_square": lambda n: n,
            "output_square": lambda n: n,
            "product": lambda n: 2 * n,
            "hadamard": lambda n: 3 * n,
        }
        linear = QuadraticLinear(6, 5, bias=False, form=form)
        conv = QuadraticConv2d(4, 6, (3, 2), groups=2, bias=False, form=form)
        for layer, fan_in, outputs in ((linear, 6, 5), (conv, 2 * 6, 6)):
            count = sum(p.numel() for p in layer.parameters())
            assert count == outputs * counts[form](fan_in)
            assert FORMS[form].params_per_output(fan_in) == counts[form](fan_in)

    def test_its_two_terms_add_up(self, form: str) -> None:
        layer = scrambled(QuadraticConv2d(4, 6, 3, form=form))
        x = torch.randn(2, 4, 5, 5)
        first, second = layer.terms(x)
        parts = [part for part in (first, second) if part is not None]
        torch.testing.assert_close(torch.stack(parts).sum(0), layer(x))
        if first is not None and second is not None:  # only the second grows with the square
            zeros = torch.zeros_like(x)
            for term, factor in ((layer.terms(2 * x)[0], 2), (layer.terms(x)[0], 1)):
                assert term is not None
                origin = layer.terms(zeros)[0]
                assert origin is not None
                torch.testing.assert_close(term - origin, factor * (first - origin))

    @pytest.mark.parametrize("norm", [False, True])
    @pytest.mark.parametrize("conv", [False, True])
    def test_norms_stand_inside_the_branches(self, form: str, norm: bool, conv: bool) -> None:
        if FORMS[form].matrix:
            pytest.skip("the matrix's term has no norm")
        layer: QuadraticLayer = (
            QuadraticConv2d(4, 6, 3, form=form, norm=norm)
            if conv
            else QuadraticLinear(4, 6, form=form, norm=norm)
        )
        scrambled(layer)
        x = torch.randn(16, 4, 5, 5) if conv else torch.randn(16, 3, 4)
        outputs = []
        for name, branch in layer.branches.items():
            y = branch(x.square() if form == "input_square" else x)
            if norm:
                axis = 1 if conv else -1
                others = [i for i in range(y.dim()) if i != axis % y.dim()]
                y = (y - y.mean(others, keepdim=True)) / (
                    y.var(others, correction=0, keepdim=True) + 1e-5
                ).sqrt()
                shape = [-1 if i == axis % y.dim() else 1 for i in range(y.dim())]
                tensors = layer.state_dict()
                y = y * tensors[f"norms.{name}.weight"].view(shape)
                y = y + tensors[f"norms.{name}.bias"].view(shape)
            outputs.append(y)
        combine: dict[str, Callable[..., Tensor]] = {
            "linear": lambda u: u,
            "input_square": lambda u: u,
            "output_square": lambda u: u**2,
            "product": lambda u, v: u * v,
            "hadamard": lambda u, v, w: u * v + w,
        }
        torch.testing.assert_close(layer(x), combine[form](*outputs))


# ---------------------------------------------------------------- initialisation

SECOND_ORDER_ONLY = ("pure_bilinear", "input_square", "output_square", "product")


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_one_layer_keeps_the_variance(form: str, norm: bool) -> None:
    x = torch.randn(512, 128)
    y = QuadraticLinear(128, 256, form=form, norm=norm)(x)
    assert y.var().item() == pytest.approx(1, abs=0.15)
    image = torch.randn(4, 16, 18, 18)
    y = QuadraticConv2d(16, 64, 3, form=form, norm=norm)(image)
    assert y.var().item() == pytest.approx(1, abs=0.3)


@pytest.mark.parametrize("form", FORMS)
def test_fifty_layers_keep_the_variance(form: str) -> None:
    """In a row with a linear term beside the second-order one; else with LayerNorms between."""
    width = 64 if FORMS[form].matrix else 256
    variances = []
    for seed in range(5):
        torch.manual_seed(seed)
        x = torch.randn(128, width)
        with torch.no_grad():
            for _ in range(50):
                if form in SECOND_ORDER_ONLY:
                    x = functional.layer_norm(x, (width,))
                x = QuadraticLinear(width, width, form=form)(x)
        variances.append(x.var().item())
    assert 0.5 < float(np.median(variances)) < 2


def test_fifty_convolutions_keep_the_variance() -> None:
    x = torch.randn(2, 32, 108, 108)
    with torch.no_grad():
        for _ in range(50):
            x = QuadraticConv2d(32, 32, 3)(x)
    assert x.shape[-1] == 8
    assert 0.4 < x.var() < 2.5


# ---------------------------------------------------------------- back-propagation

GRADIENT_CASES: list[tuple[str, Any, tuple[int, ...]]] = [
    ("linear", lambda **o: QuadraticLinear(5, 4, **o), (2, 3, 5)),
    ("conv1d", lambda **o: QuadraticConv1d(4, 6, 3, 2, 1, groups=2, **o), (3, 4, 7)),
    ("conv2d", lambda **o: QuadraticConv2d(4, 6, 3, 2, 1, **o), (2, 4, 5, 4)),
    ("dilated", lambda **o: QuadraticConv2d(2, 4, 2, 1, 2, 2, bias=False, **o), (2, 2, 4, 4)),
    ("depthwise", lambda **o: QuadraticConv2d(3, 3, 3, 1, 1, groups=3, **o), (2, 3, 4, 4)),
    ("conv3d", lambda **o: QuadraticConv3d(2, 2, 2, **o), (2, 2, 3, 3, 3)),
]


def gradients(layer: QuadraticLayer, x: Tensor, g: Tensor) -> dict[str, Tensor | None]:
    """Gradients of everything that takes one."""
    x = x.detach().clone().requires_grad_()
    layer.zero_grad()
    layer(x).backward(g)
    return {"x": x.grad} | {name: p.grad for name, p in layer.named_parameters()}


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("make", "shape"), [c[1:] for c in GRADIENT_CASES], ids=[c[0] for c in GRADIENT_CASES]
)
def test_gradients_are_those_of_autograd(
    make: Any, shape: tuple[int, ...], form: str, norm: bool
) -> None:
    layer = scrambled(make(form=form, norm=norm))
    x = torch.randn(shape)
    g = torch.randn_like(layer(x))
    frugal = gradients(layer, x, g)
    layer.memory_efficient = False
    direct = gradients(layer, x, g)
    for name, expected in direct.items():
        torch.testing.assert_close(frugal[name], expected, rtol=1e-9, atol=1e-9)
    layer.memory_efficient = True
    layer.eval()
    tensors = (x.requires_grad_(), *layer.parameters())
    assert torch.autograd.gradcheck(lambda at, *_: layer(at), tensors, fast_mode=True)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    ("kernel", "padding", "dilation", "size"),
    [
        *((3, 1, 1, 5), (5, 2, 1, 6), (7, 3, 1, 8), (5, 0, 1, 6), (4, 2, 1, 5), (3, 2, 2, 7)),
        *(
            (7, 3, 1, 3),
            (5, 2, 1, 1),
            ((3, 5), (1, 2), (2, 1), (6, 9)),
            ((7, 1), (3, 0), 1, (4, 6)),
        ),
    ],
)
def test_gradients_of_depthwise_kernels_are_exact(
    kernel: Any, padding: Any, dilation: Any, size: Any, layout: torch.memory_format
) -> None:
    """Of all sizes, as the CPU computes them in several ways."""
    size = size if isinstance(size, tuple) else (size, size)
    x = torch.randn(3, 4, *size).to(memory_format=layout)
    layer = QuadraticConv2d(4, 4, kernel, padding=padding, dilation=dilation, groups=4)
    tensors = [x.requires_grad_(), *layer.parameters()]
    y = layer(x)
    seed = torch.randn_like(y)
    obtained = torch.autograd.grad(y, tensors, seed)
    exact = layer.double()
    exact.memory_efficient = False
    x64 = x.detach().double().requires_grad_()
    expected = torch.autograd.grad(exact(x64), [x64, *exact.parameters()], seed.double())
    for one, other in zip(obtained, expected, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("form", ["input_square", "output_square", "product", "hadamard"])
def test_second_derivatives_exist(form: str) -> None:
    layer = scrambled(QuadraticConv2d(2, 2, 3, padding=1, form=form))
    x = torch.randn(1, 2, 3, 3, requires_grad=True)
    assert torch.autograd.gradgradcheck(
        lambda at, *_: layer(at), (x, *layer.parameters()), fast_mode=True
    )


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("form", ["input_square", "output_square", "product", "hadamard"])
def test_only_the_input_is_kept(form: str, norm: bool) -> None:
    layer = QuadraticConv2d(3, 8, 3, padding=1, form=form, norm=norm)
    own = {p.data_ptr() for p in layer.parameters()}
    x = torch.randn(2, 3, 6, 6, requires_grad=True)
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        layer(x)
    assert {t.data_ptr() for t in kept} - own == {x.data_ptr()}
    frugal_bytes = sum(t.nbytes for t in kept if t.data_ptr() not in own)
    kept.clear()
    layer.memory_efficient = False
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        layer(x)
    assert sum(t.nbytes for t in kept if t.data_ptr() not in own) > frugal_bytes


def test_running_statistics_are_kept_once() -> None:
    first = QuadraticConv2d(3, 4, 3, norm=True)
    second = QuadraticConv2d(3, 4, 3, norm=True, memory_efficient=False)
    second.load_state_dict(first.state_dict())
    for layer in (first, second):
        torch.manual_seed(1)
        for _ in range(3):
            layer(torch.randn(4, 3, 5, 5)).sum().backward()
    for (name, left), right in zip(
        first.state_dict().items(), second.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(left, right, msg=name)
    assert first.state_dict()["norms.a.num_batches_tracked"] == 3


@pytest.mark.parametrize("form", FORMS)
def test_frozen_parts_take_no_gradient(form: str) -> None:
    layer = QuadraticConv2d(3, 4, 3, form=form)
    trained = dict(layer.named_parameters())
    frozen = next(iter(trained))
    trained.pop(frozen).requires_grad_(False)
    x = torch.randn(2, 3, 5, 5, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad is not None
    assert layer.get_parameter(frozen).grad is None
    for name, parameter in trained.items():
        assert parameter.grad is not None, name


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_autocast_gives_gradients_like_autograd(form: str, norm: bool) -> None:
    layer = QuadraticConv2d(4, 6, 3, form=form, norm=norm)
    x = torch.randn(4, 4, 6, 6)
    found = []
    for frugal in (True, False):
        layer.memory_efficient = frugal
        layer.zero_grad()
        at = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            y = layer(at)
        assert y.dtype == torch.bfloat16
        y.float().square().mean().backward()
        assert at.grad is not None
        assert at.grad.dtype == torch.float32
        found.append([at.grad, *(p.grad for p in layer.parameters())])
    for left, right in zip(*found, strict=True):
        assert left is not None
        assert right is not None
        scale = right.abs().max().item()
        torch.testing.assert_close(left, right, rtol=0.05, atol=0.03 * scale)


# ---------------------------------------------------------------- torch's own transformations


# torch 2.13's compiler makes an object of every autograd.Function, which torch itself warns of.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_compiled_layers_compute_the_same(form: str, norm: bool) -> None:
    layer = QuadraticConv2d(4, 6, 3, 2, 1, form=form, norm=norm)
    x = torch.randn(2, 4, 7, 7)
    g = torch.randn_like(layer(x))
    expected = gradients(layer, x, g)
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    at = x.clone().requires_grad_()
    layer.zero_grad()
    compiled(at).backward(g)
    torch.testing.assert_close(at.grad, expected["x"])
    for name, parameter in layer.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name])


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_exported_layers_are_made_of_torchs_operators(form: str, norm: bool) -> None:
    layer = QuadraticConv2d(4, 6, 3, 2, 1, form=form, norm=norm).eval()
    linear = QuadraticLinear(7, 3, form=form, norm=norm).eval()
    model = nn.Sequential(layer, nn.AdaptiveAvgPool2d((1, 7)), linear)
    x = torch.randn(2, 4, 7, 7)
    batch = torch.export.Dim("batch", min=1, max=64)
    exported = torch.export.export(model, (x,), dynamic_shapes=({0: batch},))
    more = torch.randn(5, 4, 7, 7)
    torch.testing.assert_close(exported.module()(more), model(more))
    names = {str(node.target) for node in exported.graph.nodes if node.op == "call_function"}
    assert all(name.startswith(("aten.", "<built-in", "_operator")) for name in names), names


@pytest.mark.parametrize("form", FORMS)
def test_the_memory_format_is_kept(form: str) -> None:
    layer = QuadraticConv2d(8, 8, 3, padding=1, form=form)
    x = torch.randn(2, 8, 6, 6)
    expected = layer(x)
    layer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    y = layer(x.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
    if not FORMS[form].matrix:
        assert y.is_contiguous(memory_format=torch.channels_last)


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: QuadraticLinear(4, 4, form="hadamart"), "did you mean 'hadamard'"),
        (lambda: QuadraticLinear(4, 4, init="ones"), "unknown init 'ones'; accepted: torch, unit"),  # type: ignore[arg-type]
        (lambda: QuadraticConv2d(4, 6, 3, groups=4), "groups 4 must divide in_channels 4 and"),
        (lambda: QuadraticConv2d(4, 6, 3, groups=0), "groups 0 must divide"),
        (lambda: QuadraticConv2d(4, 6, (3, 3, 3)), "kernel_size .* must be an integer"),
        (lambda: QuadraticConv2d(4, 6, 3, stride=0), "stride 0 must be an integer of at"),
        (lambda: QuadraticConv1d(4, 6, 3, padding=-1), "padding -1 must be an integer"),
        (lambda: QuadraticConv2d(4, 6, 2, padding="same"), "padding 'same' does not fit"),
        (lambda: QuadraticConv2d(4, 6, 3, 2, padding="same"), "padding 'same' does not fit"),
    ],
)
def test_impossible_layers_are_refused(make: Any, message: str) -> None:
    with pytest.raises(QuadranasError, match=message):
        make()
