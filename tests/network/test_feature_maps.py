"""Networks in other people's training code: feature maps, and classifiers of another size."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from quadranas.conversion import adapt, convert, remove, revert
from quadranas.errors import QuadranasError
from quadranas.network.published import create_model
from quadranas.network.skeleton import Network, build_subnet
from quadranas.space.architecture import Architecture, LayerChange
from quadranas.space.cost import count_macs
from quadranas.space.reference import REFERENCE_MODELS, reference_architecture
from quadranas.space.search_space import SKIPPED, Choices
from quadranas.space.space_file import load_space

Scrambler = Callable[..., nn.Module]
EXPECTED = {
    "quadranet-mobile": ((4, 8, 16, 32), (40, 80, 128, 256)),
    "quadranet-tiny": ((4, 8, 16, 32), (64, 128, 256, 512)),
    "mbconv-mobile": ((2, 4, 8, 16, 32), (16, 32, 40, 96, 1280)),
    "toy": ((4, 8), (8, 16)),
}
"""Strides and channels of the maps of every space's networks."""


def smallest(name: str) -> Architecture:
    """The network of a space without its optional blocks, at 64 pixels."""
    return load_space(name).extreme(count_macs, largest=False).adapted(resolution=64)


def largest(name: str) -> Architecture:
    return load_space(name).extreme(count_macs, largest=True).adapted(resolution=64)


