"""Adapted layers: what they compute, against a plain reference, and how they begin to learn."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from quadranas.errors import QuadranasError
from quadranas.layers.adapted import AdaptedLayer, adapted_layers, max_rank
from quadranas.layers.replacement import changed, set_memory_efficient
from quadranas.space.architecture import LayerChange

LAYERS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "linear": (nn.Linear(6, 5), (4, 6)),
    "linear on pixels": (nn.Linear(6, 5, bias=False), (2, 3, 3, 6)),
    "conv1d": (nn.Conv1d(4, 6, 3, padding=1), (2, 4, 9)),
    "conv2d": (nn.Conv2d(3, 4, 3, padding=1), (2, 3, 7, 8)),
    "strided": (nn.Conv2d(3, 4, 3, stride=2, padding=1, bias=False), (2, 3, 9, 8)),
    "patches": (nn.Conv2d(3, 4, 4, stride=4), (2, 3, 8, 8)),
    "small patches": (nn.Conv2d(3, 4, 2, stride=2), (2, 3, 7, 8)),
    "same, even kernel": (nn.Conv2d(3, 4, 4, padding="same"), (2, 3, 7, 8)),
    "valid, dilated": (nn.Conv2d(3, 4, 3, padding="valid", dilation=2), (2, 3, 9, 8)),
    "pointwise": (nn.Conv2d(4, 5, 1), (2, 4, 3, 3)),
    "grouped": (nn.Conv2d(4, 6, 3, padding=1, groups=2), (2, 4, 5, 5)),
    "depthwise": (nn.Conv2d(4, 4, 5, padding=2, groups=4), (2, 4, 6, 6)),
    "conv3d": (nn.Conv3d(2, 4, 3, padding=1), (2, 2, 4, 5, 3)),
}


EVEN_KERNEL = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")  # torch's


@pytest.fixture(params=LAYERS)
def layer(request: pytest.FixtureRequest) -> tuple[nn.Module, Tensor]:
    module, shape = LAYERS[request.param]
    return module, torch.randn(shape)


@EVEN_KERNEL
def test_it_starts_as_the_layer_it_adapts(layer: tuple[nn.Module, Tensor]) -> None:
    original, x = layer
    adapted = AdaptedLayer(original, rank=2).eval()
    assert torch.equal(adapted(x), original(x))


@EVEN_KERNEL
def test_one_step_makes_the_term_appear(layer: tuple[nn.Module, Tensor]) -> None:
    original, x = layer
    model = changed(nn.Sequential(original), [LayerChange(name="0", kind="adapted")])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = model(x)
    before.square().sum().backward()
    optimizer.step()
    _, second = model[0].terms(x)  # type: ignore[operator]
    assert second.abs().max() > 0
    assert second.shape == before.shape


def reference(adapted: AdaptedLayer, x: Tensor) -> Tensor:
    """Pixel by pixel: `f(x) + sum_k P_ok (a_k . patch) (b_k . patch)`, for two axes."""
    conv: Any = adapted.first_order
    kernel, stride, dilation = conv.kernel_size[0], conv.stride[0], adapted.term_dilation
    reach = conv.padding[0] + (dilation - 1) * (kernel - 1) / 2
    padded = functional.pad(x, (20, 20, 20, 20))
    y: Tensor = conv(x).clone()
    width = conv.in_channels // conv.groups
    outputs = conv.out_channels // conv.groups
    a, b = (adapted.product.branches[name].weight for name in "ab")
    mix = adapted.mix.weight
    for o in range(conv.out_channels):
        group = o // outputs
        taken = slice(group * width, (group + 1) * width)
        for row in range(y.shape[2]):
            for column in range(y.shape[3]):
                top = 20 + row * stride - int(reach + 0.5)
                left = 20 + column * stride - int(reach + 0.5)
                window = kernel * dilation
                patch = padded[
                    :, taken, top : top + window : dilation, left : left + window : dilation
                ]
                for k in range(adapted.rank):
                    u, v = (
                        (patch * w[group * adapted.rank + k]).sum((1, 2, 3))  # type: ignore[index]
                        for w in (a, b)
                    )
                    y[:, o, row, column] += mix[o, k, 0, 0] * u * v  # type: ignore[index]
    return y


@pytest.mark.parametrize("name", ["conv2d", "strided", "patches", "grouped", "depthwise"])
@pytest.mark.parametrize("dilation", [1, 2, 3])
def test_a_convolution_against_its_equation(name: str, dilation: int) -> None:
    original, shape = LAYERS[name]
    model = nn.Sequential(original).double()
    change = LayerChange(name="0", kind="adapted", rank=2, dilation=dilation)
    adapted = changed(model, [change])[0]
    assert isinstance(adapted, AdaptedLayer)
    nn.init.normal_(adapted.mix.weight)  # type: ignore[arg-type]
    x = torch.randn(shape, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(adapted(x), reference(adapted, x))
    original.float()


def test_a_matrix_against_its_equation() -> None:
    adapted = AdaptedLayer(nn.Linear(6, 5).double(), rank=3)
    nn.init.normal_(adapted.mix.weight)  # type: ignore[arg-type]
    x = torch.randn(7, 6, dtype=torch.float64)
    a, b = (adapted.product.branches[name].weight for name in "ab")
    forms = torch.einsum("ok,ki,kj->oij", adapted.mix.weight, a, b)
    expected = adapted.first_order(x) + torch.einsum("bi,oij,bj->bo", x, forms, x)
    torch.testing.assert_close(adapted(x), expected)


def test_groups_do_not_mix() -> None:
    adapted = AdaptedLayer(nn.Conv2d(4, 4, 3, padding=1, groups=4), rank=2)
    nn.init.normal_(adapted.mix.weight)  # type: ignore[arg-type]
    x = torch.randn(1, 4, 5, 5, requires_grad=True)
    adapted(x)[0, 1].sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum((0, 2, 3)).nonzero().flatten().tolist() == [1]


@pytest.mark.parametrize("name", ["linear", "conv2d", "depthwise"])
def test_recomputing_gives_the_same_gradients(name: str) -> None:
    original, shape = LAYERS[name]
    model = changed(nn.Sequential(original).double(), [LayerChange(name="0", kind="adapted")])
    nn.init.normal_(adapted_layers(model)["0"].mix.weight)  # type: ignore[arg-type]
    found = []
    for on in (True, False):
        set_memory_efficient(model, on)
        model.zero_grad()
        x = torch.linspace(-1, 1, torch.Size(shape).numel()).double().reshape(shape)
        x.requires_grad_()
        model(x).square().sum().backward()
        found.append([x.grad, *(parameter.grad for parameter in model.parameters())])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
    original.float()


def test_parameters_are_as_many_as_documented() -> None:
    for original, shape in LAYERS.values():
        adapted = AdaptedLayer(original, rank=2)
        groups, weight = getattr(original, "groups", 1), original.weight
        assert isinstance(weight, Tensor)
        added = sum(p.numel() for p in adapted.parameters())
        added -= sum(p.numel() for p in original.parameters())
        assert added == 2 * (2 * weight[0].numel() * groups + len(weight)), shape


def test_a_rank_above_the_width_is_refused() -> None:
    model = nn.Sequential(
        nn.Linear(8, 3), nn.Conv2d(4, 8, 3, groups=4), nn.Conv2d(4, 4, 3, groups=4)
    )
    assert [max_rank(layer) for layer in model] == [3, 2, 9]
    for name, most in (("0", 3), ("1", 2), ("2", 9)):
        changed(model, [LayerChange(name=name, kind="adapted", rank=most)])
        with pytest.raises(
            QuadranasError, match=rf"layer '{name}': rank {most + 1} .* 1 to {most}"
        ):
            changed(model, [LayerChange(name=name, kind="adapted", rank=most + 1)])


def test_type_and_mode_are_the_layers_own() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3).bfloat16()).eval()
    adapted = changed(model, [LayerChange(name="0", kind="adapted")])
    assert {p.dtype for p in adapted.parameters()} == {torch.bfloat16}
    assert not any(module.training for module in adapted.modules())
