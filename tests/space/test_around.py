"""Spaces around one network: its largest network is that network, and the others are smaller."""

import pytest

from quadranas.errors import QuadranasError
from quadranas.space.architecture import Architecture
from quadranas.space.around import space_around
from quadranas.space.catalog import find_architecture
from quadranas.space.cost import count_macs
from quadranas.space.reference import reference_architecture
from quadranas.space.space_file import build_space


@pytest.mark.parametrize("name", ["quadranet36_t", "quadranet25_b"])
def test_the_largest_network_of_the_space_is_the_network(name: str) -> None:
    network = reference_architecture(name, resolution=64, num_classes=7)
    space = build_space(space_around(network, "around", name))
    assert space.extreme(count_macs, largest=True).blocks == network.blocks
    smallest = space.extreme(count_macs, largest=False)
    kept = [block for block in smallest.blocks if block.name.startswith("stage3_block")]
    assert len(kept) == (14 if name == "quadranet36_t" else 9)
    depthwise, feed_forward = kept[0].ops
    assert (depthwise.kernel_size, feed_forward.expand_ratio) == (3, 2)


def test_blocks_of_several_sizes_are_all_candidates() -> None:
    network = find_architecture("proxyless-mobile")
    file = space_around(network, "around", "proxyless-mobile")
    space = build_space(file)
    assert space.choices_of(renamed(network, space.name))
    stem, first, second, *_, last = file.stages
    assert (stem.name, last.name) == ("stem", "last")
    assert first.slots[0].expand_ratio == (1,)
    assert second.slots[0].kernel_size == (3, 5)
    assert second.slots[0].expand_ratio == (3,)
    assert file.head == "linear_head"


def renamed(network: Architecture, space: str) -> Architecture:
    return network.model_copy(update={"space": space})


def test_a_network_that_no_space_holds_is_refused() -> None:
    with pytest.raises(QuadranasError, match="has quadratic linear layers"):
        space_around(reference_architecture("quadranet36_t_q1"), "around", "x")
    network = reference_architecture("quadranet25_t")
    kept = [block for block in network.blocks if not block.name.startswith("stage2_block")]
    with pytest.raises(QuadranasError, match="stage stage2 of the network has no blocks"):
        space_around(network.model_copy(update={"blocks": tuple(kept)}), "around", "x")
    with pytest.raises(QuadranasError, match=r"the space around x: name: .*\(got '-'\)"):
        space_around(network, "-", "x")