def assert_maps_are_as_declared(architecture: Architecture) -> list[Tensor]:
    """Shapes of the maps, and where they come from: the inputs of downsampling and head."""
    with torch.device("meta"):
        network = build_subnet(architecture)
        maps = network.features(
            torch.empty(2, 3, architecture.resolution, architecture.resolution)
        )
    sizes = [architecture.resolution // stride for stride in network.feature_strides]
    assert [tuple(found.shape) for found in maps] == [
        (2, channels, size, size)
        for channels, size in zip(network.feature_channels, sizes, strict=True)
    ]
    assert sizes == sorted(set(sizes), reverse=True)
    return maps


@pytest.mark.parametrize("name", EXPECTED)
@pytest.mark.parametrize("extreme", [smallest, largest])
def test_maps_have_the_declared_shapes(name: str, extreme: Callable[[str], Architecture]) -> None:
    architecture = extreme(name)
    assert_maps_are_as_declared(architecture)
    with torch.device("meta"):
        network = build_subnet(architecture)
    assert (network.feature_strides, network.feature_channels) == EXPECTED[name]


@pytest.mark.parametrize("name", REFERENCE_MODELS)
def test_reference_models_have_four_stages(name: str) -> None:
    maps = assert_maps_are_as_declared(reference_architecture(name, resolution=64))
    width = maps[0].shape[1]
    assert [found.shape[1] for found in maps] == [width, 2 * width, 4 * width, 8 * width]


def test_a_stage_without_blocks_gives_what_its_entry_computes() -> None:
    space = load_space("toy")
    blocks = tuple(replace(b, optional=b.optional or "block" in b.name) for b in space.blocks)
    space = replace(space, blocks=blocks)
    choices: Choices = {b.name: SKIPPED if b.optional else (0,) * len(b.slots) for b in blocks}
    architecture = space.architecture(choices)
    assert [block.name for block in architecture.blocks] == [
        "stage1_entry",
        "stage2_entry",
        "head",
    ]
    assert_maps_are_as_declared(architecture)
    network = build_subnet(architecture).eval()
    images = torch.randn(1, 3, 32, 32)
    first, second = network.features(images)
    # Up to rounding: `features` computes in another memory layout
    torch.testing.assert_close(first, network.blocks["stage1_entry"](images))
    torch.testing.assert_close(second, network.blocks["stage2_entry"](first))


@pytest.mark.parametrize("name", ["toy", "mbconv-mobile"])
def test_the_head_makes_the_scores_of_the_last_map(name: str, scramble: Scrambler) -> None:
    network = build_subnet(smallest(name)).eval()
    scramble(network)
    images = torch.randn(2, 3, 64, 64)
    inputs = []
    with torch.no_grad():
        maps = network.features(images)
        x = images.contiguous(memory_format=torch.channels_last)
        for block, module in zip(smallest(name).blocks, network.blocks.values(), strict=True):
            if any(op.stride > 1 or op.is_head for op in block.ops):
                inputs.append(x)
            x = module(x)
        assert all(torch.equal(*pair) for pair in zip(maps, inputs[1:], strict=True))
        assert torch.equal(network.blocks["head"](maps[-1]), network(images))
    for found in maps:
        assert found.is_contiguous(memory_format=torch.channels_last)


def test_gradients_reach_the_first_layer_through_every_map() -> None:
    network = build_subnet(smallest("toy"))
    first = next(network.parameters())
    for index in range(len(network.feature_channels)):
        network.zero_grad()
        network.features(torch.randn(1, 3, 32, 32))[index].square().mean().backward()
        assert first.grad is not None
        assert first.grad.abs().sum() > 0


class Backbone(nn.Module):
    """What a detector holds of a network."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> list[Tensor]:
        return self.network.features(images)


@torch.no_grad()
@pytest.mark.parametrize("name", ["toy", "mbconv-mobile"])
def test_features_are_exported_and_compiled(name: str, scramble: Scrambler) -> None:
    backbone = Backbone(build_subnet(smallest(name))).eval()
    scramble(backbone)
    images = torch.randn(2, 3, 64, 64)
    expected = backbone(images)
    exported = torch.export.export(backbone, (images,)).module()
    torch.testing.assert_close(list(exported(images)), expected)
    torch.compiler.reset()
    compiled = torch.compile(backbone, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(images), expected, rtol=1e-4, atol=1e-4)
    torch.compiler.reset()


def test_a_network_without_an_architecture_says_so() -> None:
    network = Network({"only": nn.Conv2d(3, 4, 1)})
    with pytest.raises(QuadranasError, match="no stages, and so no feature maps"):
        network.features(torch.randn(1, 3, 8, 8))
    with pytest.raises(QuadranasError, match="no architecture describes this network"):
        network.reset_classifier(3)


# ---------------------------------------------------------------- another number of classes


@pytest.mark.parametrize("name", ["toy", "mbconv-mobile"])
def test_a_new_classifier_leaves_all_else_alone(name: str, scramble: Scrambler) -> None:
    network = build_subnet(smallest(name)).eval()
    scramble(network)
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    network.reset_classifier(7)
    assert network.architecture is not None
    assert network.architecture.num_classes == 7
    images = torch.randn(2, 3, 64, 64)
    assert network(images).shape == (2, 7)
    after = network.state_dict()
    assert list(after) == list(before)
    assert {key for key in after if after[key].shape != before[key].shape} == {
        key for key in after if ".linear." in key and key.startswith("blocks.head.")
    }
    assert all(torch.equal(after[key], before[key]) for key in after if ".linear." not in key)
    again = build_subnet(network.architecture).eval()
    again.load_state_dict(after)
    assert torch.equal(again(images), network(images))


def test_the_new_classifier_starts_as_in_a_new_network() -> None:
    network = create_model("quadranet25_t", num_classes=3, resolution=32).double().train()
    torch.manual_seed(1)
    network.reset_classifier(11)
    torch.manual_seed(1)
    expected = nn.Linear(network.feature_channels[-1], 11)
    found = network.get_submodule("blocks.head.norm_head.linear")
    assert found.training
    assert found.weight.dtype == torch.float64
    torch.testing.assert_close(found.weight, expected.weight.double())
    torch.testing.assert_close(found.bias, expected.bias.double())


@pytest.mark.parametrize("num_classes", [0, 65537])
def test_an_impossible_number_of_classes_changes_nothing(num_classes: int) -> None:
    network = build_subnet(smallest("toy"))
    before = network.architecture
    with pytest.raises(QuadranasError, match=f"{num_classes} classes do not fit"):
        network.reset_classifier(num_classes)
    assert network.architecture == before
    assert network(torch.randn(1, 3, 32, 32)).shape == (1, 10)


def test_an_adapted_classifier_is_adapted_again() -> None:
    network = adapt(build_subnet(smallest("toy")), rank=1)
    network.reset_classifier(5)
    assert network(torch.randn(1, 3, 64, 64)).shape == (1, 5)
    assert network.architecture is not None
    again = build_subnet(network.architecture)
    again.load_state_dict(network.state_dict())


def test_a_removed_classifier_comes_back() -> None:
    head = "blocks.head.norm_head.linear"
    architecture = smallest("toy").adapted(num_classes=16)
    network = remove(build_subnet(architecture), [head])
    assert not list(network.get_submodule(head).parameters())
    network.reset_classifier(5)
    assert network(torch.randn(1, 3, 64, 64)).shape == (1, 5)
    assert network.architecture == architecture.adapted(num_classes=5)


# ---------------------------------------------------------------- the architecture it tells


def rebuilt(network: Network) -> None:
    """The architecture of a network rebuilds it."""
    assert network.architecture is not None
    build_subnet(network.architecture).load_state_dict(network.state_dict())


def test_the_architecture_follows_replaced_layers(scramble: Scrambler) -> None:
    architecture = smallest("mbconv-mobile").adapted(num_classes=4)
    network = build_subnet(architecture)
    assert network.architecture == architecture
    scramble(network)
    converted = convert(network, "hadamard")
    rebuilt(converted)
    names = [change.name for change in converted.architecture.changes]  # type: ignore[union-attr]
    reverted = revert(converted, names[:2])
    rebuilt(reverted)
    assert reverted.architecture == architecture.model_copy(
        update={"changes": converted.architecture.changes[2:]}  # type: ignore[union-attr]
    )
    assert network.architecture == architecture
    changes = (LayerChange(name=names[0], kind="quadratic", form="product"),)
    changed = architecture.model_copy(update={"changes": changes})
    assert build_subnet(changed).architecture == changed


def test_no_architecture_describes_a_quadranet_with_a_first_order_convolution() -> None:
    network = build_subnet(smallest("toy"))
    reverted = revert(network, ["blocks.stage1_block1.quadratic_depthwise.conv"])
    assert reverted.architecture is None
    assert len(reverted.features(torch.randn(1, 3, 32, 32))) == 2
