"""Candidates that share weights: each computes what its part of the weights computes alone."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

from quadranas.data.batch import Batch
from quadranas.layers.resizing import part_of
from quadranas.network.modes import batch_norms, evaluating, frozen_statistics
from quadranas.network.skeleton import build_subnet
from quadranas.network.weights import load_tensors
from quadranas.runs.config import GateConfig
from quadranas.space.search_space import SearchSpace
from quadranas.space.space_file import SpaceFile, build_space
from quadranas.supernet.budget_controller import BudgetController
from quadranas.supernet.expected_latency import ExpectedLatency
from quadranas.supernet.gate_training import GateTrainer
from quadranas.supernet.gates import SKIP
from quadranas.supernet.nested import NestedCandidate
from quadranas.supernet.self_check import check_gradients
from quadranas.supernet.supernet import Supernet, build_supernet
from tests.command_line import SMALL, call
from tests.small_supernets import BUDGET_MS, MBCONV, QUADRA, SPACES, batch_for, table_for

SLOT = {"kind": "quadratic_depthwise", "kernel_size": [3, 5, 7]}


@pytest.fixture(params=SPACES)
def space(request: pytest.FixtureRequest) -> SearchSpace:
    return SPACES[request.param]


def random_choices(supernet: Supernet, seed: int) -> dict[str, tuple[int, ...] | None]:
    sample = supernet.gates.sample_path(torch.Generator().manual_seed(seed))
    supernet.set_sample(sample)
    active = iter(sample.active.tolist())
    choices: dict[str, tuple[int, ...] | None] = {}
    for block in supernet.space.blocks:
        is_skipped = block.optional and next(active) == SKIP
        picked = [next(active) if len(slot.candidates) > 1 else 0 for slot in block.slots]
        choices[block.name] = None if is_skipped else tuple(picked)
    return choices


def trainer(supernet: Supernet, mode: str) -> GateTrainer:
    expected = ExpectedLatency(supernet.space, supernet.gates, table_for(supernet.space))
    config = GateConfig.model_validate({"mode": mode})
    return GateTrainer(supernet, expected, BudgetController(BUDGET_MS), config)


@pytest.mark.parametrize("training", [False, True])
def test_a_path_is_the_network_that_inherits_its_part(space: SearchSpace, training: bool) -> None:
    supernet = build_supernet(space, seed=0, nested=True)
    for parameter in supernet.parameters():
        if parameter.ndim == 1:  # norms and biases start with equal entries
            nn.init.normal_(parameter)
    batch = batch_for(space)
    for seed in range(6):
        architecture = space.architecture(random_choices(supernet, seed))
        network = build_subnet(architecture)
        load_tensors(network, supernet.subnet_tensors(architecture), "the supernet")
        supernet.train(training)
        network.train(training)
        expected, found = network(batch.images), supernet(batch.images)
        torch.testing.assert_close(found, expected)
        found.square().sum().backward()
        expected.square().sum().backward()
        gradients = {name: parameter.grad for name, parameter in network.named_parameters()}
        for name, gradient in shared_gradients(supernet, network).items():
            torch.testing.assert_close(gradient, gradients[name], msg=name)
        supernet.zero_grad()


def shared_gradients(supernet: Supernet, network: nn.Module) -> dict[str, torch.Tensor]:
    """The part of the shared weights' gradients that a network has; the rest must be zero."""
    shapes = {name: parameter.shape for name, parameter in network.named_parameters()}
    found = {}
    for block in supernet.network.blocks:
        for slot in supernet.slots(block):
            candidate = slot.paths[slot.route.active]
            if not isinstance(candidate, NestedCandidate):
                continue
            for weight, parameter in candidate.named_parameters():
                names = [n for n in shapes if re.fullmatch(rf"blocks\.{block}\.\w+\.{weight}", n)]
                if parameter.grad is None or len(names) != 1:
                    continue  # of a skipped block, or a weight that both slots have
                found[names[0]] = part_of(parameter.grad, shapes[names[0]])
                whole = float(parameter.grad.abs().sum())
                assert float(found[names[0]].abs().sum()) == pytest.approx(whole, rel=1e-3)
    assert found
    return found


def test_only_the_parts_on_the_path_have_gradients_to_add_up(space: SearchSpace) -> None:
    supernet = build_supernet(space, seed=0, nested=True)
    architecture = space.architecture(random_choices(supernet, 1))
    supernet(batch_for(space).images).square().sum().backward()
    parts = supernet.active_parts()
    inherited = build_subnet(architecture).parameters()
    assert sum(shape.numel() for shape in parts.values()) == sum(p.numel() for p in inherited)
    smaller = 0
    for parameter, shape in parts.items():
        assert parameter.grad is not None
        smaller += shape != parameter.shape
        part_of(parameter.grad, shape).zero_()
        assert not parameter.grad.any()
    assert smaller


