"""Modules that read the weights of replaced layers: the quadratic terms are never left out."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from quadranas.errors import QuadranasError
from quadranas.layers.adapted import AdaptedLayer
from quadranas.layers.forms import FORMS
from quadranas.layers.quadratic import QuadraticLayer
from quadranas.layers.replacement import changed
from quadranas.space.architecture import LayerChange

CHANGES = [
    {"kind": "adapted"},
    *({"kind": "quadratic", "form": form} for form in sorted(set(FORMS) - {"linear"})),
]
LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(4, 3), (2, 5, 4)),
    "no bias": (lambda: nn.Linear(4, 3, bias=False), (2, 4)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, 2, 1), (2, 4, 7)),
    "conv2d": (lambda: nn.Conv2d(4, 6, (3, 1), padding="valid", groups=2), (2, 4, 5, 5)),
    "same": (lambda: nn.Conv2d(4, 4, 3, padding="same", dilation=2), (2, 4, 5, 5)),
    "conv3d": (lambda: nn.Conv3d(2, 2, 3, padding=1), (1, 2, 3, 3, 3)),
}
READ = (
    *("in_features", "out_features", "in_channels", "out_channels", "kernel_size", "stride"),
    *("padding", "dilation", "groups", "padding_mode", "transposed", "output_padding"),
)


def replaced(layer: nn.Module, **change: Any) -> Any:
    """The replacement of a layer; its second-order term is not zero."""
    new = changed(nn.Sequential(layer), [LayerChange(name="0", **change)])[0]
    if isinstance(new, AdaptedLayer):
        nn.init.ones_(new.mix.weight)  # type: ignore[arg-type]
    return new


@pytest.mark.parametrize("change", CHANGES, ids=str)
@pytest.mark.parametrize("kind", LAYERS)
def test_attributes_read_like_those_of_the_original(kind: str, change: dict[str, Any]) -> None:
    layer: Any = LAYERS[kind][0]().to(torch.float64)
    new = replaced(layer, **change)
    for name in READ:
        assert hasattr(new, name) == hasattr(layer, name), name
        assert getattr(new, name, None) == getattr(layer, name, None), name
    assert new.weight.shape == layer.weight.shape
    assert (new.weight.dtype, new.weight.device) == (torch.float64, layer.weight.device)
    assert (new.bias is None) == (layer.bias is None)
    assert layer.bias is None or new.bias.shape == layer.bias.shape
    if hasattr(layer, "stride"):
        with pytest.raises(AttributeError):
            new.stride = 5
    if isinstance(new, AdaptedLayer):
        assert torch.equal(new.weight, layer.weight)
        assert layer.bias is None or torch.equal(new.bias, layer.bias)


def computed(layer: Any, x: Tensor, bias: Tensor | None) -> Tensor:
    """The layer as a module around it computes it, from its weight."""
    if not hasattr(layer, "kernel_size"):
        return functional.linear(x, layer.weight, bias)
    conv: Any = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}[
        len(layer.kernel_size)
    ]
    options = {name: getattr(layer, name) for name in ("stride", "padding", "dilation", "groups")}
    out: Tensor = conv(x, layer.weight, bias, **options)
    return out


@pytest.mark.parametrize("change", CHANGES, ids=str)
@pytest.mark.parametrize("kind", LAYERS)
def test_computing_with_the_weight_computes_the_layer(kind: str, change: dict[str, Any]) -> None:
    layer = LAYERS[kind][0]().double()
    x = torch.randn(LAYERS[kind][1], dtype=torch.float64)
    new = replaced(layer, **change)
    torch.testing.assert_close(computed(new, x, new.bias), new(x))
    count = new.weight.shape[0]
    bias = torch.randn(count, dtype=torch.float64)
    shape = (-1,) if hasattr(new, "in_features") else (-1, *(1,) * (x.ndim - 2))
    own = torch.zeros(count, dtype=torch.float64) if new.bias is None else new.bias
    expected = new(x) + (bias - own).reshape(shape)
    torch.testing.assert_close(computed(new, x, bias), expected)
    torch.testing.assert_close(computed(new, x, None), new(x) - own.reshape(shape))


def test_hooks_see_the_layer_and_gradients_reach_it() -> None:
    new = replaced(nn.Linear(4, 3), kind="adapted")
    seen: list[Any] = []
    new.register_forward_hook(lambda *arguments: seen.append(arguments))
    functional.linear(torch.randn(2, 4), new.weight).sum().backward()
    assert len(seen) == 1
    assert all(p.grad is not None for n, p in new.named_parameters() if n != "first_order.bias")
    assert torch.equal(new.weight.grad, new.first_order.weight.grad)


def test_operations_in_place_change_the_weight() -> None:
    new = replaced(nn.Linear(4, 3), kind="quadratic")
    nn.init.constant_(new.weight, 2.0)
    assert new.c.weight.eq(2).all()
    new.weight.data = torch.ones(3, 4)
    new.weight.requires_grad_(False)
    assert new.c.weight.eq(1).all()
    assert not new.c.weight.requires_grad
    assert float(new.weight.square().sum()) == 12  # as in a penalty
    assert type(new.weight.sum()) is Tensor


class AttentionPool(nn.Module):
    """Attention over the weights of its layers, as CLIP's pooling computes it."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(4, 4) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        out, _ = functional.multi_head_attention_forward(
            x, x, x, 4, 2, None, torch.cat([self.q.bias, self.k.bias, self.v.bias]), None, None,
            False, 0.0, self.out.weight, self.out.bias, use_separate_proj_weight=True,
            q_proj_weight=self.q.weight, k_proj_weight=self.k.weight, v_proj_weight=self.v.weight,
        )  # fmt: skip
        return out


