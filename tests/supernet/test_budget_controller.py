"""The budget controller: its parts, and whole searches simulated with it."""

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from quadranas.latency.table import LatencyTable
from quadranas.latency.table_files import find_table
from quadranas.space.search_space import SearchSpace
from quadranas.space.space_file import load_space
from quadranas.strategies.limits import reachable_ms
from quadranas.supernet.budget_controller import BudgetController, combine, latency_weights
from quadranas.supernet.expected_latency import ExpectedLatency
from quadranas.supernet.gate_training import build_gate_optimizer
from quadranas.supernet.gates import KEEP, Gates, gate_infos
from tests.supernet.toy import TOY, generator, with_overhead


def rescaled(table: LatencyTable, factor: float) -> LatencyTable:
    """The same device with another unit of time."""
    header = table.header.model_copy(update={"null_ms": factor * table.header.null_ms})
    entries = tuple(
        entry.model_copy(update={"latency_ms": factor * entry.latency_ms})
        for entry in table.entries
    )
    return LatencyTable(header=header, entries=entries)


# ---------------------------------------------------------------- the controller's parts


def test_the_weight_is_the_multiplier_and_a_part_in_proportion_to_the_violation() -> None:
    controller = BudgetController(200.0, damping=50.0, multiplier=0.5)
    assert controller.violation(200.0) == 0.0
    assert controller.weight(200.0) == 0.5
    assert controller.weight(200.0 * math.e**0.1) == pytest.approx(0.5 + 5.0)
    assert controller.weight(200.0 / math.e**0.1) == pytest.approx(0.5 - 5.0)


def test_the_latency_gradient_is_brought_to_the_size_of_the_task_gradient() -> None:
    task = torch.tensor([[3.0, 4.0]], dtype=torch.float64)
    latency = torch.tensor([[0.0, 2e-9]], dtype=torch.float64)
    controller = BudgetController(1.0, multiplier=0.5)
    combined = controller.combine(task, latency, 1.0)
    torch.testing.assert_close(combined, task + 0.5 * torch.tensor([[0.0, 5.0]]).double())
    controller = BudgetController(1.0, multiplier=-2.0)  # a weight above 1 scales the sum down
    combined = controller.combine(task, latency, 1.0)
    torch.testing.assert_close(combined, task / 2 - torch.tensor([[0.0, 5.0]]).double())


def test_the_multiplier_ascends_by_its_rate_at_most_and_up_to_its_limit() -> None:
    gradient = torch.ones(1, 2, dtype=torch.float64)
    controller = BudgetController(1.0, rate=0.1, damping=50.0, limit=0.5)
    controller.combine(gradient, gradient, math.exp(0.01))
    assert controller.multiplier == pytest.approx(0.1 * 50.0 * 0.01)
    controller.combine(gradient, gradient, 100.0)
    assert controller.multiplier == pytest.approx(0.15)
    for _ in range(9):
        controller.combine(gradient, gradient, 100.0)
    assert controller.multiplier == 0.5
    for _ in range(20):
        controller.combine(gradient, gradient, 0.01)
    assert controller.multiplier == -0.5


def test_a_fading_task_gradient_does_not_take_the_latency_term_with_it() -> None:
    latency = torch.ones(1, 2, dtype=torch.float64)
    controller = BudgetController(1.0)
    controller.combine(100 * latency, latency, 1.0)
    combined = controller.combine(torch.zeros_like(latency), latency, 1e6)
    assert float(combined.norm()) == pytest.approx(100 * math.sqrt(2), rel=0.01)


def test_an_outlier_of_the_task_gradient_is_scaled_down() -> None:
    gradient = torch.tensor([[3.0, 4.0]], dtype=torch.float64)
    controller = BudgetController(1.0)
    for factor, expected in ((1.0, 1.0), (1.4, 1.4), (100.0, 1.4 * 1.5), (0.1, 0.1)):
        combined = controller.combine(factor * gradient, torch.zeros_like(gradient), 1.0)
        torch.testing.assert_close(combined, expected * gradient)


def test_without_a_task_gradient_latency_moves_the_gates() -> None:
    nothing = torch.zeros(1, 2, dtype=torch.float64)
    combined = BudgetController(1.0).combine(nothing, torch.tensor([[1.0, -1.0]]).double(), 2.0)
    assert combined[0, 0] > 100 * 1e-8  # the epsilon of Adam
    combined = BudgetController(1.0).combine(nothing, nothing, 2.0)
    assert not combined.any()


# ---------------------------------------------------------------- simulated searches


Pull = Callable[[int], Tensor]
"""dL/dg of all candidates at a step, such as a network would give it."""


def relative_costs(gates: Gates, expected: ExpectedLatency) -> Tensor:
    """Per gate from 0 for the fastest candidate to 1 for the slowest."""
    costs = expected.costs_ms.clone()
    costs[[info.slot is None for info in gates.infos], KEEP] = 1.0
    low = costs.masked_fill(~gates.mask, math.inf).amin(1, keepdim=True)
    high = costs.amax(1, keepdim=True)
    return (costs - low) / (high - low) * gates.mask


