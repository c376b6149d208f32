"""Adapting whole networks: equal at the start, trained in part or whole, saved, exported."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional

from quadranas.conversion import (
    adapt,
    load_adapted,
    quadratic_parameters,
    save_adapted,
    set_trained,
)
from quadranas.errors import QuadranasError
from quadranas.layers.adapted import adapted_layers
from quadranas.network.skeleton import build_subnet
from quadranas.space.space_file import load_space
from tests.fixtures import Scrambler

IMAGES = torch.linspace(-1, 1, 2 * 3 * 32 * 32).reshape(2, 3, 32, 32)


def network(name: str) -> nn.Module:
    space = load_space(name)
    choices: dict[str, tuple[int, ...] | None] = {
        block.name: None if block.optional else tuple(0 for _ in block.slots)
        for block in space.blocks
        if not block.is_fixed
    }
    return build_subnet(space.architecture(choices).adapted(resolution=32, num_classes=5)).eval()


@pytest.fixture(params=["toy", "mbconv-mobile"])
def pretrained(request: pytest.FixtureRequest, scramble: Scrambler) -> nn.Module:
    return scramble(network(request.param))


def stepped(model: nn.Module) -> nn.Module:
    """The network after one step of training."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    functional.cross_entropy(model.train()(IMAGES), torch.tensor([0, 1])).backward()
    optimizer.step()
    return model.eval()


def test_an_adapted_network_computes_the_same_until_it_is_trained(pretrained: nn.Module) -> None:
    before = {name: tensor.clone() for name, tensor in pretrained.state_dict().items()}
    adapted = adapt(pretrained)
    with torch.no_grad():
        assert torch.equal(adapted(IMAGES), pretrained(IMAGES))
    stepped(adapted)
    assert all(layer.mix.weight.any() for layer in adapted_layers(adapted).values())  # type: ignore[operator]
    with torch.no_grad():
        assert not torch.equal(adapted(IMAGES), pretrained(IMAGES))
    after = pretrained.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_quadratic_terms_can_be_trained_alone(pretrained: nn.Module) -> None:
    adapted = adapt(pretrained, train="quadratic")
    quadratic = quadratic_parameters(adapted)
    before = {name: parameter.clone() for name, parameter in adapted.named_parameters()}
    stepped(adapted)
    moved = {n for n, p in adapted.named_parameters() if not torch.equal(p, before[n])}
    assert moved
    assert moved <= set(quadratic)
    assert {name for name in moved if ".mix." in name} == {n for n in quadratic if ".mix." in n}
    set_trained(adapted, "all")
    assert all(parameter.requires_grad for parameter in adapted.parameters())


def test_only_the_chosen_layers_are_adapted(scramble: Scrambler) -> None:
    model = scramble(network("mbconv-mobile"))
    depthwise = adapt(
        model, rank=2, dilation=3, where=lambda _, layer: getattr(layer, "groups", 1) > 1
    )
    layers = adapted_layers(depthwise)
    assert layers
    for layer in layers.values():
        convolution: Any = layer.first_order
        assert convolution.groups > 1
        assert layer.product.operator.dilation == (3, 3)  # type: ignore[attr-defined]
    assert set(adapted_layers(adapt(model, where="*.head.*"))) == {
        "blocks.head.linear_head.linear"
    }


def test_it_is_saved_and_loaded(pretrained: nn.Module, tmp_path: Path) -> None:
    adapted = stepped(adapt(pretrained, rank=2, dilation=1, where=nn.Conv2d))
    save_adapted(adapted, tmp_path / "adapted")
    loaded = load_adapted(pretrained, tmp_path / "adapted")
    with torch.no_grad():
        assert torch.equal(loaded(IMAGES), adapted(IMAGES))


def test_what_does_not_fit_is_not_loaded(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 3))
    save_adapted(adapt(model), tmp_path)
    with pytest.raises(QuadranasError, match=r"'0.first_order.weight' has shape \(3, 4\)"):
        load_adapted(nn.Sequential(nn.Linear(5, 3)), tmp_path)
    with pytest.raises(QuadranasError, match="no layer '0'"):
        load_adapted(nn.ModuleDict({"a": nn.Linear(4, 3)}), tmp_path)
    tensors = load_file(tmp_path / "adapted.safetensors")
    save_file(tensors | {"more": torch.zeros(1)}, tmp_path / "adapted.safetensors")
    with pytest.raises(QuadranasError, match="unexpected tensor 'more'"):
        load_adapted(model, tmp_path)


def test_impossible_adaptations_are_refused(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 3))
    with pytest.raises(QuadranasError, match=r"layer '0': rank 4 does not fit .* rank 1 to 3"):
        adapt(model, rank=4)
    with pytest.raises(QuadranasError, match=r"layer '0': rank: .*greater than or equal to 1"):
        adapt(model, rank=0)
    with pytest.raises(QuadranasError, match=r"unknown train 'quadratc'; .*did you mean"):
        adapt(model, train="quadratc")  # type: ignore[arg-type]
    with pytest.raises(QuadranasError, match="no adapted layer"):
        set_trained(model, "quadratic")
    with pytest.raises(QuadranasError, match="no adapted layer"):
        save_adapted(model, tmp_path)


def small_network() -> nn.Module:
    """Patches cut at the border, a depthwise convolution, a matrix."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 4, 4),
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.Flatten(),
        nn.Linear(8 * 8 * 8, 5),
    )


@pytest.mark.parametrize(
    "build",
    [
        small_network,
        pytest.param(lambda: network("toy"), marks=pytest.mark.slow, id="toy"),
        pytest.param(lambda: network("mbconv-mobile"), marks=pytest.mark.slow, id="mbconv"),
    ],
)
def test_it_is_exported(build: Callable[[], nn.Module], scramble: Scrambler) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    from quadranas.backends.interface import Conversion
    from quadranas.backends.onnx_file import to_onnx

    adapted = scramble(adapt(build())).eval()
    with torch.no_grad():
        expected = adapted(IMAGES)
        program = torch.export.export(adapted, (IMAGES,))
        torch.testing.assert_close(program.module()(IMAGES), expected)
    session = onnxruntime.InferenceSession(
        to_onnx(adapted, Conversion(input_shape=(2, 3, 32, 32), dynamic_batch=True))
    )
    (got,) = session.run(None, {"images": IMAGES.numpy()})
    torch.testing.assert_close(torch.from_numpy(got), expected, rtol=1e-3, atol=1e-3)
