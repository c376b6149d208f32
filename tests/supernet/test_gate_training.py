"""Architecture steps: which probabilities move, by the task and by the latency."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from quadranas.runs.config import WeightConfig
from quadranas.seeds import generator_for
from quadranas.space.search_space import SearchSpace
from quadranas.space.space_file import SpaceFile, build_space
from quadranas.supernet.gate_training import GateTrainer, build_gate_optimizer
from quadranas.supernet.gates import KEEP, SKIP, Sample
from quadranas.supernet.supernet import Supernet, build_supernet
from quadranas.training.optimizers import build_optimizer
from quadranas.training.steps import weight_step
from tests.networks import state_of
from tests.small_supernets import QUADRA, SPACES, batch_for, trainer_for


@pytest.fixture(params=SPACES)
def space(request: pytest.FixtureRequest) -> SearchSpace:
    return SPACES[request.param]


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
    ((gradient, _),) = trainer.latency_gradients(within=None)
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
    before = state_of(supernet)
    random_state = torch.get_rng_state()
    for step in range(3):
        trainer.step(batch_for(space, step), generator_for(0, "gates", step))
    assert torch.equal(torch.get_rng_state(), random_state)
    changed = {n for n, t in state_of(supernet).items() if not torch.equal(t, before[n])}
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