def pull(kind: str, gates: Gates, expected: ExpectedLatency, num_steps: int) -> Pull:
    """A task gradient in the style named: towards slow or fast networks, or neither."""
    draw, shape = generator(7), gates.mask.shape
    costs = relative_costs(gates, expected)
    strength = torch.randn(len(costs), 1, generator=draw, dtype=torch.float64).exp()

    def noise() -> Tensor:
        return torch.randn(shape, generator=draw, dtype=torch.float64)

    preference = noise()
    pulls: dict[str, Pull] = {
        "nothing": lambda step: torch.zeros(shape, dtype=torch.float64),
        "noise": lambda step: 0.01 * noise(),
        "to slow": lambda step: -costs * strength + 0.1 * noise(),
        "to fast": lambda step: costs * strength + 0.1 * noise(),
        "to slow, steady": lambda step: -1e-4 * costs,
        "to preferred": lambda step: preference + 0.3 * noise(),
        "fading": lambda step: 0.01 ** (step / num_steps) * (noise() - costs),
        "growing": lambda step: 100 ** (step / num_steps) * (noise() - costs),
        "heavy-tailed": lambda step: (
            (noise() - costs) * math.exp(1.5 * float(torch.randn((), generator=draw)))
        ),
        "turning": lambda step: (costs if step < num_steps / 2 else -costs) + 0.5 * noise(),
    }
    return pulls[kind]


KINDS = (
    "nothing",
    "noise",
    "to slow",
    "to fast",
    "to slow, steady",
    "to preferred",
    "fading",
    "growing",
    "heavy-tailed",
    "turning",
)


def simulate(
    space: SearchSpace,
    table: LatencyTable,
    budget_ms: float,
    kind: str,
    *,
    mode: str = "two_path",
    learning_rate: float = 0.03,
    num_steps: int = 200,
) -> tuple[Tensor, list[float]]:
    """Architecture steps with a synthetic task gradient in place of a network.

    Returns: alpha at the end, and E over the budget before every step and at the end.
    """
    draw = generator()
    gates = Gates(gate_infos(space), draw)
    expected = ExpectedLatency(space, gates, table)
    controller = BudgetController(budget_ms)
    optimizer = build_gate_optimizer(gates, learning_rate)
    task_pull = pull(kind, gates, expected, num_steps)
    course = []
    for step in range(num_steps):
        full = mode == "full"
        sample = gates.sample_full(draw) if full else gates.sample_pair(draw)
        kept = sample.active[expected.depth_row.clamp(min=0)] == KEEP
        reached = sample.involved & (kept | (expected.depth_row < 0))[:, None]
        task = gates.task_gradient(task_pull(step) * reached, reached)
        value = expected(gates.probabilities(None if full else sample.involved))
        (latency,) = torch.autograd.grad(value.log(), gates.alpha)
        course.append(float(value.detach()) / budget_ms)
        before = gates.alpha.detach().clone()
        gates.alpha.grad = controller.combine(task, latency, float(value.detach()))
        optimizer.step()
        if not full:
            gates.keep_mass(before, sample.involved)
    with torch.no_grad():
        course.append(float(expected(gates.probabilities())) / budget_ms)
    return gates.alpha.detach(), course


CASES = [
    (space, device, (0.1, 0.3, 0.5, 0.7, 0.9)[index % 5])
    for index, (space, device) in enumerate(
        itertools.product(
            ("toy", "quadranet-tiny", "quadranet-mobile", "mbconv-mobile"), ("vpu", "cpu", "gpu")
        )
    )
]
"""Every shipped space on every shipped device, with a share of the way from fastest to slowest."""


def budget_at(space: SearchSpace, table: LatencyTable, share: float) -> float:
    low, high = reachable_ms(space, table)
    return low + share * (high - low)


@pytest.mark.parametrize(("name", "device", "share"), CASES)
def test_the_expectation_ends_within_five_percent_of_the_budget(
    name: str, device: str, share: float
) -> None:
    # Over 2,520 such cases the worst error was 2.1 %, the 95th percentile about 1 %.
    space = load_space(name)
    table = find_table(space, device)
    start = CASES.index((name, device, share))
    for offset, mode in ((0, "two_path"), (3, "full")):
        kind = KINDS[(start + offset) % len(KINDS)]
        _, course = simulate(space, table, budget_at(space, table, share), kind, mode=mode)
        assert course[-1] == pytest.approx(1, abs=0.05), (kind, mode)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.1, 0.9])
