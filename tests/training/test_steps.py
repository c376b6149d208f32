"""Training steps: what moves, what stays, and schedules."""

import copy
import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from quadranas.data.batch import Batch
from quadranas.latency.table import LatencyTable, TableEntry
from quadranas.latency.table_files import find_table
from quadranas.network.modes import frozen_statistics
from quadranas.runs.config import GateConfig, WeightConfig
from quadranas.seeds import derived_seed, generator_for
from quadranas.space.search_space import SearchSpace
from quadranas.space.space_file import SpaceFile, build_space, load_space
from quadranas.supernet.budget_controller import BudgetController
from quadranas.supernet.expected_latency import ExpectedLatency
from quadranas.supernet.gate_training import GateTrainer, build_gate_optimizer
from quadranas.supernet.gates import KEEP, SKIP, Sample
from quadranas.supernet.supernet import Supernet, build_supernet
from quadranas.training.optimizers import build_optimizer, learning_rate_at
from quadranas.training.steps import weight_step

QUADRA: dict[str, Any] = {
    "name": "small-quadra",
    "resolution": 16,
    "num_classes": 4,
    "widths": [6, 8],
    "stages": [
        {
            "entry": {"kind": "patch_stem", "kernel_size": 4, "stride": 4},
            "depth": [1, 2],
            "slots": [
                {"kind": "quadratic_depthwise", "kernel_size": [1, 3, 5]},
                {"kind": "feed_forward", "expand_ratio": [1, 2, 3]},
            ],
        },
        {
            "entry": {"kind": "downsample", "kernel_size": 2, "stride": 2},
            "depth": [0, 1],
            "slots": [{"kind": "feed_forward", "expand_ratio": [1, 2, 3, 4]}],
        },
    ],
    "head": "norm_head",
}
MBCONV: dict[str, Any] = {
    "name": "small-mbconv",
    "resolution": 16,
    "num_classes": 4,
    "widths": [6, 6, 8],
    "stages": [
        {"stride": 2, "depth": [1, 1], "slots": [{"kind": "conv_bn", "kernel_size": [3]}]},
        *(
            {
                "stride": 2,
                "depth": [1, 2],
                "slots": [{"kind": "mbconv", "kernel_size": [3, 5], "expand_ratio": [2, 3]}],
            }
            for _ in range(2)
        ),
    ],
    "head": "linear_head",
}
SPACES = {
    content["name"]: build_space(SpaceFile.model_validate(content)) for content in (QUADRA, MBCONV)
}
BUDGET_MS = 0.7
"""Within the reach of both spaces."""


def table_for(space: SearchSpace, factor: float = 1.0) -> LatencyTable:
    """Larger kernels and expansions take longer; 0.43 to 1.58 ms for a network."""
    header = find_table(load_space("toy"), "vpu").header
    entries = tuple(
        TableEntry(
            op=spec, latency_ms=factor * (0.05 + 0.02 * spec.kernel_size * spec.expand_ratio)
        )
        for spec in space.specs()
    )
    return LatencyTable(header=header, entries=entries)


