"""The networks of a weight step: one or several, any or near the budget."""

import pytest
import torch

from quadranas.runs.config import SupernetConfig
from quadranas.seeds import generator_for
from quadranas.space.cost import count_macs
from quadranas.space.search_space import SearchSpace
from quadranas.supernet.expected_latency import ExpectedLatency
from quadranas.supernet.gates import KEEP, SKIP, Sample
from quadranas.supernet.path_sampler import PathSampler
from quadranas.supernet.supernet import Supernet, build_supernet
from tests.small_supernets import BUDGET_MS, SPACES, table_for


@pytest.fixture(params=SPACES)
def space(request: pytest.FixtureRequest) -> SearchSpace:
    return SPACES[request.param]


@pytest.fixture
def supernet(space: SearchSpace) -> Supernet:
    return build_supernet(space, seed=0)


def sampler(supernet: Supernet, **keys: float) -> PathSampler:
    expected = ExpectedLatency(supernet.space, supernet.gates, table_for(supernet.space))
    return PathSampler(supernet, SupernetConfig.model_validate(keys), expected, BUDGET_MS)


def same(one: Sample, other: Sample) -> bool:
    return torch.equal(one.active, other.active) and torch.equal(one.involved, other.involved)


def test_by_default_a_step_trains_the_path_that_the_gates_draw(supernet: Supernet) -> None:
    (found,) = sampler(supernet).draw(generator_for(0, "path", 3))
    assert same(found, supernet.gates.sample_path(generator_for(0, "path", 3)))


def test_the_sandwich_has_the_largest_the_smallest_and_random_networks(
    supernet: Supernet,
) -> None:
    generator = generator_for(0, "path", 3)
    largest, smallest, *drawn = sampler(supernet, sandwich=2).draw(generator_for(0, "path", 3))
    assert len(drawn) == 2
    assert all(same(one, supernet.gates.sample_path(generator)) for one in drawn)
    for path, is_largest in ((largest, True), (smallest, False)):
        supernet.set_sample(path)
        wanted = supernet.space.extreme(count_macs, largest=is_largest)
        total = sum(1 for _ in supernet.active_modules())
        assert total == len(list(wanted.ops()))
        depth = [row for row, info in enumerate(supernet.gates.infos) if info.slot is None]
        assert {int(path.active[row]) for row in depth} == {KEEP if is_largest else SKIP}
        images = torch.randn(2, 3, 16, 16)
        found = supernet(images)
        supernet.set_choices(supernet.space.choices_of(wanted))
        torch.testing.assert_close(supernet(images), found)


def test_random_networks_are_near_the_budget_when_asked_for(supernet: Supernet) -> None:
    near, any_latency = sampler(supernet, near_budget=0.1), sampler(supernet)
    distances = [
        [s._distance(s.draw(generator_for(0, "path", number))[0]) for number in range(40)]
        for s in (near, any_latency)
    ]
    assert max(distances[0]) <= 0.1
    assert max(distances[1]) > 0.3


def test_without_one_near_the_budget_the_nearest_is_taken(supernet: Supernet) -> None:
    far = sampler(supernet, near_budget=0.01)
    far.budget_ms = 100.0
    (found,) = far.draw(generator_for(0, "path", 0))
    generator = generator_for(0, "path", 0)
    drawn = [supernet.gates.sample_path(generator) for _ in range(100)]
    assert far._distance(found) == min(map(far._distance, drawn))