def test_whatever_the_task_pulls_at(kind: str, share: float) -> None:
    table = find_table(TOY, "vpu")
    _, course = simulate(TOY, table, budget_at(TOY, table, share), kind)
    assert course[-1] == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize(
    ("kind", "shares"),
    [
        ("to slow", (0.3, 0.3)),
        ("to fast", (0.3, 0.6)),
        ("noise", (0.7, 0.2)),
        ("to preferred", (0.2, 0.7)),
        ("turning", (0.5, 0.5)),
    ],
)
def test_with_several_budgets_the_tightest_is_held_and_all_are_kept(
    kind: str, shares: tuple[float, float]
) -> None:
    draw = generator()
    gates = Gates(gate_infos(TOY), draw)
    tables = [find_table(TOY, device) for device in ("vpu", "cpu")]
    terms = [ExpectedLatency(TOY, gates, table) for table in tables]
    budgets = [budget_at(TOY, t, share) for t, share in zip(tables, shares, strict=True)]
    controllers = [BudgetController(budget_ms) for budget_ms in budgets]
    optimizer = build_gate_optimizer(gates, 0.03)
    task_pull = pull(kind, gates, terms[0], 300)
    for step in range(300):
        task = gates.task_gradient(task_pull(step), gates.mask)
        values = [term(gates.probabilities(None)) for term in terms]
        latencies = [torch.autograd.grad(v.log(), gates.alpha)[0] for v in values]
        gates.alpha.grad = combine(
            controllers, task, latencies, [float(v.detach()) for v in values]
        )
        optimizer.step()
    with torch.no_grad():
        uses = [
            float(term(gates.probabilities())) / budget_ms
            for term, budget_ms in zip(terms, budgets, strict=True)
        ]
    assert max(uses) == pytest.approx(1, abs=0.05)
    weights = latency_weights(controllers, [u * b for u, b in zip(uses, budgets, strict=True)])
    assert all(w >= 0 for w, use in zip(weights, uses, strict=True) if use < max(uses))


def test_a_budget_that_is_kept_anyway_has_no_weight() -> None:
    task = torch.tensor([[3.0, 4.0]], dtype=torch.float64)
    latency = torch.tensor([[0.0, 1.0]], dtype=torch.float64)
    one, other = BudgetController(1.0, multiplier=0.5), BudgetController(1.0, multiplier=-1.0)
    assert latency_weights([one, other], [1.0, 0.5]) == [0.5, 0.0]
    combined = combine([one, other], task, [latency, latency], [1.0, 0.5])
    torch.testing.assert_close(combined, task + 0.5 * 5 * latency)
    assert other.multiplier == 0.0  # it does not pull back once it is tight
    for _ in range(500):
        combine([one, other], task, [latency, latency], [0.5, 0.4])
    assert (one.multiplier, other.multiplier) == (-one.limit, 0.0)


def test_it_settles_early_and_does_not_swing() -> None:
    # A search for quadranet-mobile under 30 ms once fell from 62 ms to 28.5 ms and crept back.
    space = load_space("quadranet-mobile")
    table = find_table(space, "vpu")
    _, course = simulate(space, table, 30.0, "to slow", num_steps=300)
    assert course[0] > 2
    assert min(course) > 0.97
    assert max(abs(value - 1) for value in course[100:]) < 0.03
    assert course[-1] == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("kind", ["to slow", "fading", "to preferred"])
@pytest.mark.parametrize("share", [0.1, 0.9])
@pytest.mark.parametrize(("learning_rate", "num_steps"), [(0.1, 100), (0.03, 100), (0.006, 600)])
def test_other_rates_and_lengths(
    kind: str, share: float, learning_rate: float, num_steps: int
) -> None:
    table = find_table(TOY, "cpu")
    _, course = simulate(
        TOY,
        table,
        budget_at(TOY, table, share),
        kind,
        learning_rate=learning_rate,
        num_steps=num_steps,
    )
    assert course[-1] == pytest.approx(1, abs=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_long_searches(kind: str) -> None:
    space = load_space("quadranet-mobile")
    table = find_table(space, "vpu")
    for share, mode in ((0.1, "two_path"), (0.9, "full")):
        _, course = simulate(
            space,
            table,
            budget_at(space, table, share),
            kind,
            mode=mode,
            learning_rate=0.006,
            num_steps=2000,
        )
        assert course[-1] == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("factor", [1e-3, 1e3])
@pytest.mark.parametrize("mode", ["two_path", "full"])
def test_a_unit_of_time_makes_no_difference(factor: float, mode: str) -> None:
    table = with_overhead(find_table(TOY, "vpu"))
    budget_ms = budget_at(TOY, table, 0.3)
    results = [
        simulate(TOY, rescaled(table, f), f * budget_ms, "to slow", mode=mode, num_steps=40)
        for f in (1.0, factor)
    ]
    torch.testing.assert_close(*(alpha for alpha, _ in results), rtol=1e-9, atol=1e-11)
    assert results[0][1] == pytest.approx(results[1][1], rel=1e-11)


@pytest.mark.parametrize("budget_ms", [1e-4, 1e4])
def test_a_budget_out_of_reach_ends_at_the_nearest_network(budget_ms: float) -> None:
    table = find_table(TOY, "vpu")
    alpha, course = simulate(TOY, table, budget_ms, "to preferred", num_steps=300)
    nearest = reachable_ms(TOY, table)[budget_ms > 1]
    assert course[-1] * budget_ms == pytest.approx(nearest, rel=0.05)
    assert alpha.isfinite().all()
