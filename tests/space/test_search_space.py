"""Search spaces: their size, their networks and the choices that lead to them."""

import copy
from typing import Any

import pytest

from quadranas.errors import QuadranasError
from quadranas.space.architecture import Architecture, Block
from quadranas.space.cost import count_macs
from quadranas.space.space_file import load_space
from tests.space.documents import WriteSpace, change

# ---------------------------------------------------------------- size, digest, classes


@pytest.mark.parametrize(
    ("low", "high", "networks"), [(0, 2, 1 + 4 + 16), (1, 1, 4), (2, 2, 16), (1, 3, 4 + 16 + 64)]
)
def test_number_of_architectures(
    toy: dict[str, Any], write_space: WriteSpace, low: int, high: int, networks: int
) -> None:
    toy["stages"][0]["depth"] = [low, high]
    assert load_space(write_space(toy)).num_architectures == networks * (4 + 16)


def test_the_digest_is_of_the_searched_blocks(
    toy: dict[str, Any], write_space: WriteSpace
) -> None:
    space = load_space("toy")
    assert load_space(write_space(toy)).digest == space.digest
    assert space.with_num_classes(100).digest == space.digest
    for path, value in (
        ("stages.0.slots.0.kernel_size", [3, 7]),
        ("stages.0.depth", [2, 2]),
        ("resolution", 64),
        ("widths", [8, 24]),
    ):
        changed = copy.deepcopy(toy)
        change(changed, path, value)
        assert load_space(write_space(changed)).digest != space.digest


def test_another_number_of_classes() -> None:
    space = load_space("toy").with_num_classes(7)
    network = space.architecture({})
    assert (space.num_classes, network.num_classes) == (7, 7)
    assert space.choices_of(network)["head"] == (0,)
    with pytest.raises(
        QuadranasError, match="0 classes do not fit space toy: the number must be 1 to"
    ):
        space.with_num_classes(0)


# ---------------------------------------------------------------- choices


TOY = load_space("toy")
LARGEST = TOY.extreme(count_macs, largest=True)


def replaced(**changes: Any) -> Architecture:
    return Architecture.model_validate(LARGEST.model_dump() | changes)


@pytest.mark.parametrize(
    ("network", "reason"),
    [
        (
            TOY.with_num_classes(11).architecture({}),
            "head: norm_head 16->11 r4 is not a candidate",
        ),
        (
            load_space("toy", widths=(8, 24)).architecture({}),
            "stage2_entry: downsample 8->24 r8 k2 s2 is not a candidate",
        ),
        (
            replaced(blocks=(*LARGEST.blocks[:4], *LARGEST.blocks[5:])),
            "block 'stage2_block1' is missing",
        ),
        (
            replaced(
                blocks=(
                    LARGEST.blocks[0],
                    Block(name="stage1_block1", ops=LARGEST.blocks[1].ops[:1]),
                    *LARGEST.blocks[2:],
                )
            ),
            "block 'stage1_block1' has 1 ops",
        ),
        (
            replaced(
                blocks=(
                    *LARGEST.blocks[:2],
                    Block(name="extra", ops=LARGEST.blocks[1].ops),
                    *LARGEST.blocks[2:],
                )
            ),
            "block 'extra' is unknown",
        ),
        (
            replaced(
                blocks=(
                    LARGEST.blocks[0],
                    LARGEST.blocks[2],
                    LARGEST.blocks[1],
                    *LARGEST.blocks[3:],
                )
            ),
            "block 'stage1_block2' is in the place of 'stage1_block1'",
        ),
    ],
)
def test_networks_of_another_space(network: Architecture, reason: str) -> None:
    with pytest.raises(QuadranasError) as caught:
        TOY.choices_of(network)
    name = network.name
    assert str(caught.value) == f"architecture {name!r} is not in space toy: {reason}"


def test_extremes_under_any_cost() -> None:
    costs = {spec: float(len(str(spec)) % 7) for spec in TOY.specs()}
    total = {
        largest: sum(costs[op] for op in TOY.extreme(costs.__getitem__, largest=largest).ops())
        for largest in (False, True)
    }
    sums = []
    for first in TOY.blocks[1].slots[0].candidates:
        for second in TOY.blocks[1].slots[1].candidates:
            for third in TOY.blocks[4].slots[0].candidates:
                for fourth in TOY.blocks[4].slots[1].candidates:
                    sums.append(sum(map(costs.__getitem__, (first, second, third, fourth))))
    fixed = sum(costs[block.slots[0].candidates[0]] for block in TOY.blocks if block.is_fixed)
    assert total[False] == fixed + min(sums)
    assert total[True] == fixed + 2 * max(sums)