def batch_for(space: SearchSpace, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(8, 3, space.resolution, space.resolution, generator=generator)
    labels = torch.randint(space.num_classes, (8,), generator=generator)
    return Batch(images, nn.functional.one_hot(labels, space.num_classes).float())


def trainer_for(
    space: SearchSpace, *, mode: str = "two_path", budget_ms: float = BUDGET_MS, seed: int = 0
) -> GateTrainer:
    supernet = build_supernet(space, seed=seed).train()
    expected = ExpectedLatency(space, supernet.gates, table_for(space))
    config = GateConfig.model_validate({"mode": mode, "learning_rate": 0.05})
    return GateTrainer(supernet, expected, BudgetController(budget_ms), config)


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


@pytest.fixture(params=SPACES)
def space(request: pytest.FixtureRequest) -> SearchSpace:
    return SPACES[request.param]


# ---------------------------------------------------------------- seeds and schedules


def test_a_seed_for_every_purpose_and_step() -> None:
    seeds = [
        derived_seed(seed, purpose, step)
        for seed in range(5)
        for purpose in ("path", "gates", "augment")
        for step in range(200)
    ]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derived_seed(0, "path", 1) == 9809698001800064  # the same in every process and version


def test_generators_of_different_purposes_are_independent() -> None:
    draws = [
        torch.rand(2000, generator=generator_for(0, *purpose))
        for purpose in (("path", 0), ("path", 1), ("gates", 0))
    ]
    again = torch.rand(2000, generator=generator_for(0, "path", 0))
    assert torch.equal(draws[0], again)
    correlations = torch.corrcoef(torch.stack(draws)) - torch.eye(3)
    assert correlations.abs().max() < 4 / 2000**0.5


@given(num_steps=st.integers(1, 3000), fraction=st.floats(0, 0.5))
def test_the_learning_rate_rises_linearly_and_falls_by_a_cosine(
    num_steps: int, fraction: float
) -> None:
    config = WeightConfig(learning_rate=0.1, warmup_fraction=fraction)
    rates = [learning_rate_at(step, num_steps, config) for step in range(num_steps)]
    warmup = max(1, round(fraction * num_steps))
    for step, rate in enumerate(rates):
        if step < warmup:
            assert rate == pytest.approx(0.1 * (step + 1) / warmup)
        else:
            share = (step - warmup) / (num_steps - warmup)
            assert rate == pytest.approx(0.05 * (1 + math.cos(math.pi * share)))
    assert max(rates) == pytest.approx(0.1)
    assert min(rates) > 0


def test_norms_biases_and_scales_do_not_decay(space: SearchSpace) -> None:
    supernet = build_supernet(space, seed=0)
    optimizer = build_optimizer(supernet, WeightConfig(weight_decay=0.3))
    names = {parameter: name for name, parameter in supernet.named_parameters()}
    decaying, plain = optimizer.param_groups
    assert (decaying["weight_decay"], plain["weight_decay"]) == (0.3, 0.0)
    assert all(names[p].endswith("weight") and p.ndim > 1 for p in decaying["params"])
    assert all(p.ndim == 1 for p in plain["params"])
    optimised = {names[p] for group in optimizer.param_groups for p in group["params"]}
    assert optimised == set(names.values()) - {"gates.alpha"}


def test_a_weight_that_is_called_alpha_is_trained_too() -> None:
    layer = nn.Module()
    layer.alpha = nn.Parameter(torch.ones(3))
    optimizer = build_optimizer(nn.Sequential(layer), WeightConfig())
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 1


# ---------------------------------------------------------------- weight steps


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_what_is_not_sampled_has_no_gradient_no_momentum_and_no_decay(
    space: SearchSpace, kind: str
) -> None:
    supernet = build_supernet(space, seed=0).train()
    config = WeightConfig.model_validate(
        {"optimizer": kind, "learning_rate": 0.01, "weight_decay": 0.5}
    )
    optimizer = build_optimizer(supernet, config)
    ever_used: set[nn.Parameter] = set()
    missed_later = False
    for step in range(6):
        supernet.set_sample(supernet.gates.sample_path(generator_for(0, "path", step)))
        used = set(supernet.active_parameters())
        missed_later |= bool(ever_used - used)
        before = {p: p.detach().clone() for p in supernet.parameters()}
        states = copy.deepcopy({id(p): state for p, state in optimizer.state.items()})
        weight_step(supernet, list(used), optimizer, batch_for(space, step), config, 0.01)
        for parameter, old in before.items():
            assert parameter.grad is None
            if parameter in used:
                assert not torch.equal(parameter, old)
                assert optimizer.state[parameter]
                continue
            assert torch.equal(parameter, old)
            assert_same_state(optimizer.state.get(parameter, {}), states.get(id(parameter), {}))
        ever_used |= used
        assert {p for p, state in optimizer.state.items() if state} == ever_used
    assert missed_later
    assert ever_used < set(supernet.network.parameters())


def assert_same_state(actual: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    assert actual.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(torch.as_tensor(actual[key]), torch.as_tensor(value)), key


def test_a_weight_step_is_the_step_of_its_path_alone() -> None:
    # The optimiser of a plain network of the same weights does the very same.
    space = SPACES["small-quadra"]
    supernet = build_supernet(space, seed=0).train()
    supernet.set_sample(supernet.gates.sample_path(generator_for(0, "path", 3)))
    path = nn.ModuleList(copy.deepcopy(list(supernet.active_modules())))
    network = nn.Sequential(*path).train()
    config, batch = WeightConfig(clip_norm=0.05), batch_for(space)
    results = [
        weight_step(net, weights, build_optimizer(net, config), batch, config, 0.01)
        for net, weights in (
            (supernet, supernet.active_parameters()),
            (network, list(network.parameters())),
        )
    ]
    assert results[0] == results[1]
    pairs = zip(supernet.active_parameters(), network.parameters(), strict=True)
    assert all(torch.equal(ours, plain) for ours, plain in pairs)


def test_the_gradient_of_the_path_is_clipped() -> None:
    space = SPACES["small-quadra"]
    moves = []
    for clip_norm in (1e-3, 1e-4):
        supernet = build_supernet(space, seed=0).train()
        supernet.set_sample(supernet.gates.sample_path(generator_for(0, "path", 0)))
        config = WeightConfig(optimizer="sgd", weight_decay=0.0, clip_norm=clip_norm)
        weights = supernet.active_parameters()
        before = [p.detach().clone() for p in weights]
        optimizer = build_optimizer(supernet, config)
        weight_step(supernet, weights, optimizer, batch_for(space), config, 1.0)
        pairs = zip(weights, before, strict=True)
        moves.append(math.sqrt(sum(float((p - old).square().sum().detach()) for p, old in pairs)))
    # Nesterov momentum of 0.9 takes 1.9 times the first gradient.
    assert moves == pytest.approx([1.9e-3, 1.9e-4], rel=1e-2)


def test_a_step_reports_loss_and_accuracy() -> None:
    space = SPACES["small-quadra"]
    supernet = build_supernet(space, seed=0)
    with torch.no_grad():
        head = next(module for name, module in supernet.candidates() if name.startswith("head"))
        assert isinstance(head.linear, nn.Linear)
        head.linear.weight.zero_()
        head.linear.bias.copy_(torch.tensor([0.0, 0.0, 5.0, 0.0]))
    targets = nn.functional.one_hot(torch.tensor([2, 2, 2, 0]), 4).float()
    batch = Batch(torch.randn(4, 3, 16, 16), targets)
    config = WeightConfig(label_smoothing=0.0)
    optimizer = build_optimizer(supernet, config)
    result = weight_step(supernet, supernet.active_parameters(), optimizer, batch, config, 0.1)
    right = math.log(math.exp(5) + 3) - 5
    assert result.loss == pytest.approx((3 * right + right + 5) / 4, rel=1e-5)
    assert result.accuracy == 0.75
    assert optimizer.param_groups[0]["lr"] == 0.1


# ---------------------------------------------------------------- architecture steps


def pair_sample(trainer: GateTrainer, seed: int) -> Sample:
    return trainer.gates.sample_pair(torch.Generator().manual_seed(seed))


def test_a_two_path_step_leaves_the_probabilities_of_the_others_as_they_were(
    space: SearchSpace,
) -> None:
    trainer = trainer_for(space)
    with torch.no_grad():
        noise = torch.randn(trainer.gates.alpha.shape, generator=torch.Generator())
        trainer.gates.alpha.add_(noise * trainer.gates.mask)
    for step in range(10):
        before, alpha = trainer.gates.probabilities().detach(), trainer.gates.alpha.clone()
        involved = pair_sample(trainer, step).involved
        trainer.step(batch_for(space, step), torch.Generator().manual_seed(step))
        after = trainer.gates.probabilities().detach()
        others = trainer.gates.mask & ~involved
        assert torch.equal(trainer.gates.alpha[others], alpha[others])
        torch.testing.assert_close(after[others], before[others], rtol=4e-15, atol=0)
        assert (after[involved] - before[involved]).abs().min() > 1e-5
        torch.testing.assert_close(
            (after * involved).sum(1), (before * involved).sum(1), rtol=4e-15, atol=0
        )


def test_a_full_step_moves_all_probabilities(space: SearchSpace) -> None:
    trainer = trainer_for(space, mode="full")
    before = trainer.gates.probabilities().detach()
    trainer.step(batch_for(space), torch.Generator().manual_seed(1))
    moved = (trainer.gates.probabilities().detach() - before).abs()
    assert moved[trainer.gates.mask].min() > 1e-5


def silence(supernet: Supernet) -> None:
    """Make the network's output constant, so that the loss says nothing about the gates."""
    head = next(module for name, module in supernet.candidates() if name.startswith("head"))
    assert isinstance(head.linear, nn.Linear)
    nn.init.zeros_(head.linear.weight)


@pytest.mark.parametrize(("budget_ms", "cheaper_wins"), [(1e-3, True), (1e3, False)])
def test_latency_acts_on_the_sampled_pair_only(
    space: SearchSpace, budget_ms: float, cheaper_wins: bool
) -> None:
    trainer = trainer_for(space, budget_ms=budget_ms)
    silence(trainer.supernet)
    for step in range(8):
        before, alpha = trainer.gates.probabilities().detach(), trainer.gates.alpha.clone()
        involved = pair_sample(trainer, step).involved
        trainer.step(batch_for(space, step), torch.Generator().manual_seed(step))
        after = trainer.gates.probabilities().detach()
        others = trainer.gates.mask & ~involved
        assert torch.equal(trainer.gates.alpha[others], alpha[others])
        torch.testing.assert_close(after[others], before[others], rtol=4e-15, atol=0)
        for row, info in enumerate(trainer.gates.infos):
            first, second = involved[row].nonzero().flatten().tolist()
            costs = trainer.expected.costs_ms[row]
            first_is_cheaper = info.slot is not None and bool(costs[first] < costs[second])
            winner = first if first_is_cheaper == cheaper_wins else second
            assert after[row, winner] > before[row, winner]
    assert (KEEP, SKIP) == (0, 1)


def test_in_full_mode_latency_acts_on_all_candidates(space: SearchSpace) -> None:
    trainer = trainer_for(space, mode="full", budget_ms=1e-3)
    silence(trainer.supernet)
    gradient, _ = trainer.latency_gradient(within=None)
    before = trainer.gates.alpha.detach().clone()
    trainer.step(batch_for(space), torch.Generator().manual_seed(0))
    moved = trainer.gates.alpha.detach() - before
    assert (gradient * moved)[trainer.gates.mask].max() < 0
    for row, info in enumerate(trainer.gates.infos):
        costs = [0.0, -1.0] if info.slot is None else trainer.expected.costs_ms[row].tolist()
        number = len(info.candidates)
        assert moved[row, costs.index(min(costs[:number]))] > 0
        assert moved[row, costs.index(max(costs[:number]))] < 0


@pytest.mark.parametrize("mode", ["two_path", "full"])
def test_an_architecture_step_moves_nothing_but_the_gates(space: SearchSpace, mode: str) -> None:
    trainer = trainer_for(space, mode=mode)
    supernet = trainer.supernet
    before = snapshot(supernet)
    random_state = torch.get_rng_state()
    for step in range(3):
        trainer.step(batch_for(space, step), generator_for(0, "gates", step))
    assert torch.equal(torch.get_rng_state(), random_state)
    changed = {n for n, t in snapshot(supernet).items() if not torch.equal(t, before[n])}
    assert changed == {"gates.alpha"}
    assert all(p.grad is None and p.requires_grad for p in supernet.parameters())
    assert not supernet.gates.alpha[~supernet.gates.mask].any()


@pytest.mark.parametrize("mode", ["two_path", "full"])
def test_an_architecture_step_is_a_function_of_its_generator(mode: str) -> None:
    space = SPACES["small-quadra"]
    alphas = []
    for seed in (1, 1, 2):
        trainer = trainer_for(space, mode=mode)
        trainer.step(batch_for(space), torch.Generator().manual_seed(seed))
        alphas.append(trainer.gates.alpha.detach())
    assert torch.equal(alphas[0], alphas[1])
    assert not torch.equal(alphas[0], alphas[2])


@pytest.mark.parametrize("mode", ["two_path", "full"])
def test_gates_learn_which_candidate_is_better(mode: str) -> None:
    # Two of three candidates put noise in place of what they are given.
    space = SPACES["small-quadra"]
    trainer = trainer_for(space, mode=mode)
    supernet, noise = trainer.supernet, torch.Generator()

    def ruin(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return 0.01 * output + torch.randn(output.shape, generator=noise)

    for name, candidate in supernet.candidates():
        if name.startswith("stage1_block1: quadratic_depthwise") and not name.endswith("k3"):
            candidate.register_forward_hook(ruin)
    config = WeightConfig()
    optimizer = build_optimizer(supernet, config)
    batch = batch_for(space)
    for step in range(70):
        supernet.set_sample(supernet.gates.sample_path(generator_for(0, "path", step)))
        weight_step(supernet, supernet.active_parameters(), optimizer, batch, config, 0.01)
        if step >= 30:
            trainer.step(batch, generator_for(0, "gates", step))
    assert trainer.gates.infos[0].name == "stage1_block1.slot0"
    assert trainer.gates.probabilities()[0].argmax() == 1
    assert trainer.gates.probabilities()[0, 1] > 0.6


@pytest.mark.parametrize("mode", ["two_path", "full"])
def test_a_restored_trainer_continues_as_if_nothing_had_happened(mode: str) -> None:
    space = SPACES["small-mbconv"]

    def run(trainer: GateTrainer, steps: range) -> None:
        for step in steps:
            trainer.step(batch_for(space, step), generator_for(0, "gates", step))

    straight = trainer_for(space, mode=mode)
    run(straight, range(6))
    first, second = (trainer_for(space, mode=mode, seed=seed) for seed in (0, 1))
    run(first, range(3))
    second.supernet.load_state_dict(first.supernet.state_dict())
    second.restore(copy.deepcopy(first.state()))
    run(second, range(3, 6))
    assert torch.equal(second.gates.alpha, straight.gates.alpha)
    assert second.controller == straight.controller


def test_adam_without_momentum_and_decay() -> None:
    gates = build_supernet(SPACES["small-quadra"], seed=0).gates
    optimizer = build_gate_optimizer(gates, 0.03)
    (group,) = optimizer.param_groups
    assert group["params"] == [gates.alpha]
    assert (group["lr"], group["betas"], group["eps"]) == (0.03, (0.0, 0.999), 1e-8)
    assert group["weight_decay"] == 0
    before = gates.alpha.detach().clone()
    for gradient in (torch.ones_like(before), torch.zeros_like(before)):
        gates.alpha.grad = gradient
        optimizer.step()
    torch.testing.assert_close(gates.alpha.detach(), before - 0.03, rtol=0, atol=1e-8)


@pytest.mark.parametrize("mode", ["two_path", "full"])
def test_a_space_without_decisions_can_be_stepped(mode: str) -> None:
    content = QUADRA | {
        "stages": [
            stage | {"depth": [1, 1], "slots": [{"kind": "feed_forward", "expand_ratio": [2]}]}
            for stage in QUADRA["stages"]
        ]
    }
    space = build_space(SpaceFile.model_validate(content))
    trainer = trainer_for(space, mode=mode)
    assert not trainer.gates.infos
    result = trainer.step(batch_for(space), torch.Generator())
    assert math.isfinite(result.loss)


def test_frozen_statistics_end_with_their_context() -> None:
    norm = nn.BatchNorm2d(3, momentum=0.2).train()
    x = torch.randn(4, 3, 5, 5)
    with torch.no_grad():
        expected = copy.deepcopy(norm)(x)
        before = snapshot(norm)
        with frozen_statistics([norm]):
            assert torch.equal(norm(x), expected)
        assert all(torch.equal(tensor, before[n]) for n, tensor in snapshot(norm).items())
        norm(x)
    assert not torch.equal(norm.running_mean, before["running_mean"])  # type: ignore[arg-type]
    assert int(norm.num_batches_tracked or 0) == 1
    assert norm.momentum == 0.2
