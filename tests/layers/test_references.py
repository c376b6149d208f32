"""References to a layer outside the registered modules follow its replacement, or are refused."""

import functools
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from quadranas.conversion import adapt, convert, revert
from quadranas.errors import QuadranasError


class Pair(NamedTuple):
    first: nn.Module
    second: nn.Module


class Holder:
    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer


class Net(nn.Module):
    """A network that computes its middle layer through another reference to it."""

    def __init__(self, hold: Callable[[Any], Any], call: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.middle, self.last = (nn.Linear(4, 4) for _ in range(3))
        self.call, self.held = call, hold(self)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.call(self.held, self.first(x)))
        return out


HELD: dict[str, tuple[Callable[[Any], Any], Callable[[Any, Tensor], Tensor]]] = {
    "list": (lambda net: [net.middle], lambda held, x: held[0](x)),
    "dict": (lambda net: {"a": [net.middle]}, lambda held, x: held["a"][0](x)),
    "tuple": (lambda net: (net.middle, net.last), lambda held, x: held[0](x)),
    "named tuple": (lambda net: Pair(net.middle, net.last), lambda held, x: held.first(x)),
    "method": (lambda net: net.middle.forward, lambda held, x: held(x)),
    "partial": (lambda net: functools.partial(net.middle), lambda held, x: held(x)),
    "object": (lambda net: Holder(net.middle), lambda held, x: held.layer(x)),
    "hidden": (lambda net: [nn.Sequential(net.middle)], lambda held, x: held[0](x)),
    "path": (lambda net: "middle", lambda held, x: x),
}


@pytest.mark.parametrize("held", [name for name in HELD if name != "path"])
def test_other_references_follow(held: str) -> None:
    net = Net(*HELD[held])
    x = torch.randn(2, 4)
    adapted = adapt(net)
    assert torch.equal(adapted(x), net(x))
    nn.init.ones_(adapted.middle.mix.weight)  # type: ignore[union-attr, arg-type]
    torch.testing.assert_close(adapted(x), adapted.last(adapted.middle(adapted.first(x))))
    quadratic = convert(net, select="middle")
    torch.testing.assert_close(quadratic(x), net.last(quadratic.middle(net.first(x))))
    linear = revert(quadratic, ["middle"])
    torch.testing.assert_close(linear(x), net.last(linear.middle(net.first(x))))


FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "closure over the layer": lambda net: lambda x, layer=net.middle: layer(x),
    "closure over the network": lambda net: lambda x: net.middle(x),
    "weak reference": lambda net: weakref.ref(net.middle),
}


def test_a_weight_that_is_held_without_its_layer_is_refused() -> None:
    def hold(net: Any) -> Any:
        return functools.partial(functional.linear, weight=net.middle.weight)

    net = Net(hold, lambda held, x: held(x))
    message = "layer 'middle' with a reference to its weight"
    with pytest.raises(QuadranasError, match=message):
        adapt(net, where="middle")
    with pytest.raises(QuadranasError, match=message):
        convert(net, select="middle")


def test_layers_are_called_by_keyword() -> None:
    net = Net(lambda net: net.middle, lambda held, x: held(input=x))
    x = torch.randn(2, 4)
    assert torch.equal(adapt(net)(x), net(x))
    assert convert(net, select="middle")(x).shape == (2, 4)


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
def test_a_network_that_cannot_be_copied_is_refused() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.utils.weight_norm(nn.Linear(4, 4)), nn.Linear(4, 4))
    with pytest.raises(QuadranasError, match="the network cannot be copied: Only Tensors"):
        adapt(net)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_that_compute_the_layer_are_refused(name: str) -> None:
    net = Net(FUNCTIONS[name], lambda held, x: held(x))
    message = "layer 'middle' in a function of its own"
    with pytest.raises(QuadranasError, match=message):
        adapt(net, where="middle")
    with pytest.raises(QuadranasError, match=message):
        convert(net, select="middle")


def test_attributes_that_were_added_to_a_layer_are_kept() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    net[1].from_index = [-1]  # type: ignore[assignment]
    for new in (adapt(net), convert(net)):
        assert new[1].from_index == [-1]


def test_layers_changed_by_hand_stay() -> None:
    net = nn.Sequential(*(nn.Linear(4, 4) for _ in range(4)))
    net[1].forward = lambda x: x
    net[2].register_buffer("mask", torch.ones(4))
    adapted = adapt(net)
    assert [type(layer).__name__ for layer in adapted] == [
        *("AdaptedLayer", "Linear", "Linear", "AdaptedLayer")
    ]
