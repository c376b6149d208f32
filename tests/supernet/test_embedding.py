"""Supernets that start from one network: equal at their largest, derived in every candidate."""

import pytest
import torch
from torch import Tensor, nn

from quadranas.errors import QuadranasError
from quadranas.layers import build_op
from quadranas.layers.hidden_units import importance
from quadranas.network.skeleton import Network, build_subnet
from quadranas.space.architecture import Architecture
from quadranas.space.cost import count_macs
from quadranas.space.matching import match_stages
from quadranas.space.operation import OpSpec
from quadranas.space.sampling import random_architectures
from quadranas.space.search_space import SearchSpace
from quadranas.space.space_file import SpaceFile, build_space
from quadranas.supernet.embedding import (
    HIDDEN,
    Embedding,
    embed,
    largest_choices,
    resized_kernel,
)
from quadranas.supernet.supernet import Supernet, build_supernet
from tests.small_supernets import QUADRA, SPACES

WAYS = pytest.mark.parametrize("nested", [False, True], ids=["independent", "nested"])


def space_of(content: dict[str, object], **changes: object) -> SearchSpace:
    return build_space(SpaceFile.model_validate(content | changes))


def trained(architecture: Architecture, seed: int = 3) -> Network:
    """A network whose norms, scales and statistics are not those of a new one."""
    generator = torch.Generator().manual_seed(seed)
    network = build_subnet(architecture).eval()
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if tensor.is_floating_point():
                drawn = torch.rand(tensor.shape, generator=generator)
                is_size = "running_var" in name or tensor.ndim < 2
                tensor.copy_(0.5 + drawn if is_size else drawn - 0.5)
    return network


def embedded(
    space: SearchSpace, network: Network, *, nested: bool = False, uses_head: bool = True
) -> tuple[Supernet, Embedding]:
    assert network.architecture is not None
    supernet = build_supernet(space, seed=1, nested=nested).eval()
    matches = match_stages(space, network.architecture, "weights")
    found = embed(supernet, matches, network.state_dict(), uses_head=uses_head)
    supernet.set_choices(largest_choices(space))
    return supernet, found


def images(space: SearchSpace) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.randn(4, 3, space.resolution, space.resolution, generator=generator)


@torch.no_grad()
def difference(supernet: Supernet, network: nn.Module) -> float:
    x = images(supernet.space)
    wanted = network(x)
    return float((supernet(x) - wanted).abs().max() / wanted.abs().max())


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
@WAYS
def test_the_largest_subnetwork_is_the_network(space: SearchSpace, nested: bool) -> None:
    network = trained(space.extreme(count_macs, largest=True))
    supernet, found = embedded(space, network, nested=nested)
    assert found.deviations == ()
    # Nested hidden units are sorted, so their sum is taken in another order.
    assert difference(supernet, network) <= (1e-6 if nested else 0.0)
    assert difference(supernet, trained(space.extreme(count_macs, largest=True), 4)) > 0.01


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
@WAYS
def test_a_smaller_network_is_surrounded_by_zeros(space: SearchSpace, nested: bool) -> None:
    for source in random_architectures(space, 6, "embedding"):
        if source.blocks[-2].name.startswith("stage2"):  # the stage is not skipped
            network = trained(source)
            supernet, found = embedded(space, network, nested=nested)
            assert found.deviations == ()
            assert difference(supernet, network) <= 1e-6


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
@WAYS
def test_everything_that_is_added_learns(space: SearchSpace, nested: bool) -> None:
    optional = next(block.name for block in space.blocks if block.optional)
    choices = {block.name: (0,) * len(block.slots) for block in space.blocks}
    network = trained(space.architecture({**choices, optional: None}))
    supernet, found = embedded(space, network, nested=nested)
    assert found.origins[optional] is None
    assert "1 block, at first the identity" in [part.new for part in found.parts]
    parameters = {p: p.detach().clone() for p in supernet.train().active_parameters()}
    optimizer = torch.optim.Adam(list(parameters), lr=0.01)
    for _ in range(4):
        supernet(images(space)).log_softmax(1)[:, 0].sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    for parameter, before in parameters.items():
        # The margins of large kernels see nothing but padding in maps of two pixels.
        assert (parameter != before).float().mean() > 0.3, tuple(before.shape)


