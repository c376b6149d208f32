"""Selecting layers: by type, by name, by a function; and what cannot be selected."""

import pytest
from torch import nn

from quadranas.architecture import LayerChange
from quadranas.errors import QuadranasError
from quadranas.layers.quadratic import QuadraticLinear
from quadranas.layers.replacement import changed
from quadranas.toolkit import select_layers


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
        nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, groups=4)),
        QuadraticLinear(4, 4),
        nn.Linear(4, 2),
    )


@pytest.mark.parametrize(
    ("select", "expected"),
    [
        (None, ["0", "2.1", "4"]),
        (nn.Conv2d, ["0", "2.1"]),
        ("2.*", ["2.1"]),
        (["4", nn.Conv2d], ["0", "2.1", "4"]),
        (lambda name, layer: getattr(layer, "groups", 1) > 1, ["2.1"]),
    ],
)
def test_first_order_layers_are_selected_in_order(select: object, expected: list[str]) -> None:
    assert select_layers(network(), select) == expected  # type: ignore[arg-type]


def test_the_ends_can_be_kept() -> None:
    assert select_layers(network(), keep_ends=True) == ["2.1"]
    with pytest.raises(QuadranasError, match="besides the first and the last"):
        select_layers(network(), nn.Linear, keep_ends=True)


def test_the_parts_of_an_adapted_layer_are_not_selected_again() -> None:
    adapted = changed(network(), [LayerChange(name="4", kind="adapted")])
    assert select_layers(adapted) == ["0", "2.1"]


@pytest.mark.parametrize(
    ("select", "message"),
    [
        ("2.2", "'2.2'; did you mean '2.1'"),
        ("3.a", "no layer of the network is named"),
        (nn.Conv1d, "no layer is a Conv1d; there are: Conv2d, Linear"),
        (["0", "nothing"], "named 'nothing'"),
        (lambda name, layer: False, "none of the network's 3 layers"),
    ],
)
def test_a_selection_of_nothing_is_refused(select: object, message: str) -> None:
    with pytest.raises(QuadranasError, match=message):
        select_layers(network(), select)  # type: ignore[arg-type]
