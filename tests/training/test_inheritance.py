"""Rates of inherited and new weights, the warm-up of quadratic factors, and frozen stages."""

from typing import Any

import pytest
import torch
from torch import Tensor

from quadranas.acceleration.engine import Engine
from quadranas.conversion.own_pretrained import own_pretrained
from quadranas.conversion.own_space import own_space
from quadranas.data.augmentation import Augmenter
from quadranas.data.dataset import load_dataset
from quadranas.network.skeleton import Network, build_subnet
from quadranas.runs.config import PretrainedConfig, WeightConfig
from quadranas.space.cost import count_macs
from quadranas.space.matching import match_stages
from quadranas.space.search_space import SearchSpace
from quadranas.supernet.embedding import embed, largest_choices
from quadranas.supernet.evaluation import SubnetEvaluator
from quadranas.supernet.supernet import Supernet, build_supernet
from quadranas.training.inheritance import Inheritance
from quadranas.training.initial_weights import InitialWeights
from quadranas.training.optimizers import build_optimizer
from quadranas.training.steps import weight_step
from tests.own_models import SIZE, build
from tests.small_supernets import SPACES, batch_for

QUADRA, MBCONV = SPACES["small-quadra"], SPACES["small-mbconv"]
FACTORS = ("conv.a.weight", "conv.a.bias", "conv.b.weight", "conv.b.bias")
NEW = frozenset(f"blocks.stage1_block1.quadratic_depthwise.{name}" for name in FACTORS)


def inherited(
    space: SearchSpace, *, nested: bool = False, uses_head: bool = True, **config: Any
) -> tuple[Supernet, Inheritance]:
    """A supernet from a network that lacks the second block of the first searched stage."""
    optional = next(block.name for block in space.blocks if block.optional)
    choices = {**largest_choices(space), optional: None}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        network = build_subnet(space.architecture(choices))
    assert network.architecture is not None
    supernet = build_supernet(space, seed=0, nested=nested)
    matches = match_stages(space, network.architecture, "weights")
    embedding = embed(supernet, matches, network.state_dict(), uses_head=uses_head)
    new = NEW if space is QUADRA else frozenset()
    return supernet, Inheritance(embedding, new, PretrainedConfig(**config))


def rates(optimizer: torch.optim.Optimizer) -> dict[int, float]:
    return {
        id(parameter): group["lr_factor"]
        for group in optimizer.param_groups
        for parameter in group["params"]
    }


@pytest.mark.parametrize("nested", [False, True], ids=["independent", "nested"])
def test_every_weight_has_the_rate_of_its_origin(nested: bool) -> None:
    config = {"rate": 0.1, "quadratic_rate": 0.5}
    supernet, inheritance = inherited(QUADRA, nested=nested, uses_head=False, **config)
    found = rates(inheritance.supernet_optimizer(supernet, WeightConfig()))
    parameters = dict(supernet.network.named_parameters())
    assert set(found) == {id(parameter) for parameter in parameters.values()}
    for name, parameter in parameters.items():
        expected = 0.1
        if ".stage1_block2." in name or (".head." in name and ".linear." in name):
            expected = 1.0
        elif ".stage1_block1." in name and (".a." in name or ".b." in name):
            expected = 0.5
        assert found[id(parameter)] == expected, name
    network = build_subnet(QUADRA.extreme(count_macs, largest=True))
    found = rates(inheritance.network_optimizer(network, WeightConfig()))
    for name, parameter in network.named_parameters():
        expected = 0.1
        if ".stage1_block2." in name or name.startswith("blocks.head.norm_head.linear."):
            expected = 1.0
        elif name in NEW:
            expected = 0.5
        assert found[id(parameter)] == expected, name


def test_quadratic_terms_of_ones_own_model_have_their_rate() -> None:
    where = {"blocks.0": ["hidden"], "blocks.1.dwconv": ["quadratic"], "head": ["adapted"]}
    made = own_space(
        build("convnext"), torch.zeros(1, 3, SIZE, SIZE), where, name="mine", source="test"
    )
    space = made.space()
    dataset = load_dataset(None, resolution=SIZE)
    supernet = build_supernet(space, seed=0)
    initial = InitialWeights.of(own_pretrained(space), space, dataset)
    inheritance = initial.fill(supernet, PretrainedConfig(rate=0.1, quadratic_rate=0.5))
    note = initial.note(supernet, inheritance.embedding, is_teacher=False)
    assert note.deviations == ()
    assert note.max_difference is not None
    assert [part.part for part in note.parts] == ["blocks.0", "blocks.1.dwconv", "head"]
    network = build_subnet(space.extreme(lambda op: op.own.macs if op.own else 0, largest=True))
    for optimizer, parameters in (
        (inheritance.supernet_optimizer(supernet, WeightConfig()), supernet.network),
        (inheritance.network_optimizer(network, WeightConfig()), network),
    ):
        found = rates(optimizer)
        assert set(found) == {id(p) for p in parameters.parameters()}
        names = {id(p): name for name, p in parameters.named_parameters()}
        factors = {names[key] for key, rate in found.items() if rate == 0.5}
        assert len(factors) == 4 + 3
        assert all("dwconv" in name or "head" in name for name in factors)
        assert set(found.values()) == {0.1, 0.5}


