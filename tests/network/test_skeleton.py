"""Networks of any architecture against plain references in float64; export and compile."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from quadranas.errors import QuadranasError
from quadranas.layers.quadranet import ResidualBranch
from quadranas.network.skeleton import build_subnet
from quadranas.space.architecture import Architecture, Block
from quadranas.space.cost import count_macs
from quadranas.space.operation import OpSpec
from quadranas.space.reference import REFERENCE_MODELS
from quadranas.space.space_file import load_space
from tests.network.plain_networks import arrays, plain_mobile_network
from tests.networks import images_and_array, reference_model

Scrambler = Callable[..., nn.Module]


# ---------------------------------------------------------------- forward pass


@pytest.mark.parametrize("seed", [0, 1])
def test_mobile_networks_compute_what_the_paper_writes(seed: int, scramble: Scrambler) -> None:
    space = load_space("mbconv-mobile").with_num_classes(11)
    generator = np.random.default_rng(seed)
    choices: dict[str, tuple[int, ...] | None] = {
        block.name: None
        if block.optional and generator.random() < 0.6
        else tuple(int(generator.integers(len(slot.candidates))) for slot in block.slots)
        for block in space.blocks
    }
    network = space.architecture(choices).adapted(resolution=64)
    model = scramble(build_subnet(network).double(), seed).eval()
    images, array = images_and_array(64)
    with torch.no_grad():
        scores = model(images)
    expected = plain_mobile_network(array, arrays(model.state_dict()), network)
    assert expected.std() > 0.1
    torch.testing.assert_close(scores, torch.from_numpy(expected), rtol=1e-10, atol=1e-10)


def test_a_block_name_that_torch_has_taken() -> None:
    stem = OpSpec(
        kind="patch_stem", in_channels=3, out_channels=8, resolution=8, kernel_size=8, stride=8
    )
    head = OpSpec(kind="norm_head", in_channels=8, out_channels=2, resolution=1)
    blocks = (Block(name="keys", ops=(stem,)), Block(name="head", ops=(head,)))
    network = Architecture(name="n", resolution=8, num_classes=2, blocks=blocks)
    with pytest.raises(QuadranasError, match=r"a block has an impossible name.*'keys'"):
        build_subnet(network)


def test_images_are_channels_last_and_weights_contiguous() -> None:
    model = build_subnet(load_space("toy").architecture({}))
    assert all(parameter.is_contiguous() for parameter in model.parameters())
    assert model.features(torch.randn(2, 3, 32, 32))[0].is_contiguous(
        memory_format=torch.channels_last
    )


# ---------------------------------------------------------------- initialisation


def test_subnets_start_with_gammas_of_one() -> None:
    model = build_subnet(load_space("toy").extreme(count_macs, largest=True))
    gammas = [m.gamma for m in model.modules() if isinstance(m, ResidualBranch)]
    assert len(gammas) == 8
    assert all((gamma == 1).all() for gamma in gammas)


# ---------------------------------------------------------------- export and compile


# The others differ in width and depth only.
FAST_MODELS = ("quadranet25_t", "quadranet25_t_q12")


def small_network(name: str) -> tuple[nn.Module, Tensor]:
    """The largest toy network, or the smallest mobile one at 64 pixels."""
    network = load_space(name).extreme(count_macs, largest=name == "toy")
    network = network.adapted(resolution=32 if name == "toy" else 64, num_classes=5)
    images, _ = images_and_array(network.resolution)
    return build_subnet(network).eval(), images.float()


@torch.no_grad()
def assert_exports(model: nn.Module, images: Tensor) -> None:
    expected = model(images)
    assert expected.std() > 0.01
    exported = torch.export.export(model, (images,))
    torch.testing.assert_close(exported.module()(images), expected)


@torch.no_grad()
def assert_compiles(model: nn.Module, images: Tensor, backend: str) -> None:
    torch.compiler.reset()
    expected = model(images)
    assert expected.std() > 0.01
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    torch.testing.assert_close(compiled(images), expected, rtol=1e-4, atol=1e-4)
    torch.compiler.reset()


@pytest.mark.parametrize(
    "name",
    [
        name if name in FAST_MODELS else pytest.param(name, marks=pytest.mark.slow)
        for name in REFERENCE_MODELS
    ],
)
def test_reference_models_export(name: str, scramble: Scrambler) -> None:
    model, images = reference_model(name)
    assert_exports(scramble(model), images)


@pytest.mark.parametrize("name", ["toy", "mbconv-mobile"])
def test_small_networks_export(name: str, scramble: Scrambler) -> None:
    model, images = small_network(name)
    assert_exports(scramble(model), images)


@pytest.mark.parametrize("name", ["toy", "mbconv-mobile"])
def test_small_networks_are_traced_whole(name: str, scramble: Scrambler) -> None:
    model, images = small_network(name)
    assert_compiles(scramble(model), images, "aot_eager")


# torch 2.13: inductor's own import of torch.utils.mkldnn uses it.
OLD_JIT = pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")


@OLD_JIT
@pytest.mark.slow
@pytest.mark.parametrize("name", ["toy", "mbconv-mobile"])
def test_small_networks_compile(name: str, scramble: Scrambler) -> None:
    model, images = small_network(name)
    assert_compiles(scramble(model), images, "inductor")


@OLD_JIT
@pytest.mark.slow
@pytest.mark.parametrize("name", REFERENCE_MODELS)
def test_reference_models_compile(name: str, scramble: Scrambler) -> None:
    model, images = reference_model(name)
    assert_compiles(scramble(model), images, "inductor")
