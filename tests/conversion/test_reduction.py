"""Removed layers pass their input on; reverted ones are first-order with the weights they had."""

from typing import Any

import pytest
import torch
from torch import nn

from quadranas.conversion import convert, remove, revert
from quadranas.errors import QuadranasError
from quadranas.layers.quadratic import QuadraticConv2d
from tests.conversion.families import FAMILIES, RESOLUTION


@pytest.mark.parametrize("quadratic", [False, True])
def test_a_removed_layer_passes_its_input_on(quadratic: bool) -> None:
    model = FAMILIES["vgg"]()
    model = convert(model, norm=True) if quadratic else model
    smaller = remove(model, ["7"]).eval()
    x = torch.randn(2, 3, RESOLUTION, RESOLUTION)
    expected = x
    for name, module in model.eval().named_children():
        expected = expected if name == "7" else module(expected)
    assert torch.equal(smaller(x), expected)
    lost = sum(p.numel() for p in model.parameters()) - sum(
        p.numel() for p in smaller.parameters()
    )
    assert lost == sum(p.numel() for p in model.get_submodule("7").parameters())


@pytest.mark.parametrize(
    ("layer", "text"),
    [
        (nn.Conv2d(4, 6, 1), "it turns 4 channels into 6"),
        (nn.Linear(4, 6), "it turns 4 features into 6"),
        (nn.Conv2d(4, 4, 3), "it changes the size of the image"),
        (nn.Conv2d(4, 4, 3, padding="valid"), "it changes the size of the image"),
        (nn.Conv2d(4, 4, 3, 2, 1), "it changes the size of the image"),
        (nn.Conv1d(4, 4, 3, padding=1, dilation=2), "it changes the size of the image"),
        (QuadraticConv2d(4, 4, 2, 2), "it changes the size of the image"),
        (nn.ConvTranspose2d(4, 4, 1), "may change the size of its input"),
        (nn.BatchNorm2d(4), "neither linear, nor convolutional, nor quadratic"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_a_layer_that_changes_the_shape_stays(layer: nn.Module, text: str) -> None:
    with pytest.raises(QuadranasError, match=f"layer '0' cannot be removed: .*{text}"):
        remove(nn.Sequential(layer, nn.Linear(3, 3)), ["0"])


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv3d(4, 4, (1, 3, 5), padding=(0, 1, 2)),
        nn.Conv2d(4, 4, 3, padding="same"),
        nn.Conv2d(4, 4, 1, padding="valid"),
        nn.Conv1d(4, 4, 3, padding=2, dilation=2, groups=4),
        QuadraticConv2d(4, 4, 5, padding="same"),
    ],
)
def test_a_layer_that_keeps_the_shape_goes(layer: nn.Module) -> None:
    smaller = remove(nn.Sequential(layer, nn.Linear(3, 3)), ["0"])
    assert isinstance(smaller[0], nn.Identity)


def test_a_network_is_not_emptied() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    with pytest.raises(QuadranasError, match="removing 0, 2 would leave no layer with weights"):
        remove(model, ["0", "2"])
    quadratic = convert(model, keep_ends=False)
    with pytest.raises(QuadranasError, match="would leave no layer"):
        remove(quadratic, ["0", "2"])


def test_a_shared_layer_goes_everywhere() -> None:
    shared = nn.Linear(4, 4)
    model = nn.Sequential(shared, nn.ReLU(), shared, nn.Linear(4, 2))
    smaller = remove(model, ["2"])
    assert isinstance(smaller[0], nn.Identity)
    assert smaller[0] is smaller[2]
    assert remove(model, ["0", "2"])(torch.ones(1, 4)).shape == (1, 2)


@pytest.mark.parametrize("form", ["hadamard", "bilinear"])
def test_a_reverted_layer_keeps_its_linear_term(form: str) -> None:
    quadratic: Any = convert(FAMILIES["resnet"](), form)
    plain: Any = revert(quadratic, ["narrow", "wide"])
    assert type(plain.narrow) is type(plain.wide) is nn.Conv2d
    assert isinstance(plain.shortcut, QuadraticConv2d)
    assert {n: p.shape for n, p in plain.narrow.named_parameters()} == {"weight": (8, 4, 3, 3)}
    x = torch.randn(2, 4, 8, 8)
    first, _ = quadratic.narrow.terms(x)
    torch.testing.assert_close(plain.narrow(x), first)


def test_a_branch_without_linear_term_gives_its_first_weights() -> None:
    quadratic: Any = convert(FAMILIES["resnet"](), "product", select="narrow")
    plain = revert(quadratic, ["narrow"])
    assert torch.equal(plain.narrow.weight, quadratic.narrow.a.weight)


@pytest.mark.parametrize("bias", [False, True])
def test_the_norm_of_the_linear_term_is_folded(bias: bool) -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 3, bias=bias), nn.Conv2d(3, 2, 3, bias=bias))
    quadratic: Any = convert(model, norm=True, keep_ends=False)
    for _ in range(20):
        quadratic(1 + torch.randn(8, 2, 9, 9))
    quadratic = quadratic.eval()
    x = torch.randn(2, 2, 9, 9)
    normed = quadratic[0].norms["c"](quadratic[0].c(x))
    got = revert(quadratic, ["0"])[0](x)
    shift = normed - got
    if bias:
        torch.testing.assert_close(got, normed, rtol=1e-4, atol=1e-5)
    else:  # apart from a shift per channel, which such a layer cannot have
        constant = shift.mean((0, 2, 3), keepdim=True).expand_as(shift)
        assert constant.abs().max() > 1e-3
        torch.testing.assert_close(shift, constant, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("form", "names", "text"),
    [
        ("hadamard", ["head"], "layer 'head' cannot be reverted: Linear is not a quadratic"),
        ("pure_bilinear", ["wide"], "form 'pure_bilinear' has no first-order branch"),
        ("hadamard", ["wid"], "no layer 'wid'; did you mean 'wide'"),
        ("hadamard", [], "no layer to revert"),
        ("hadamard", "wide", "no layer to revert: got 'wide'"),
    ],
)
def test_impossible_reversions_are_refused(form: str, names: list[str], text: str) -> None:
    with pytest.raises(QuadranasError, match=text):
        revert(convert(FAMILIES["resnet"](), form), names)
