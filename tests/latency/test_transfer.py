"""A table made of another device's: what a few networks tell about the kinds of operations."""

from collections.abc import Mapping
from random import Random

import numpy as np
import pytest

from quadranas.latency.table import LatencyTable
from quadranas.latency.table_files import find_table
from quadranas.latency.transfer import (
    Transferred,
    kind_of,
    network_pool,
    telling_networks,
    transferred,
)
from quadranas.space.architecture import Architecture
from quadranas.space.sampling import random_architectures
from quadranas.space.search_space import SearchSpace
from quadranas.space.space_file import load_space

NULL_MS = 0.05


@pytest.fixture(scope="module", params=["quadranet-mobile", "mbconv-mobile"])
def space(request: pytest.FixtureRequest) -> SearchSpace:
    return load_space(request.param)


@pytest.fixture(scope="module")
def source(space: SearchSpace) -> LatencyTable:
    return find_table(space, "cpu")


def factors_of(space: SearchSpace) -> dict[str, float]:
    """A device that is 2 to 6 times as fast, differently for every kind."""
    kinds = dict.fromkeys(kind_of(spec) for spec in space.specs())
    return {kind: Random(kind).uniform(0.15, 0.5) for kind in kinds}


def latency_ms(network: Architecture, source: LatencyTable, factors: Mapping[str, float]) -> float:
    return NULL_MS + sum(factors[kind_of(op)] * source.op_ms(op) for op in network.ops())


def measured(
    networks: list[Architecture], source: LatencyTable, noise: float = 0.0
) -> list[tuple[Architecture, float]]:
    factors, random = factors_of(load_space(source.header.space)), Random(0)
    return [
        (network, latency_ms(network, source, factors) * random.uniform(1 - noise, 1 + noise))
        for network in networks
    ]


def worst_error(
    table: LatencyTable, space: SearchSpace, source: LatencyTable, scale: float = 1.0
) -> float:
    """The largest error of fresh networks, less the null call."""
    factors = factors_of(space)
    errors = []
    for network in random_architectures(space, 30, "fresh"):
        predicted = scale * sum(table.op_ms(op) for op in network.ops())
        errors.append(abs(predicted / (latency_ms(network, source, factors) - NULL_MS) - 1))
    return max(errors)


def table_of(source: LatencyTable, found: Transferred) -> LatencyTable:
    header = source.header.model_copy(update={"null_ms": NULL_MS, "scale": 1.0})
    return LatencyTable(header=header, entries=found.entries)


def test_a_device_that_is_fast_in_other_kinds_is_met_exactly(
    space: SearchSpace, source: LatencyTable
) -> None:
    networks = telling_networks(space, source, 12)
    found = transferred(source, space.specs(), measured(networks, source), NULL_MS)
    assert worst_error(table_of(source, found), space, source) < 0.002
    assert found.mape < 0.01
    assert [n.measured_ms for n in found.calibration.networks] == [
        ms for _, ms in measured(networks, source)
    ]


def test_four_noisy_networks_are_better_than_one_scale(
    space: SearchSpace, source: LatencyTable
) -> None:
    networks = telling_networks(space, source, 4)
    found = transferred(source, space.specs(), measured(networks, source, 0.02), NULL_MS)
    sums = [sum(source.op_ms(op) for op in network.ops()) for network in networks]
    ms = [value - NULL_MS for _, value in measured(networks, source, 0.02)]
    one_scale = float(np.mean([value / total for value, total in zip(ms, sums, strict=True)]))
    alone = worst_error(source, space, source, one_scale)
    assert worst_error(table_of(source, found), space, source) < alone


def test_kinds_that_no_network_has_take_the_common_factor(source: LatencyTable) -> None:
    space = load_space(source.header.space)
    smallest = min(network_pool(space), key=lambda network: len(list(network.ops())))
    kinds = {kind_of(op) for op in smallest.ops()}
    networks = [n for n in network_pool(space) if {kind_of(op) for op in n.ops()} <= kinds][:6]
    ms = [(n, NULL_MS + 0.25 * sum(map(source.op_ms, n.ops()))) for n in networks]
    found = transferred(source, space.specs(), ms, NULL_MS)
    assert set(found.transfer.factors) == {kind_of(spec) for spec in space.specs()}
    assert list(found.transfer.factors.values()) == pytest.approx(
        [0.25] * len(found.transfer.factors), rel=1e-6
    )


def test_the_error_is_that_of_networks_left_out(space: SearchSpace, source: LatencyTable) -> None:
    """Of noise that no factor can follow, the stated error is at least as large."""
    networks = telling_networks(space, source, 10)
    found = transferred(source, space.specs(), measured(networks, source, 0.2), NULL_MS)
    assert found.mape > 0.05
    assert found.calibration.residual > found.mape


def test_telling_networks_beat_the_same_number_of_random_ones(
    space: SearchSpace, source: LatencyTable
) -> None:
    def error(networks: list[Architecture]) -> float:
        found = transferred(source, space.specs(), measured(networks, source, 0.03), NULL_MS)
        return worst_error(table_of(source, found), space, source)

    pool = network_pool(space)
    drawn = [error(Random(seed).sample(pool, 6)) for seed in range(8)]
    assert error(telling_networks(space, source, 6)) < np.median(drawn)
