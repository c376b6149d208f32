"""Sub-networks judged with the supernet's weights: as the networks that inherit them."""

import pytest
import torch

from quadranas.acceleration.engine import Engine
from quadranas.data.augmentation import Augmenter
from quadranas.data.dataset import Dataset, load_dataset
from quadranas.data.splits import split_halves
from quadranas.data.task import evaluate
from quadranas.network.skeleton import build_subnet
from quadranas.network.weights import load_tensors
from quadranas.space.sampling import random_architectures
from quadranas.space.search_space import Choices
from quadranas.supernet.evaluation import SubnetEvaluator
from quadranas.supernet.supernet import Supernet, build_supernet
from tests.small_supernets import SPACES


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return load_dataset(None, resolution=16)


def trained(space: str, nested: bool) -> Supernet:
    """A supernet whose averages of BatchNorm are those of other paths."""
    supernet = build_supernet(SPACES[space].with_num_classes(10), seed=0, nested=nested).train()
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        supernet.set_sample(supernet.gates.sample_path(generator))
        supernet(3 + torch.randn(8, 3, 16, 16, generator=generator))
    return supernet


def some_choices(supernet: Supernet) -> list[Choices]:
    space = supernet.space
    smallest, largest = (
        space.choices_of(space.extreme(lambda op: op.kernel_size * op.expand_ratio, largest=big))
        for big in (False, True)
    )
    return [smallest, largest]


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("space", SPACES)
def test_a_network_is_judged_as_it_would_be_inherited(
    dataset: Dataset, space: str, nested: bool
) -> None:
    supernet = trained(space, nested)
    augmenter = Augmenter.of(dataset)
    trained_on, held_out = split_halves(dataset.train.labels, 0)
    evaluator = SubnetEvaluator(
        *(supernet, dataset.train, augmenter, Engine()), held_out=held_out, trained_on=trained_on
    )
    before = {name: tensor.clone() for name, tensor in supernet.state_dict().items()}
    for choices in some_choices(supernet):
        judged = evaluator.accuracy(choices)
        for name, tensor in supernet.state_dict().items():
            assert torch.equal(tensor, before[name]), name
        evaluator.calibrate(choices)
        architecture = supernet.space.architecture(choices)
        network = build_subnet(architecture)
        load_tensors(network, supernet.subnet_tensors(architecture), "the supernet")
        found = evaluate(network, dataset.train, augmenter, indices=evaluator.held_out)
        assert judged == pytest.approx(found, abs=2 / len(evaluator.held_out))
        supernet.load_state_dict(before)


@pytest.mark.parametrize("space", SPACES)
def test_networks_judged_together_share_what_they_have_in_common(
    dataset: Dataset, space: str
) -> None:
    supernet = trained(space, nested=True)
    trained_on, held_out = split_halves(dataset.train.labels, 0)
    evaluator = SubnetEvaluator(
        *(supernet, dataset.train, Augmenter.of(dataset), Engine()),
        held_out=held_out,
        trained_on=trained_on,
    )
    networks = random_architectures(supernet.space, 6, "together")
    many = [*map(supernet.space.choices_of, networks), *some_choices(supernet)] * 2
    calls = []
    for block in supernet.network.blocks.values():
        block.register_forward_hook(lambda *_: calls.append(1))
    alone = [evaluator.accuracy(choices) for choices in many]
    num_alone = len(calls)
    assert evaluator.accuracies(many) == alone
    assert len(set(alone)) > 2
    if not evaluator.norms:  # their averages are computed for every network
        assert len(calls) - num_alone < 0.5 * num_alone


def test_the_averages_of_batch_norm_are_those_of_the_path(dataset: Dataset) -> None:
    """In a supernet they mix those of all paths: here of images with another mean."""
    supernet = trained("small-mbconv", nested=False)
    trained_on, held_out = split_halves(dataset.train.labels, 0)
    evaluator = SubnetEvaluator(
        *(supernet, dataset.train, Augmenter.of(dataset), Engine()),
        held_out=held_out,
        trained_on=trained_on,
    )
    choices = some_choices(supernet)[0]
    first = evaluator.norms[0]
    assert first.running_mean is not None
    mixed = first.running_mean.clone()
    evaluator.calibrate(choices)
    seen: list[torch.Tensor] = []
    handle = first.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    images = dataset.train.batch(evaluator.calibration)
    with torch.no_grad():
        supernet.eval()(Augmenter.of(dataset).plain(images))
    handle.remove()
    expected = seen[0].mean((0, 2, 3))
    torch.testing.assert_close(first.running_mean, expected, rtol=1e-2, atol=1e-2)
    assert not torch.allclose(mixed, expected, rtol=1e-2, atol=1e-2)
    assert all(norm.momentum == 0.1 for norm in evaluator.norms)