def step(supernet: Supernet, optimizer: torch.optim.Optimizer, weights: WeightConfig) -> None:
    supernet.set_choices(largest_choices(supernet.space))
    parameters = supernet.active_parameters()
    weight_step(supernet.train(), parameters, optimizer, batch_for(supernet.space), weights, 0.1)


def moves(supernet: Supernet, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """How far each weight moves in a step of SGD."""
    before = {n: p.detach().clone() for n, p in supernet.network.named_parameters()}
    step(supernet, optimizer, WeightConfig(optimizer="sgd", weight_decay=0))
    return {n: p.detach() - before[n] for n, p in supernet.network.named_parameters()}


def test_a_step_moves_inherited_weights_less() -> None:
    weights = WeightConfig(optimizer="sgd", weight_decay=0)
    supernet, inheritance = inherited(QUADRA, rate=0.01, quadratic_rate=0.25)
    slow = moves(supernet, inheritance.supernet_optimizer(supernet, weights))
    supernet, _ = inherited(QUADRA)
    full = moves(supernet, build_optimizer(supernet, weights))
    for name, factor in (
        ("blocks.stage1_block2.slots.1.candidates.2.gamma", 1.0),
        ("blocks.head.slots.0.candidates.0.linear.weight", 0.01),
        ("blocks.stage1_block1.slots.0.candidates.2.conv.a.weight", 0.25),
        ("blocks.stage1_block1.slots.0.candidates.2.conv.c.weight", 0.01),
    ):
        assert full[name].any(), name
        torch.testing.assert_close(slow[name], factor * full[name], rtol=1e-3, atol=1e-7)


def test_the_rate_of_quadratic_factors_rises() -> None:
    supernet, inheritance = inherited(QUADRA, rate=0.1, quadratic_rate=0.4, quadratic_warmup=0.3)
    optimizer = inheritance.supernet_optimizer(supernet, WeightConfig())
    slot = supernet.slots("stage1_block1")[0]
    factor = next(p for n, p in slot.named_parameters() if n.endswith("conv.a.weight"))
    other = next(p for n, p in slot.named_parameters() if n.endswith("conv.c.weight"))
    seen = []
    for number in range(10):
        inheritance.warm_up(optimizer, number, 10)
        found = rates(optimizer)
        seen.append(found[id(factor)])
        assert found[id(other)] == 0.1
    assert seen == pytest.approx([0.1, 0.2, 0.3] + [0.4] * 7)


@pytest.mark.parametrize("nested", [False, True], ids=["independent", "nested"])
def test_frozen_stages_stay_as_they_are(nested: bool) -> None:
    supernet, inheritance = inherited(MBCONV, nested=nested, frozen_stages=2)
    inheritance.freeze(supernet.network)
    optimizer = inheritance.supernet_optimizer(supernet, WeightConfig())
    before = {name: tensor.clone() for name, tensor in supernet.network.state_dict().items()}
    for _ in range(2):
        step(supernet, optimizer, WeightConfig())
    dataset = load_dataset(None, resolution=MBCONV.resolution)
    chosen = torch.arange(32)
    evaluator = SubnetEvaluator(
        *(supernet, dataset.train, Augmenter.of(dataset), Engine()),
        held_out=chosen,
        trained_on=chosen,
    )
    evaluator.calibrate(largest_choices(MBCONV))
    for name, tensor in supernet.network.state_dict().items():
        is_frozen = name.startswith(("blocks.stage1_", "blocks.stage2_"))
        if is_frozen:
            assert torch.equal(tensor, before[name]), name
    moved = {n for n, t in supernet.network.state_dict().items() if not torch.equal(t, before[n])}
    assert any("stage3" in name and "running_mean" in name for name in moved)
    assert any("stage3" in name and "weight" in name for name in moved)
    network = build_subnet(MBCONV.extreme(count_macs, largest=True))
    inheritance.freeze(network)
    check_modes(network.train())
    check_modes(network.eval().train())


def check_modes(network: Network) -> None:
    for name, block in network.blocks.items():
        is_frozen = name.startswith(("stage1_", "stage2_"))
        assert all(module.training is not is_frozen for module in block.modules()), name
        assert all(p.requires_grad is not is_frozen for p in block.parameters()), name