class Reader(nn.Module):
    """A layer whose weight is read in some way."""

    def __init__(self, read: Callable[[Any, Tensor], Tensor], layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.read = layer, read

    def forward(self, x: Tensor) -> Tensor:
        return self.read(self.layer, x)


LINEAR_READERS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "matmul": lambda layer, x: x @ layer.weight.T,
    "einsum": lambda layer, x: torch.einsum("bi,oi->bo", x, layer.weight),
    "rows": lambda layer, x: functional.linear(x, layer.weight[:2]),
    "joined": lambda layer, x: functional.linear(x, torch.cat([layer.weight, layer.weight])),
    "standardised": lambda layer, x: functional.linear(x, layer.weight - layer.weight.mean()),
    "detached": lambda layer, x: functional.linear(x, layer.weight.detach()),
    "parameters": lambda layer, x: functional.linear(x, layer.weight.clone()),
    "iterated": lambda layer, x: torch.stack([x @ row for row in layer.weight], -1),
    "operator": lambda layer, x: torch.ops.aten.linear(x, layer.weight),
    "mixed": lambda layer, x: torch.addmm(x.new_zeros(len(x), 3), x, layer.weight.t()),
}
CONV_READERS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "stride": lambda layer, x: functional.conv2d(x, layer.weight, layer.bias, stride=2),
    "transposed": lambda layer, x: functional.conv_transpose2d(x, layer.weight),
    "linear": lambda layer, x: functional.linear(x.mean((2, 3)), layer.weight.flatten(1)),
}


@pytest.mark.parametrize("change", [CHANGES[0], {"kind": "quadratic"}], ids=str)
@pytest.mark.parametrize("reader", [*LINEAR_READERS, *CONV_READERS])
def test_other_products_are_refused_by_name(reader: str, change: dict[str, Any]) -> None:
    linear = reader in LINEAR_READERS
    network = Reader(
        (LINEAR_READERS if linear else CONV_READERS)[reader],
        nn.Linear(4, 3) if linear else nn.Conv2d(4, 4, 1),
    )
    x = torch.randn(2, 4) if linear else torch.randn(2, 4, 5, 5)
    network(x)
    new = changed(network, [LayerChange(name="layer", **change)])
    with pytest.raises(QuadranasError, match="with the weight of layer 'layer' instead of"):
        new(x)


def test_attention_over_the_weights_computes_the_layers_or_is_refused() -> None:
    network, x = AttentionPool(), torch.randn(3, 2, 4)
    new = changed(network, [LayerChange(name="k", kind="adapted")])
    torch.testing.assert_close(new(x), network(x))
    nn.init.ones_(new.k.mix.weight)  # type: ignore[union-attr, arg-type]
    assert not torch.allclose(new(x), network(x))
    new = changed(network, [LayerChange(name="out", kind="adapted")])
    message = "computes multi_head_attention_forward with the weight of layer 'out'"
    with pytest.raises(QuadranasError, match=message):
        new(x)


def test_a_network_that_computes_with_a_weight_is_copied_and_exported() -> None:
    network = Reader(
        lambda layer, x: functional.linear(x.to(layer.weight.dtype), layer.weight, layer.bias),
        nn.Linear(4, 3),
    ).eval()
    new = changed(network, [LayerChange(name="layer", kind="quadratic")])
    x = torch.randn(2, 4)
    assert isinstance(new.layer, QuadraticLayer)
    torch.testing.assert_close(new(x), new.layer(x))
    assert torch.equal(copy.deepcopy(new)(x), new(x))
    torch.testing.assert_close(torch.export.export(new, (x,)).module()(x), new(x))
