"""Networks with some layers replaced, in memory and as architecture files."""

from pathlib import Path

import pytest
import torch
from torch import nn

from quadranas.errors import QuadranasError
from quadranas.layers.quadratic import QuadraticConv2d, QuadraticLinear
from quadranas.layers.replacement import changed, quadratic_layers, set_memory_efficient
from quadranas.network.counting import count_network
from quadranas.network.skeleton import build_subnet
from quadranas.space.architecture import LayerChange, load_architecture
from quadranas.space.catalog import find_architecture
from quadranas.space.cost import count_macs, count_params

EXPAND = "blocks.stage2_block1.mbconv.layers.0"


def quadratic(name: str, form: str = "hadamard") -> LayerChange:
    return LayerChange(name=name, kind="quadratic", form=form)


def small() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1, groups=1, bias=False),
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 8, 3, padding="same", dilation=2, groups=8),
        nn.Flatten(),
        nn.Linear(8 * 16, 5),
    )


def test_the_new_layers_have_the_shape_of_the_old() -> None:
    model = small()
    new = changed(model, [quadratic("0"), quadratic("2", "product"), quadratic("4", "bilinear")])
    images = torch.randn(2, 3, 8, 8)
    assert new(images).shape == model(images).shape
    assert isinstance(new[0], QuadraticConv2d)
    assert "0.a.bias" not in new.state_dict()
    assert isinstance(new[4], QuadraticLinear)
    assert [layer.form for layer in quadratic_layers(new).values()] == [
        *("hadamard", "product", "bilinear")
    ]
    assert isinstance(model[0], nn.Conv2d)


def test_type_device_and_mode_are_those_of_the_old_layer() -> None:
    new = changed(small().double().eval(), [quadratic("0")])
    assert new(torch.randn(2, 3, 8, 8, dtype=torch.float64)).dtype == torch.float64
    assert not new[0].training


def test_a_removed_layer_passes_its_input_on() -> None:
    model = small().eval()
    new = changed(model, [LayerChange(name="2", kind="removed")])
    images = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(new(images), model[4](model[1](model[0](images)).flatten(1)))


def test_the_back_propagation_is_switched_everywhere() -> None:
    new = changed(small(), [quadratic("0"), quadratic("2")])
    assert all(layer.memory_efficient for layer in quadratic_layers(new).values())
    set_memory_efficient(new, False)
    assert not any(layer.memory_efficient for layer in quadratic_layers(new).values())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("1", "layer '1' is a BatchNorm2d, which has no quadratic version; accepted: Linear"),
        ("5", "the network has no layer '5'"),
        ("conv", "the network has no layer 'conv'"),
    ],
)
def test_what_cannot_be_replaced_is_refused(name: str, message: str) -> None:
    with pytest.raises(QuadranasError, match=message):
        changed(small(), [quadratic(name)])


def test_layers_padded_otherwise_are_refused() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"))
    with pytest.raises(QuadranasError, match="is a Conv2d padded with 'reflect'"):
        changed(model, [quadratic("0")])


def test_an_architecture_says_what_was_replaced(tmp_path: Path) -> None:
    plain = find_architecture("proxyless-mobile")
    changes = (quadratic(EXPAND),)
    architecture = plain.model_copy(update={"changes": changes})
    architecture.save(tmp_path / "architecture.json")
    loaded = load_architecture(tmp_path / "architecture.json")
    assert loaded == architecture
    network = build_subnet(loaded)
    assert list(quadratic_layers(network)) == [EXPAND]
    first = build_subnet(plain)
    added = 2 * sum(p.numel() for p in first.get_submodule(EXPAND).parameters())
    params, macs = count_network(network, 64)
    assert params == count_params(plain) + added
    assert macs > count_network(first, 64)[1] == count_macs(plain.adapted(resolution=64))
    assert loaded.adapted(num_classes=7).changes == changes
    with pytest.raises(QuadranasError, match="has 1 replaced layers, which cannot be counted"):
        count_params(loaded)
