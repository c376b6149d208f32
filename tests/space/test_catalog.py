"""The published networks that come with the package, block by block."""

import pytest

from quadranas.files import shipped
from quadranas.space.architecture import Architecture, load_architecture
from quadranas.space.cost import count_macs, count_params
from quadranas.space.search_space import SearchSpace
from quadranas.space.space_file import load_space

WIDTHS = {
    "mobile": (32, 16, 32, 40, 80, 96, 192, 320, 1280),
    "cpu": (40, 24, 32, 48, 88, 104, 216, 360, 1432),
    "gpu": (40, 24, 32, 56, 112, 128, 256, 432, 1728),
}
# Kernel and expansion per block, stages 2 to 7 (ProxylessNAS, arXiv:1812.00332).
BLOCKS = {
    "mobile": "5e3 3e3 | 7e3 3e3 5e3 5e3 | 7e6 5e3 5e3 5e3 | 5e6 5e3 5e3 5e3 | 7e6 7e6 7e3 7e3 |"
    "7e6",
    "cpu": "3e6 3e3 3e3 3e3 | 3e6 3e3 3e3 5e3 | 3e6 3e3 | 5e6 3e3 3e3 3e3 | 5e6 5e3 5e3 3e3 | 5e6",
    "gpu": "5e3 | 7e3 3e3 | 7e6 5e3 | 5e6 3e3 5e3 | 7e6 7e6 7e6 5e6 | 7e6",
}


def proxyless(name: str) -> Architecture:
    return load_architecture(shipped("search_spaces") / "mbconv-mobile" / f"proxyless-{name}.json")


@pytest.mark.parametrize("name", WIDTHS)
def test_published_networks_block_by_block(name: str) -> None:
    network = proxyless(name)
    stem, first, *stages, last = WIDTHS[name]
    expected = [
        ("stem_block1", "conv_bn", 3, stem, 224, 3, 2, 1),
        ("stage1_block1", "mbconv", stem, first, 112, 3, 1, 1),
    ]
    channels, size = first, 112
    strides = (2, 2, 2, 1, 2, 1)
    for number, blocks, width, stage_stride in zip(
        range(2, 8), BLOCKS[name].split("|"), stages, strides, strict=True
    ):
        stride = stage_stride
        for position, choice in enumerate(blocks.split(), start=1):
            kernel, ratio = map(int, choice.split("e"))
            label = f"stage{number}_block{position}"
            expected.append((label, "mbconv", channels, width, size, kernel, stride, ratio))
            channels, size, stride = width, size // stride, 1
    expected.append(("last_block1", "conv_bn", channels, last, size, 1, 1, 1))
    expected.append(("head", "linear_head", last, 1000, size, 1, 1, 1))
    found = []
    for block in network.blocks:
        (op,) = block.ops
        shape = (op.in_channels, op.out_channels, op.resolution)
        found.append((block.name, op.kind, *shape, op.kernel_size, op.stride, op.expand_ratio))
    assert found == expected
    assert network.name == f"proxyless-{name}"
    assert network.space == ("mbconv-mobile" if name == "mobile" else "")


@pytest.mark.parametrize("name", WIDTHS)
def test_published_networks_are_in_their_space(name: str) -> None:
    space: SearchSpace = load_space("mbconv-mobile", widths=WIDTHS[name])
    network = proxyless(name)
    assert space.architecture(space.choices_of(network)).blocks == network.blocks
    if name == "mobile":
        assert load_space(network.space).choices_of(network)


def test_proxyless_cpu_has_the_published_counts() -> None:
    network = proxyless("cpu")
    assert f"{count_params(network) / 1e6:.2f}" == "4.36"
    assert f"{count_macs(network) / 1e6:.1f}" == "439.2"