def test_a_kernel_is_the_centre_and_an_expansion_the_first_units() -> None:
    kernel = torch.arange(25.0).view(1, 1, 5, 5)
    assert part_of(kernel, torch.Size((1, 1, 3, 3))).flatten().tolist() == [
        *(6, 7, 8, 11, 12, 13, 16, 17, 18),
    ]
    hidden = torch.arange(12.0).view(4, 3)
    assert part_of(hidden, torch.Size((2, 3))).flatten().tolist() == list(range(6))


@pytest.mark.parametrize("mode", ["two_path", "full"])
def test_gradients_reach_every_weight_and_every_gate(space: SearchSpace, mode: str) -> None:
    supernet = build_supernet(space, seed=0, nested=True).train()
    before = {name: tensor.clone() for name, tensor in supernet.state_dict().items()}
    check_gradients(supernet, trainer(supernet, mode), batch_for(space))
    for name, tensor in supernet.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_kernels_wider_than_the_image_reaches_are_the_same_and_pass_the_check() -> None:
    """At 2x2 pixels a kernel of 5 has no entry in use that one of 3 lacks."""
    content = {
        **QUADRA,
        "resolution": 8,
        "stages": [QUADRA["stages"][0] | {"slots": [SLOT]}, QUADRA["stages"][1]],
    }
    space = build_space(SpaceFile.model_validate(content))
    supernet = build_supernet(space, seed=0, nested=True).train()
    check_gradients(supernet, trainer(supernet, "two_path"), batch_for(space))


def test_averages_of_batch_norm_are_frozen_and_tracked_as_in_the_largest_candidate() -> None:
    supernet = build_supernet(SPACES["small-mbconv"], seed=0, nested=True).train()
    batch = batch_for(supernet.space)
    norms = batch_norms(supernet)
    before = [norm.running_mean.clone() for norm in norms if norm.running_mean is not None]

    def changed() -> bool:
        now = [norm.running_mean for norm in norms if norm.running_mean is not None]
        return not all(torch.equal(a, b) for a, b in zip(before, now, strict=True))

    random_choices(supernet, 0)
    with frozen_statistics(norms):
        supernet(batch.images)
    assert not changed()
    with evaluating(supernet):
        supernet(batch.images)
    assert not changed()
    supernet(batch.images)
    assert changed()


def test_an_architecture_step_finds_the_gradient_in_the_gates_of_shared_weights() -> None:
    """The gradient in a gate is the inner product of a candidate's output and its gradient."""
    space = SPACES["small-quadra"]
    supernet = build_supernet(space, seed=0, nested=True).double().train()
    batch = batch_for(space)
    batch = Batch(batch.images.double(), batch.targets.double())
    sample = supernet.gates.sample_pair(torch.Generator().manual_seed(1))
    found = {}
    for recompute in (False, True):
        supernet.set_sample(sample, recompute=recompute)
        supernet(batch.images).square().sum().backward()
        found[recompute], _ = supernet.path_gradients()
    torch.testing.assert_close(found[False], found[True])
    assert found[False].abs().sum() > 0


def test_candidates_that_are_no_parts_of_a_larger_one_have_weights_of_their_own() -> None:
    """With expansion 1 there is no convolution that expands: its slot is not nested."""
    stage = {"stride": 2, "depth": [1, 2]}
    slot = {"kind": "mbconv", "kernel_size": [3, 5], "expand_ratio": [1, 3]}
    content = {**MBCONV, "stages": [*MBCONV["stages"][:2], stage | {"slots": [slot]}]}
    space = build_space(SpaceFile.model_validate(content))
    supernet = build_supernet(space, seed=0, nested=True).train()
    for stage_name, is_nested in (("stage2", True), ("stage3", False)):
        (mixed,) = supernet.slots(f"{stage_name}_block1")
        assert mixed.is_nested == is_nested
    check_gradients(supernet, trainer(supernet, "two_path"), batch_for(space))


def test_a_search_with_nested_weights_ends_and_derives(
    tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("c.yaml").write_text(SMALL.format(pictures=pictures), encoding="utf-8")
    search = ("search", "--space", "toy", "--device", "vpu", "--budget", "1ms")
    outcome = call(*search, "--config", "c.yaml", "--output", "run")
    assert outcome.code == 0, outcome.err
    derived = call("derive", "run", "--device", "vpu", "--budget", "1ms", "--output", "again")
    assert derived.code == 0, derived.err
    inherited, again = Path("run/inherited.safetensors"), Path("again/subnet.safetensors")
    assert inherited.read_bytes() == again.read_bytes()