@WAYS
def test_every_candidate_is_a_part_of_the_block(nested: bool) -> None:
    space = SPACES["small-quadra"]
    network = trained(space.extreme(count_macs, largest=True))
    supernet, found = embedded(space, network, nested=nested)
    block = "stage1_block1"
    own = {n: t for n, t in network.state_dict().items() if n.startswith(f"blocks.{block}.")}
    kernel = own[f"blocks.{block}.quadratic_depthwise.conv.c.weight"]
    expand = own[f"blocks.{block}.feed_forward.expand.weight"]
    project = own[f"blocks.{block}.feed_forward.project.weight"]
    depthwise, feed_forward = supernet.slots(block)
    cropped = depthwise.paths[1].state_dict()["conv.c.weight"]
    if nested:
        assert torch.equal(cropped, kernel[..., 1:-1, 1:-1])
    else:
        sums = [w.double().sum((2, 3)) for w in (cropped, kernel)]
        torch.testing.assert_close(*sums, rtol=0, atol=1e-6)
    size = expand.norm(dim=1) * project.norm(dim=0)
    best = size.argsort(descending=True)[:6]
    smallest = feed_forward.paths[0].state_dict()
    rows = {tuple(row) for row in smallest["expand.weight"].tolist()}
    assert rows == {tuple(row) for row in expand[best].tolist()}
    part = found.parts[0]
    assert (part.part, part.used) == ("stage1", "entry and 2 blocks")
    assert part.sliced == "kernel 1, 3; expansion 1, 2"


def test_importance_counts_the_scales_of_batch_norm() -> None:
    spec = OpSpec(
        kind="mbconv", in_channels=3, out_channels=3, resolution=4, kernel_size=3, expand_ratio=2
    )
    op = build_op(spec)
    tensors = op.state_dict()
    with torch.no_grad():
        for name in ("layers.0.weight", "layers.3.weight", "layers.6.weight"):
            tensors[name].fill_(1.0)
        tensors["layers.1.weight"].copy_(torch.tensor([1.0, 2, 3, 4, 5, -6]))
        tensors["layers.4.running_var"].copy_(torch.tensor([1.0, 1, 1, 1, 100, 1]))
    found = importance(tensors, HIDDEN["mbconv"](spec))
    assert found.argsort(descending=True).tolist() == [5, 3, 2, 1, 0, 4]


def test_importance_counts_both_terms_of_a_quadratic_layer() -> None:
    weights = {"a": [0.0, 2, 3], "b": [5.0, 1, 2], "c": [1.0, 1, 1]}
    tensors = {f"conv.{name}.weight": torch.tensor(w)[:, None] for name, w in weights.items()}
    assert importance(tensors, dict.fromkeys(tensors, 0)).tolist() == [1, 3, 7]


def test_kernels_keep_their_response_to_a_constant() -> None:
    generator = torch.Generator().manual_seed(0)
    kernel = torch.randn(64, 1, 7, 7, generator=generator)
    for size in (1, 3, 5):
        smaller = resized_kernel(kernel, size)
        torch.testing.assert_close(smaller.sum((2, 3)), kernel.sum((2, 3)), rtol=0, atol=1e-5)
        assert smaller.abs().max() < 50
    assert not resized_kernel(torch.zeros(2, 1, 7, 7), 3).any()
    larger = resized_kernel(kernel, 9)
    assert torch.equal(larger[..., 1:-1, 1:-1], kernel)
    assert larger.count_nonzero() == kernel.count_nonzero()


def test_what_does_not_fit_into_the_space_is_said() -> None:
    space = SPACES["small-quadra"]
    stages = [dict(stage) for stage in QUADRA["stages"]]
    stages[0] |= {
        "depth": [1, 3],
        "slots": [
            {"kind": "quadratic_depthwise", "kernel_size": [7]},
            {"kind": "feed_forward", "expand_ratio": [4]},
        ],
    }
    larger = space_of(QUADRA, name="larger", stages=stages)
    network = trained(larger.extreme(count_macs, largest=True))
    _, found = embedded(space, network)
    assert found.deviations == (
        "stage1: kernel reduced from 7 to 5",
        "stage1: expansion reduced from 4 to 3",
        "stage1: 1 block dropped",
    )
    assert found.parts[0].dropped == "1 block"
    network = trained(space.extreme(count_macs, largest=True).adapted(num_classes=9))
    supernet, found = embedded(space, network, uses_head=False)
    assert found.deviations == ("head: a new classifier, for other classes",)
    assert found.parts[-1].new == "classifier of 4 classes"
    own = supernet.subnet_tensors(space.architecture(largest_choices(space)))
    for part in ("weight", "bias"):
        name = f"blocks.head.norm_head.norm.{part}"
        assert torch.equal(own[name], network.state_dict()[name])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"widths": [6, 9]}, "its stages have the widths 6, 9; those of the space have 6, 8"),
        ({"head": "linear_head"}, "consists of .*linear_head.*, the space of .*norm_head"),
        (
            {"stages": [QUADRA["stages"][0] | {"entry": {"kind": "patch_stem", "kernel_size": 2,
             "stride": 2}}, QUADRA["stages"][1]]},
            "stage1: stage1_entry has the stride 2; the space has 4",
        ),
    ],
)  # fmt: skip
def test_a_network_of_another_shape_is_refused(changes: dict[str, object], message: str) -> None:
    network = trained(space_of(QUADRA, **changes).extreme(count_macs, largest=True))
    with pytest.raises(
        QuadranasError, match=f"weights does not fit space small-quadra: .*{message}"
    ) as raised:
        embedded(SPACES["small-quadra"], network)
    assert "quadranas space-from weights --output" in raised.value.hint
