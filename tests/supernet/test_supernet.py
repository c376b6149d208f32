"""The supernet: what runs, what its gates find out, and what a subnet inherits."""

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from quadranas.network.modes import frozen
from quadranas.network.skeleton import build_subnet
from quadranas.network.weights import load_tensors
from quadranas.space.search_space import SKIPPED, SearchSpace
from quadranas.space.space_file import SpaceFile, build_space, load_space
from quadranas.supernet.gates import KEEP, SKIP, Sample
from quadranas.supernet.supernet import Supernet, build_supernet

Scrambler = Callable[..., nn.Module]
Choice = tuple[int, ...] | None

TOY = load_space("toy")

TRIPLES: dict[str, Any] = {
    "name": "triples",
    "resolution": 16,
    "num_classes": 4,
    "widths": [6],
    "stages": [
        {
            "entry": {"kind": "patch_stem", "kernel_size": 4, "stride": 4},
            "depth": [0, 1],
            "slots": [
                {"kind": "quadratic_depthwise", "kernel_size": [1, 3, 5]},
                {"kind": "feed_forward", "expand_ratio": [1, 2]},
            ],
        },
    ],
    "head": "norm_head",
}
"""Three gates: a depth gate, one of three candidates and one of two."""

MBCONV: dict[str, Any] = {
    "name": "small-mbconv",
    "resolution": 16,
    "num_classes": 4,
    "widths": [6, 4, 6, 8, 12],
    "stages": [
        {"stride": 2, "depth": [1, 1], "slots": [{"kind": "conv_bn", "kernel_size": [3]}]},
        {"depth": [1, 1], "slots": [{"kind": "mbconv", "kernel_size": [3]}]},
        *(
            {
                "stride": 2,
                "depth": [1, 2],
                "slots": [{"kind": "mbconv", "kernel_size": [3, 5], "expand_ratio": [2, 3]}],
            }
            for _ in range(2)
        ),
        {"depth": [1, 1], "slots": [{"kind": "conv_bn", "kernel_size": [1]}]},
    ],
    "head": "linear_head",
}
"""Inverted bottlenecks with BatchNorm, few and narrow."""


def small(content: Mapping[str, Any]) -> SearchSpace:
    return build_space(SpaceFile.model_validate(content))


