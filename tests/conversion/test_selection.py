"""Selecting layers: by type, by name, by a function; and what cannot be selected."""

import pytest
from torch import nn

from quadranas.conversion import select_layers
from quadranas.errors import QuadranasError
from quadranas.layers.quadratic import QuadraticLinear
from quadranas.layers.replacement import changed
from quadranas.space.architecture import LayerChange


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


def test_the_parts_of_an_adapted_layer_are_not_selected_again() -> None:
    adapted = changed(network(), [LayerChange(name="4", kind="adapted")])
    assert select_layers(adapted) == ["0", "2.1"]


@pytest.mark.parametrize(
    ("select", "message"),
    [
        ("2.2", "select '2.2' has no layer that can be made quadratic; unsupported kinds"),
        ("1", r"\(1: Conv2d padded with 'reflect' has no quadratic version\)"),
        ("3", "already quadratic"),
        ("3.a", "select '3.a' has no layer"),
        (nn.Conv1d, "select Conv1d has no layer"),
        (["0", "nothing"], "select 'nothing' has no layer"),
        (lambda name, layer: False, "has no layer that can be made quadratic"),
        ([], "names no layer; accepted: layer types, patterns"),
    ],
)
def test_a_selection_of_nothing_is_refused(select: object, message: str) -> None:
    with pytest.raises(QuadranasError, match=message):
        select_layers(network(), select)  # type: ignore[arg-type]
