"""Lowering passes: the same function, the same network left behind, and what each claims to do."""

import copy
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import permutations

import pytest
import torch
from torch import Tensor, nn

from quadranas.backends.lowering import (
    PASSES,
    ConvolutionalFeedForward,
    DecomposedNorm,
    JoinedBranches,
    lower,
)
from quadranas.backends.registry import backend_class
from quadranas.latency.runtimes import RUNTIMES
from quadranas.layers import OPS, build_op
from quadranas.layers.quadranet import ChannelNorm, FeedForward
from quadranas.layers.quadratic import QuadraticConv2d
from quadranas.layers.replacement import changed
from quadranas.network.skeleton import build_subnet
from quadranas.space.architecture import LayerChange
from quadranas.space.operation import OpSpec
from quadranas.space.space_file import load_space, space_files

Scrambler = Callable[..., nn.Module]
Case = tuple[nn.Module, tuple[int, ...]]

LISTS = [(), *((name,) for name in PASSES), *permutations(PASSES, 2), tuple(PASSES)]
"""Every pass by itself, any two in both orders, and all of them."""


def conv_and_norm() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU()),
        *(nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.BatchNorm2d(6)),
        *(nn.Flatten(), nn.Linear(6 * 64, 5)),
    )


def converted() -> nn.Module:
    """A network of other layers, one of them made quadratic and one adapted."""
    changes = [
        LayerChange(name="3", kind="quadratic", form="hadamard"),
        LayerChange(name="6", kind="adapted", rank=2),
        LayerChange(name="0", kind="adapted", rank=1),
    ]
    return changed(conv_and_norm(), changes)


def quadratic_with_norms() -> nn.Module:
    return changed(
        conv_and_norm(), [LayerChange(name="3", kind="quadratic", form="hadamard", norm=True)]
    )


class Norms(nn.Module):
    """LayerNorm as other networks use it."""

    def __init__(self) -> None:
        super().__init__()
        self.plain = nn.LayerNorm(8, elementwise_affine=False)
        self.unbiased = nn.LayerNorm(8, bias=False, eps=1e-2)
        self.image = nn.LayerNorm((3, 8, 8))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.image(self.unbiased(x)) + self.plain(x)
        return out


def depthwise(form: str) -> nn.Module:
    return QuadraticConv2d(6, 6, 3, 2, 2, dilation=2, groups=6, bias=False, form=form)


OTHERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "convolutions": (conv_and_norm, (2, 3, 8, 8)),
    "converted": (converted, (2, 3, 8, 8)),
    "untracked norm": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False), nn.ReLU()
        ),
        (2, 3, 4, 4),
    ),
    "norms in branches": (quadratic_with_norms, (2, 3, 8, 8)),
    "layer norms": (Norms, (2, 3, 8, 8)),
    "a bare norm": (lambda: nn.LayerNorm(8), (2, 3, 8)),
    "dilated hadamard": (lambda: depthwise("hadamard"), (2, 6, 9, 9)),
    "bilinear": (lambda: depthwise("bilinear"), (2, 6, 9, 9)),
    "wide hadamard": (lambda: QuadraticConv2d(6, 12, 3, groups=6), (2, 6, 9, 9)),
}


def specs() -> list[OpSpec]:
    """Every operation of the shipped spaces that differs in more than its size."""
    found: dict[OpSpec, None] = {}
    for space in space_files():
        for spec in load_space(space).specs():
            sizes = {
                "in_channels": 3 if spec.in_channels == 3 else 12,
                "out_channels": 12 if spec.in_channels == spec.out_channels else 8,
                "resolution": 4 * spec.stride,
            }
            found[OpSpec.model_validate(spec.model_dump() | sizes)] = None
    return list(found)


def without_sizes(examples: Sequence[OpSpec]) -> list[OpSpec]:
    """Those that differ in more than kernel size and number of hidden channels."""
    found: dict[tuple[object, ...], OpSpec] = {}
    for spec in examples:
        key = (spec.kind, spec.stride, spec.in_channels == spec.out_channels)
        found.setdefault((*key, spec.expand_ratio == 1, spec.num_quadratic), spec)
    return list(found.values())


def case_of(spec: OpSpec) -> Case:
    return build_op(spec), (2, spec.in_channels, spec.resolution, spec.resolution)