def batch_of(space: SearchSpace, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    shape = (4, 3, space.resolution, space.resolution)
    images = torch.randn(shape, generator=generator, dtype=dtype)
    targets = torch.rand(4, space.num_classes, generator=generator, dtype=dtype)
    return images, targets / targets.sum(1, keepdim=True)


def count_calls(supernet: Supernet) -> Counter[nn.Module]:
    """Counts passes through every candidate from now on."""
    calls: Counter[nn.Module] = Counter()

    def hook(module: nn.Module, *_: object) -> None:
        calls[module] += 1

    for _, candidate in supernet.candidates():
        candidate.register_forward_hook(hook)
    return calls


# ---------------------------------------------------------------- which candidates run


@pytest.mark.parametrize("content", [TRIPLES, MBCONV], ids=lambda content: content["name"])
def test_a_sampled_path_runs_alone_and_alone_gets_gradients(content: dict[str, Any]) -> None:
    space = small(content)
    supernet = build_supernet(space, seed=0)
    calls = count_calls(supernet)
    images, targets = batch_of(space)
    rows = {(info.block, info.slot): row for row, info in enumerate(supernet.gates.infos)}
    seen = set()
    for seed in range(40):
        sample = supernet.gates.sample_path(torch.Generator().manual_seed(seed))
        active = sample.active.tolist()
        expected = []
        candidates = (candidate for _, candidate in supernet.candidates())
        for block in space.blocks:
            depth = rows.get((block.name, None))
            for index, slot in enumerate(block.slots):
                modules = list(itertools.islice(candidates, len(slot.candidates)))
                row = rows.get((block.name, index))
                if depth is None or active[depth] == KEEP:
                    expected.append(modules[0 if row is None else active[row]])
        supernet.set_sample(sample)
        assert list(supernet.active_modules()) == expected
        calls.clear()
        functional.cross_entropy(supernet(images), targets).backward()
        assert calls == Counter(expected)
        used = {parameter for module in expected for parameter in module.parameters()}
        assert set(supernet.active_parameters()) == used
        with_gradient = {p for p in supernet.parameters() if p.grad is not None}
        assert with_gradient == used
        supernet.zero_grad()
        seen.update(expected)
    assert len(seen) == sum(1 for _ in supernet.candidates())


@pytest.mark.parametrize("recompute", [False, True])
def test_an_architecture_step_runs_the_involved_once_each(recompute: bool) -> None:
    supernet = build_supernet(small(TRIPLES), seed=0)
    calls = count_calls(supernet)
    images, targets = batch_of(supernet.space)
    involved = torch.tensor([[True, True, False], [True, False, True], [True, True, False]])
    supernet.set_sample(Sample(torch.tensor([KEEP, 2, 0]), involved), recompute=recompute)
    loss = functional.cross_entropy(supernet(images), targets)
    entry, k1, k3, k5, e1, e2, head = (candidate for _, candidate in supernet.candidates())
    on_path = Counter([entry, k5, e1, head])
    assert calls == (on_path if recompute else on_path + Counter([k1, e2]))
    loss.backward()
    assert calls == on_path + Counter([k1, e2])
    assert k3 not in calls


def test_candidates_hold_every_weight() -> None:
    supernet = build_supernet(TOY, seed=0)
    names = [name for name, _ in supernet.candidates()]
    assert len(set(names)) == len(names) == 2 * 4 * 2 + 3
    assert names[3] == "stage1_block1: feed_forward 8->8 r8 e2"
    weights = [p for _, candidate in supernet.candidates() for p in candidate.parameters()]
    assert {id(p) for p in weights} == {id(p) for p in supernet.network.parameters()}


# ---------------------------------------------------------------- dL/dg


def gradients_by_autograd(
    supernet: Supernet, sample: Sample, images: Tensor, targets: Tensor
) -> Tensor:
    """dL/dg with a variable g, 1 for the active and 0 for others, before every involved path."""
    gates = supernet.gates
    rows = {(info.block, info.slot): row for row, info in enumerate(gates.infos)}
    g = functional.one_hot(sample.active, gates.mask.shape[1]).double().requires_grad_()
    candidates = (candidate for _, candidate in supernet.candidates())
    x = images
    for block in supernet.space.blocks:
        y = x
        for index, slot in enumerate(block.slots):
            modules = list(itertools.islice(candidates, len(slot.candidates)))
            row = rows.get((block.name, index))
            if row is None:
                y = modules[0](y)
                continue
            involved = sample.involved[row].nonzero().flatten().tolist()
            y = torch.stack([g[row, j] * modules[j](y) for j in involved]).sum(0)
        depth = rows.get((block.name, None))
        x = y if depth is None else g[depth, KEEP] * y + g[depth, SKIP] * x
    (gradient,) = torch.autograd.grad(functional.cross_entropy(x, targets), g)
    return gradient * sample.involved


def gradients_by_gates(
    supernet: Supernet, sample: Sample, images: Tensor, targets: Tensor, *, recompute: bool
) -> tuple[Tensor, Tensor]:
    supernet.set_sample(sample, recompute=recompute)
    with frozen(supernet.active_parameters()):
        functional.cross_entropy(supernet(images), targets).backward()
    return supernet.path_gradients()


@pytest.mark.parametrize(
    "space", [TOY, small(TRIPLES), small(MBCONV)], ids=lambda space: str(space.name)
)
@pytest.mark.parametrize("draw", ["sample_pair", "sample_full"])
def test_path_gradients_are_those_of_explicit_gates(
    space: SearchSpace, draw: str, scramble: Scrambler
) -> None:
    supernet = build_supernet(space, seed=1).double()
    scramble(supernet.network)
    images, targets = batch_of(space, torch.float64)
    gates = supernet.gates
    depth = {info.block: row for row, info in enumerate(gates.infos) if info.slot is None}
    skipped = set()
    for seed in range(8):
        sample = getattr(gates, draw)(torch.Generator().manual_seed(seed))
        expected = gradients_by_autograd(supernet, sample, images, targets)
        stored, reached = gradients_by_gates(supernet, sample, images, targets, recompute=False)
        torch.testing.assert_close(stored, expected, rtol=1e-9, atol=1e-12)
        recomputed = gradients_by_gates(supernet, sample, images, targets, recompute=True)
        torch.testing.assert_close(recomputed, (stored, reached), rtol=1e-12, atol=1e-14)
        for row, info in enumerate(gates.infos):
            inside = info.slot is not None and info.block in depth
            if inside and sample.active[depth[info.block]] == SKIP:
                assert not reached[row].any()
                skipped.add(row)
            else:
                assert torch.equal(reached[row], sample.involved[row])
                assert stored[row][sample.involved[row]].abs().min() > 0
        assert all(parameter.grad is None for parameter in supernet.parameters())
        assert all(parameter.requires_grad for parameter in supernet.parameters())
    assert skipped, "no draw has skipped a block"


def test_gradients_of_an_earlier_step_are_forgotten() -> None:
    supernet = build_supernet(TOY, seed=0)
    images, targets = batch_of(TOY)
    sample = supernet.gates.sample_pair(torch.Generator())
    gradients_by_gates(supernet, sample, images, targets, recompute=False)
    supernet.set_sample(sample)
    _, reached = supernet.path_gradients()
    assert not reached.any()
    gradients_by_gates(supernet, sample, images, targets, recompute=False)
    supernet.set_choices(every_block(TOY, 0))
    _, reached = supernet.path_gradients()
    assert not reached.any()


def pair_draws(p: list[float]) -> Iterator[tuple[tuple[int, int], int, float]]:
    """Every pair of candidates, which of them is active, and how probable that is."""
    for i, j in itertools.combinations(range(len(p)), 2):
        pair = p[i] * p[j] / (1 - p[i]) + p[j] * p[i] / (1 - p[j])
        for active in (i, j):
            yield (i, j), active, pair * p[active] / (p[i] + p[j])


def test_expected_task_gradient_by_enumeration_and_by_monte_carlo() -> None:
    space = small(TRIPLES)
    supernet = build_supernet(space, seed=2).double()
    gates = supernet.gates
    with torch.no_grad():
        gates.alpha.normal_(generator=torch.Generator().manual_seed(3))
    images, targets = batch_of(space, torch.float64)
    rows = zip(gates.probabilities().tolist(), gates.infos, strict=True)
    draws = [list(pair_draws(p[: len(info.candidates)])) for p, info in rows]
    table: dict[tuple[Any, ...], tuple[float, Tensor]] = {}
    for combination in itertools.product(*draws):
        involved = torch.zeros_like(gates.mask)
        for row, (pair, _, _) in enumerate(combination):
            involved[row, list(pair)] = True
        active = torch.tensor([active for _, active, _ in combination])
        sample = Sample(active, involved)
        found = gradients_by_gates(supernet, sample, images, targets, recompute=False)
        chance = math.prod(chance for _, _, chance in combination)
        table[key_of(sample)] = (chance, gates.task_gradient(*found))
    assert sum(chance for chance, _ in table.values()) == pytest.approx(1)
    mean = torch.stack([chance * gradient for chance, gradient in table.values()]).sum(0)

    number, generator = 4000, torch.Generator().manual_seed(4)
    drawn = torch.stack([table[key_of(gates.sample_pair(generator))][1] for _ in range(number)])
    error = drawn.std(0) / number**0.5
    assert (error[gates.mask] > 0).all()
    assert ((drawn.mean(0) - mean).abs() <= 4 * error).all()


def key_of(sample: Sample) -> tuple[Any, ...]:
    return (*sample.active.tolist(), *sample.involved.flatten().tolist())


# ---------------------------------------------------------------- one architecture of the supernet


def every_block(space: SearchSpace, index: int) -> dict[str, Choice]:
    return {
        block.name: tuple(min(index, len(slot.candidates) - 1) for slot in block.slots)
        for block in space.blocks
    }


def choices_of(space: SearchSpace) -> st.SearchStrategy[dict[str, Choice]]:
    options: dict[str, st.SearchStrategy[Choice]] = {}
    for block in space.blocks:
        candidates = [st.integers(0, len(slot.candidates) - 1) for slot in block.slots]
        kept = st.tuples(*candidates)
        options[block.name] = st.one_of(st.just(SKIPPED), kept) if block.optional else kept
    return st.fixed_dictionaries(options)


SMALL = (TOY, small(MBCONV))


@pytest.fixture(scope="module")
def supernets(scramble: Scrambler) -> list[Supernet]:
    built = [build_supernet(space, seed=0) for space in SMALL]
    for supernet in built:
        scramble(supernet.network)
    return built


@settings(max_examples=40)
@given(data=st.data(), number=st.integers(0, 1), training=st.booleans())
def test_a_subnet_computes_what_the_supernet_computes_on_its_path(
    supernets: list[Supernet], data: st.DataObject, number: int, training: bool
) -> None:
    supernet, space = supernets[number], SMALL[number]
    choices = data.draw(choices_of(space))
    architecture = space.architecture(choices)
    subnet = build_subnet(architecture)
    inherited = supernet.subnet_tensors(architecture)
    load_tensors(subnet, inherited, "the supernet")
    images, targets = batch_of(space)

    supernet.train(training)
    subnet.train(training)
    supernet.set_choices(choices)
    outputs = [network(images) for network in (supernet, subnet)]
    assert torch.equal(*outputs)
    gradients = [
        torch.autograd.grad(functional.cross_entropy(output, targets), list(weights))
        for output, weights in zip(
            outputs, (supernet.active_parameters(), subnet.parameters()), strict=True
        )
    ]
    assert all(map(torch.equal, *gradients))
    # Statistics of the batch have gone into both alike; what was inherited is a copy.
    after = subnet.state_dict()
    for name, tensor in supernet.subnet_tensors(architecture).items():
        assert torch.equal(tensor, after[name])
        if training and name.endswith("running_mean"):
            assert not torch.equal(tensor, inherited[name])


def test_building_is_replayable_and_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    first, same, other = (build_supernet(TOY, seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.equal(first["gates.alpha"], other["gates.alpha"])
    weight = "network.blocks.head.slots.0.candidates.0.linear.weight"
    assert not torch.equal(first[weight], other[weight])
