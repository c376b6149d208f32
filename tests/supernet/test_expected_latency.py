"""The expected latency against the enumeration of all networks."""

import itertools
import math
from dataclasses import replace

import pytest
import torch

from quadranas.errors import MissingEntryError
from quadranas.latency.table import LatencyTable
from quadranas.latency.table_files import find_table
from quadranas.space.search_space import SKIPPED, Choices, SearchSpace
from quadranas.space.space_file import load_space
from quadranas.strategies.limits import reachable_ms
from quadranas.supernet.expected_latency import ExpectedLatency
from quadranas.supernet.gates import KEEP, SKIP, Gates, gate_infos
from tests.supernet.toy import TOY, generator, with_overhead

SLOWEST = "feed_forward 16->16 r4 e4"


def gates_for(space: SearchSpace) -> Gates:
    """The gates of a space, away from uniform."""
    gates = Gates(gate_infos(space), generator())
    with torch.no_grad():
        noise = torch.randn(gates.alpha.shape, generator=generator(1))
        gates.alpha.add_(noise * gates.mask)
    return gates


def by_enumeration(gates: Gates, space: SearchSpace, table: LatencyTable) -> float:
    """Sum over all settings of all gates of probability times predicted latency."""
    p = gates.probabilities().tolist()
    total = 0.0
    for setting in itertools.product(*(range(len(info.candidates)) for info in gates.infos)):
        probability = math.prod(row[index] for row, index in zip(p, setting, strict=True))
        found = {(i.block, i.slot): s for i, s in zip(gates.infos, setting, strict=True)}
        choices: Choices = {
            block.name: SKIPPED
            if found.get((block.name, None)) == SKIP
            else tuple(found.get((block.name, index), 0) for index in range(len(block.slots)))
            for block in space.blocks
        }
        total += probability * table.predict_ms(space.architecture(choices))
    return total


def with_given_blocks() -> SearchSpace:
    """The toy space with nothing but depth to choose in one of its stages."""
    blocks = tuple(
        replace(block, slots=tuple(replace(s, candidates=s.candidates[1:]) for s in block.slots))
        if block.stage == "stage2"
        else block
        for block in TOY.blocks
    )
    return replace(TOY, blocks=blocks)


@pytest.mark.parametrize("device", ["vpu", "gpu"])
@pytest.mark.parametrize("overhead", [False, True])
@pytest.mark.parametrize("space", [TOY, with_given_blocks()], ids=["toy", "given"])
def test_expected_latency_is_the_mean_over_all_networks(
    device: str, overhead: bool, space: SearchSpace
) -> None:
    table = find_table(TOY, device)
    table = with_overhead(table) if overhead else table
    gates = gates_for(space)
    expected = ExpectedLatency(space, gates, table)
    with torch.no_grad():
        found = float(expected(gates.probabilities()))
    assert found == pytest.approx(by_enumeration(gates, space, table), rel=1e-12)


def test_decided_gates_cost_what_their_network_costs() -> None:
    space = load_space("mbconv-mobile")
    table = find_table(space, "cpu")
    gates = Gates(gate_infos(space), generator())
    expected = ExpectedLatency(space, gates, table)
    for largest, bound in zip((False, True), reachable_ms(space, table), strict=True):
        choices = space.choices_of(space.extreme(table.op_ms, largest=largest))
        decided = torch.zeros_like(gates.alpha, requires_grad=False)
        for row, info in enumerate(gates.infos):
            choice = choices[info.block]
            if info.slot is None:
                decided[row, SKIP if choice is SKIPPED else KEEP] = 1
            else:
                decided[row, 0 if choice is SKIPPED else choice[info.slot]] = 1
        assert float(expected(decided)) == pytest.approx(bound, rel=1e-12)


def test_its_gradient_is_that_of_finite_differences_through_every_gate() -> None:
    gates = gates_for(TOY)
    table = with_overhead(find_table(TOY, "vpu"))
    expected = ExpectedLatency(TOY, gates, table)
    (gradient,) = torch.autograd.grad(expected(gates.probabilities()), gates.alpha)
    assert gradient[gates.mask].abs().min() > 1e-6
    for row, column in gates.mask.nonzero().tolist():
        values = []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                gates.alpha[row, column] += step
                values.append(float(expected(gates.probabilities())))
                gates.alpha[row, column] -= step
        difference = (values[0] - values[1]) / 2e-5
        assert float(gradient[row, column]) == pytest.approx(difference, rel=1e-6)


def test_a_space_without_decisions_has_the_latency_of_its_network() -> None:
    table = with_overhead(find_table(TOY, "vpu"))
    blocks = tuple(
        replace(block, slots=tuple(replace(s, candidates=s.candidates[:1]) for s in block.slots))
        for block in TOY.blocks
        if not block.optional
    )
    space = replace(TOY, blocks=blocks)
    gates = Gates(gate_infos(space), generator())
    assert not gates.infos
    found = ExpectedLatency(space, gates, table)(gates.probabilities()).detach()
    assert float(found) == pytest.approx(table.predict_ms(space.architecture({})))


def test_a_table_that_lacks_a_candidate_is_refused() -> None:
    table = find_table(TOY, "vpu")
    entries = tuple(entry for entry in table.entries if str(entry.op) != SLOWEST)
    assert len(entries) == len(table.entries) - 1
    short = LatencyTable(header=table.header, entries=entries)
    with pytest.raises(MissingEntryError, match=SLOWEST):
        ExpectedLatency(TOY, gates_for(TOY), short)