def assert_the_same(network: nn.Module, shape: Sequence[int], names: Sequence[str]) -> None:
    network = network.double().eval()
    before = copy.deepcopy(network.state_dict())
    described = str(network)
    images = torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = network(images)
        lowered = lower(network, names)
        assert not lowered.training
        torch.testing.assert_close(lowered(images), expected, rtol=1e-10, atol=1e-10)
        assert torch.equal(network(images), expected)
    assert str(network) == described
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name]), name
        tensor.zero_()  # nothing of it is shared
    with torch.no_grad():
        torch.testing.assert_close(lowered(images), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("names", LISTS, ids=lambda names: "+".join(names) or "none")
def test_operations_compute_the_same(scramble: Scrambler, names: tuple[str, ...]) -> None:
    examples = specs()
    if len(names) == 2:  # each of the two has had all examples by itself
        examples = without_sizes(examples)
    assert {spec.kind for spec in examples} == set(OPS)
    for spec in examples:
        op, shape = case_of(spec)
        assert_the_same(scramble(op), shape, names)


@pytest.mark.parametrize("names", LISTS, ids=lambda names: "+".join(names) or "none")
def test_other_networks_compute_the_same(scramble: Scrambler, names: tuple[str, ...]) -> None:
    for make, shape in OTHERS.values():
        assert_the_same(scramble(make()), shape, names)


@pytest.mark.parametrize("space", ["toy", "quadranet-mobile"])
def test_networks_compute_the_same(scramble: Scrambler, space: str) -> None:
    choices = load_space(space).extreme(lambda spec: spec.kernel_size, largest=False)
    network = scramble(build_subnet(choices.adapted(resolution=32)))
    assert_the_same(network, (1, 3, 32, 32), tuple(PASSES))


def kinds(network: nn.Module) -> Counter[type]:
    return Counter(type(module) for module in network.modules())


def test_each_pass_does_what_it_says(scramble: Scrambler) -> None:
    mbconv = load_space("mbconv-mobile")
    folded = build_subnet(mbconv.extreme(lambda spec: spec.kernel_size, largest=False))
    before, after = kinds(folded), kinds(lower(folded, ["fold_batch_norm"]))
    assert before[nn.BatchNorm2d] > 20
    assert after[nn.BatchNorm2d] == 0
    assert after[nn.Conv2d] == before[nn.Conv2d]

    quadratic = nn.Sequential(depthwise("hadamard"), nn.BatchNorm2d(6), nn.ReLU6())
    assert kinds(lower(quadratic, ["fold_batch_norm"]))[nn.BatchNorm2d] == 0

    toy = load_space("toy").extreme(lambda spec: spec.kernel_size, largest=True)
    network = build_subnet(toy)
    before = kinds(network)
    norms = before[nn.LayerNorm] + before[ChannelNorm]
    assert min(norms, before[FeedForward], before[QuadraticConv2d]) >= 4
    after = kinds(lower(network, ["decompose_layer_norm"]))
    assert after[DecomposedNorm] == norms
    assert after[nn.LayerNorm] + after[ChannelNorm] == 0
    after = kinds(lower(network, ["linear_as_convolution"]))
    assert after[ConvolutionalFeedForward] == before[FeedForward]
    assert after[FeedForward] == 0
    assert before[nn.Linear] - after[nn.Linear] == 2 * before[FeedForward]
    assert after[nn.LayerNorm] + after[ChannelNorm] == norms
    after = kinds(lower(network, ["join_branches"]))
    assert after[JoinedBranches] == before[QuadraticConv2d]
    assert before[nn.Conv2d] - after[nn.Conv2d] == 2 * before[QuadraticConv2d]


def test_what_a_pass_cannot_do_is_left_as_it_is() -> None:
    for name in ("bilinear", "wide hadamard", "norms in branches"):
        network = OTHERS[name][0]()
        assert kinds(lower(network, ["join_branches"])) == kinds(network)
    quadratic = build_op(
        OpSpec(
            kind="feed_forward", in_channels=4, out_channels=4, expand_ratio=2,
            num_quadratic=1, resolution=4,
        )
    )  # fmt: skip
    assert kinds(lower(quadratic, ["linear_as_convolution"])) == kinds(quadratic)


def test_runtimes_name_passes_that_exist() -> None:
    for runtime in RUNTIMES:
        assert set(getattr(backend_class(runtime), "lowering", ())) <= set(PASSES)
