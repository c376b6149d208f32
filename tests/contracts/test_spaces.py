"""SpaceContract: what every shipped space promises. A YAML file in search_spaces/ is tested."""

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from quadranas.files import shipped
from quadranas.layers import OPS, build_op
from quadranas.network.skeleton import build_subnet
from quadranas.space.architecture import Architecture, load_architecture
from quadranas.space.cost import PRIMITIVES, count_macs, count_params
from quadranas.space.operation import OpSpec
from quadranas.space.search_space import SKIPPED, Choices, SearchSpace
from quadranas.space.space_file import load_space, space_files

Counter = Callable[[nn.Module, Tensor], tuple[int, int]]

PUBLISHED = sorted(shipped("search_spaces").glob("*/*.json"))


@st.composite
def random_choices(draw: st.DrawFn, space: SearchSpace) -> Choices:
    choices: dict[str, tuple[int, ...] | None] = {}
    for block in space.blocks:
        kept = not block.optional or draw(st.booleans())
        picks = tuple(draw(st.integers(0, len(s.candidates) - 1)) for s in block.slots)
        choices[block.name] = picks if kept else SKIPPED
    return choices


def all_networks(space: SearchSpace) -> set[tuple[OpSpec, ...]]:
    """Every network of a small space, once, by trying every choice."""
    options: list[list[tuple[int, ...] | None]] = []
    for block in space.blocks:
        picks = product(*(range(len(slot.candidates)) for slot in block.slots))
        options.append([*picks, *([SKIPPED] if block.optional else [])])
    names = [block.name for block in space.blocks]
    return {
        tuple(space.architecture(dict(zip(names, choice, strict=True))).ops())
        for choice in product(*options)
    }


@pytest.mark.parametrize("name", space_files())
class TestSpaceContract:
    def test_the_file_says_what_it_is(self, name: str) -> None:
        text = space_files()[name].read_text(encoding="utf-8")
        assert text.startswith("# ")
        assert yaml.safe_load(text)["source"]
        assert load_space(name).name == name

    def test_number_of_architectures(self, name: str) -> None:
        content: dict[str, Any] = yaml.safe_load(space_files()[name].read_text(encoding="utf-8"))
        expected = 1
        for stage in content["stages"]:
            per_block = 1
            for slot in stage["slots"]:
                per_block *= len(slot.get("kernel_size", [1])) * len(slot.get("expand_ratio", [1]))
            low, high = stage["depth"]
            expected *= sum(per_block**depth for depth in range(low, high + 1))
        space = load_space(name)
        assert space.num_architectures == expected
        if expected < 1000:
            assert len(all_networks(space)) == expected

    @settings(max_examples=30)
    @given(data=st.data())
    def test_choices_and_architectures_are_two_names_of_a_network(
        self, name: str, data: st.DataObject
    ) -> None:
        space = load_space(name)
        choices = data.draw(random_choices(space))
        network = space.architecture(choices)
        assert space.choices_of(network) == choices
        assert space.architecture(space.choices_of(network)) == network
        again = Architecture.model_validate_json(network.model_dump_json())
        assert space.choices_of(again) == choices

    @settings(max_examples=30)
    @given(data=st.data())
    def test_no_network_is_beyond_the_extremes(self, name: str, data: st.DataObject) -> None:
        space = load_space(name)
        network = space.architecture(data.draw(random_choices(space)))
        for cost in (count_params, count_macs):
            low, high = (cost(space.extreme(cost, largest=large)) for large in (False, True))
            assert low <= cost(network) <= high
            assert low < high

    def test_every_candidate_can_be_built_and_counted(
        self, name: str, count_by_torch: Counter
    ) -> None:
        space = load_space(name)
        specs = space.specs()
        assert {spec.kind for spec in specs} <= set(OPS)
        assert {spec.kind for spec in specs} <= set(PRIMITIVES)
        assert len(set(specs)) == len(specs)
        for spec in specs:
            with torch.device("meta"):
                x = torch.empty(1, spec.in_channels, spec.resolution, spec.resolution)
                counted = count_by_torch(build_op(spec).eval(), x)
            assert counted == (count_params(spec), count_macs(spec)), spec

    @pytest.mark.parametrize("largest", [False, True], ids=["smallest", "largest"])
    def test_extremes_run_and_cost_what_they_should(
        self, name: str, largest: bool, count_by_torch: Counter
    ) -> None:
        space = load_space(name)
        network = space.extreme(count_macs, largest=largest)
        with torch.device("meta"):
            size = network.resolution
            counted = count_by_torch(build_subnet(network).eval(), torch.empty(1, 3, size, size))
        assert counted == (count_params(network), count_macs(network))

        small = network.adapted(resolution=32, num_classes=7)
        with torch.no_grad():
            scores = build_subnet(small).eval()(torch.randn(2, 3, 32, 32))
        assert scores.shape == (2, 7)
        assert scores.isfinite().all()


def test_the_size_of_the_mobile_space_by_hand() -> None:
    # Six candidates a block; five stages of one to four blocks, one of a single block.
    assert load_space("mbconv-mobile").num_architectures == (6 + 6**2 + 6**3 + 6**4) ** 5 * 6


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_shipped_architectures_are_sound(path: Path, count_by_torch: Counter) -> None:
    network = load_architecture(path)
    assert network.name == path.stem
    assert path.parent.name in space_files()
    if network.space:
        space = load_space(network.space)
        assert space.architecture(space.choices_of(network)).blocks == network.blocks
    with torch.device("meta"):
        x = torch.empty(1, 3, network.resolution, network.resolution)
        counted = count_by_torch(build_subnet(network).eval(), x)
    assert counted == (count_params(network), count_macs(network))


def test_published_networks_ship() -> None:
    assert {f"proxyless-{device}" for device in ("mobile", "cpu", "gpu")} <= {
        path.stem for path in PUBLISHED
    }
