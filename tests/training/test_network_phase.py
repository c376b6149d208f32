"""Training one network: averages, parts of batches, dropped paths, warm-up, recomputed blocks."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from quadranas.commands.train import train
from quadranas.data.augmentation import Augmenter
from quadranas.data.batch import Batch
from quadranas.data.dataset import Dataset, load_dataset
from quadranas.errors import QuadranasError, RunInterruptedError
from quadranas.layers.quadratic import QuadraticConv2d, QuadraticLinear
from quadranas.layers.replacement import quadratic_layers
from quadranas.layers.stochastic_depth import draw_masks, residual_blocks, set_drop_path
from quadranas.network.skeleton import Network, build_subnet
from quadranas.runs.config import TrainConfig, WeightConfig
from quadranas.runs.run_folder import RunFolder
from quadranas.seeds import generator_for
from quadranas.space.architecture import Architecture
from quadranas.supernet.supernet import build_supernet
from quadranas.training.average import WeightAverage
from quadranas.training.network_phase import NetworkTraining
from quadranas.training.second_order import SecondOrderWarmup
from quadranas.training.steps import weight_step
from tests.command_line import contents
from tests.small_supernets import SPACES


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset(None, resolution=32)


@pytest.fixture(params=SPACES)
def architecture(request: pytest.FixtureRequest) -> Architecture:
    space = SPACES[request.param].with_num_classes(10)
    return space.extreme(lambda spec: spec.kernel_size, largest=True).adapted(resolution=32)


def training(network: Network, digits: Dataset, **options: Any) -> NetworkTraining:
    weights = options.pop("weights", WeightConfig())
    return NetworkTraining(
        *("train", network, digits, Augmenter.of(digits), weights),
        **({"num_epochs": 1, "batch_size": 12, "seed": 3, "num_images": 96} | options),
    )


def floats(network: nn.Module) -> dict[str, Tensor]:
    return {n: t.clone() for n, t in network.state_dict().items() if t.is_floating_point()}


def test_the_average_is_that_of_the_weights_after_every_step(
    architecture: Architecture, digits: Dataset
) -> None:
    network = build_subnet(architecture)
    phase = training(network, digits, weights=WeightConfig(ema=0.3))
    expected = {name: tensor.double() for name, tensor in floats(network).items()}
    for number in range(6):
        phase.step(number)
        decay = min(0.3, (1 + number) / (10 + number))
        for name, tensor in floats(network).items():
            expected[name] = decay * expected[name] + (1 - decay) * tensor.double()
    last = floats(network)
    assert phase.average is not None
    with phase.average.applied():
        within = floats(network)
    assert all(torch.equal(last[name], tensor) for name, tensor in floats(network).items())
    phase.finish()
    for name, tensor in floats(network).items():
        torch.testing.assert_close(tensor.double(), expected[name], rtol=1e-5, atol=1e-6)
        assert torch.equal(tensor, within[name])


def test_an_average_goes_on_after_a_restart() -> None:
    network = nn.BatchNorm1d(3)
    average = WeightAverage(network, 0.9)
    nn.init.normal_(network.weight)
    average.update()
    again = WeightAverage(nn.BatchNorm1d(3), 0.9)
    again.restore(average.state())
    assert again.num_updates == 1
    for name, tensor in average.tensors().items():
        assert torch.equal(again.tensors()[name], tensor)
    assert "num_batches_tracked" not in average.tensors()


@pytest.mark.parametrize("num_parts", [2, 3, 5])
def test_the_gradient_of_a_batch_is_that_of_its_parts(num_parts: int) -> None:
    space = SPACES["small-quadra"]
    network = build_supernet(space, seed=0).double().train()
    images = torch.randn(7, 3, space.resolution, space.resolution, dtype=torch.float64)
    targets = functional.one_hot(torch.arange(7) % space.num_classes, space.num_classes).double()
    found = []
    for parts in (1, num_parts):
        copied = copy.deepcopy(network)
        copied.set_sample(copied.gates.sample_path(torch.Generator().manual_seed(1)))
        active = copied.active_parameters()
        optimizer = torch.optim.SGD(active, lr=0.1)
        batch = Batch(images, targets, num_parts=parts)
        assert sum(len(part.images) for part in batch.parts()) == 7
        assert sum(part.weight for part in batch.parts()) == pytest.approx(1)
        result = weight_step(copied, active, optimizer, batch, WeightConfig(), 0.1)
        found.append((result, [p.detach() for p in active]))
    (one, weights), (other, others) = found
    torch.testing.assert_close(one.loss, other.loss)
    torch.testing.assert_close(one.accuracy, other.accuracy)
    for here, there in zip(weights, others, strict=True):
        torch.testing.assert_close(here, there, rtol=0, atol=1e-12)


def test_dropped_paths_rise_over_the_depth_and_do_not_depend_on_the_parts(
    architecture: Architecture,
) -> None:
    network = build_subnet(architecture).train()
    set_drop_path(network.blocks.values(), 0.6)
    blocks = residual_blocks(network)
    rates = [block.drop_probability for block in blocks]
    assert rates == sorted(rates)
    assert (rates[0], rates[-1]) == (0.0, 0.6)

    def masks(part: slice) -> Tensor:
        put = torch.Tensor.clone
        draw_masks(blocks, generator_for(0, "x", 5), size=2000, part=part, put=put)
        return torch.stack([block.mask for block in blocks if block.mask is not None])

    whole = masks(slice(0, 2000))
    assert torch.equal(torch.cat([masks(slice(0, 700)), masks(slice(700, 2000))], 1), whole)
    kept = whole.flatten(1).mean(1)
    expected = torch.tensor([1 - rate for rate in rates if rate])
    torch.testing.assert_close(kept, expected, rtol=0, atol=0.05)
    last = blocks[-1]
    last.mask = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1)
    outputs: list[Tensor] = []
    handle = last.register_forward_hook(lambda _, x, y: outputs.append(y - x[0]))
    for block in blocks[:-1]:
        block.drop_probability = 0.0
    one = torch.randn(1, 3, 32, 32)
    network.eval()(one.expand(2, 3, 32, 32))
    for module in network.modules():  # norms stay in evaluation
        module.training = module is last
    network(one.expand(2, 3, 32, 32))
    handle.remove()
    plain, dropped = outputs
    assert not dropped[0].any()
    torch.testing.assert_close(dropped[1], plain[1] / 0.4)


LAYERS = (
    QuadraticConv2d(4, 6, 3),
    QuadraticLinear(5, 3),
    QuadraticLinear(5, 3, form="bilinear"),
)


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: f"{type(layer).__name__}-{layer.form}")
@pytest.mark.parametrize("factor", [0.0, 0.3])
def test_the_factor_multiplies_the_second_order_term(layer: Any, factor: float) -> None:
    layer = layer.double().eval()
    shape = (7, 4, 5, 5) if isinstance(layer, QuadraticConv2d) else (7, 5)
    x = torch.randn(shape, dtype=torch.float64)
    first, second = layer.terms(x)
    layer.second_order_factor = torch.tensor(factor, dtype=torch.float64)
    torch.testing.assert_close(layer(x), first + factor * second)
    layer.second_order_factor = None
    torch.testing.assert_close(layer(x), first + second)


def test_second_order_terms_join_layer_by_layer() -> None:
    others = (QuadraticLinear(3, 3, form="product"), QuadraticLinear(3, 3, norm=True))
    network = nn.Sequential(*(QuadraticLinear(3, 3) for _ in range(3)), *others)
    warmup = SecondOrderWarmup(network, 8, lambda tensor: tensor)
    assert len(warmup.layers) == 3
    assert [warmup.factors(step) for step in (0, 2, 4, 6)] == [
        [0, 0, 0],
        [0.5, 0, 0],
        [1, 0.5, 0],
        [1, 1, 0.5],
    ]
    warmup.begin(2)
    assert network[0].second_order_factor == 0.5
    warmup.begin(8)
    assert all(layer.second_order_factor is None for layer in quadratic_layers(network).values())
    assert SecondOrderWarmup(network, 0, lambda tensor: tensor).layers == []


def test_only_a_new_network_is_warmed_up(digits: Dataset) -> None:
    space = SPACES["small-quadra"].with_num_classes(10)
    architecture = space.extreme(lambda spec: spec.kernel_size, largest=True)
    weights = WeightConfig(second_order_warmup=0.5)
    for is_new in (False, True):
        phase = training(
            build_subnet(architecture.adapted(resolution=32)),
            digits,
            weights=weights,
            is_new=is_new,
        )
        phase.step(1)
        factors = [layer.second_order_factor for layer in phase.warmup.layers]
        assert bool(factors) == is_new
        assert all(factor is not None for factor in factors)
        phase.finish()
        layers = quadratic_layers(phase.network).values()
        assert all(layer.second_order_factor is None for layer in layers)


def test_blocks_that_are_computed_again_change_nothing(
    architecture: Architecture, digits: Dataset
) -> None:
    found = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        network = build_subnet(architecture)
        phase = training(
            network, digits, weights=WeightConfig(drop_path=0.5), checkpointing=checkpointing
        )
        for number in range(3):
            phase.step(number)
        found.append(network.state_dict())
    for name, tensor in found[0].items():
        assert torch.equal(found[1][name], tensor), name


def test_compile_and_checkpointing_exclude_each_other(tmp_path: Path) -> None:
    config = TrainConfig(compile=True, checkpointing=True)
    with pytest.raises(QuadranasError, match="exclude each other"):
        train("quadranet25_t", config, output=tmp_path / "run")


def test_more_parts_than_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(QuadranasError, match="accumulate 65 is more than the 64 images"):
        train("quadranet25_t", TrainConfig(accumulate=65), output=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_training_with_everything_resumes_bit_identical(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = SPACES["small-quadra"]
    network = space.extreme(lambda spec: spec.kernel_size, largest=True)
    weights = WeightConfig(ema=0.9, drop_path=0.4, second_order_warmup=0.6)
    config = TrainConfig(
        data=str(pictures),
        weights=weights,
        **{"epochs": 3, "batch_size": 4, "holdout": 0.2, "checkpoint_seconds": 0.0},
        accumulate=2,
        checkpointing=True,
        resolution_images=8,
    )
    options: dict[str, Any] = {"train_resolution": 32}
    larger = network.adapted(resolution=64)
    train(larger, config, output=tmp_path / "whole", **options)
    real, calls = RunFolder.save_checkpoint, [0]

    def killed(self: RunFolder, state: Any) -> None:
        real(self, state)
        calls[0] += 1
        if calls[0] % 2 == 0:
            raise KeyboardInterrupt

    monkeypatch.setattr(RunFolder, "save_checkpoint", killed)
    for attempt in range(20):
        try:
            model = None if attempt else larger
            train(model, config, output=tmp_path / "parts", resume=attempt > 0, **options)
        except RunInterruptedError:
            continue
        break
    assert attempt >= 2
    parts, whole = (contents(tmp_path / name) for name in ("parts", "whole"))
    assert parts.pop("result.json") != whole.pop("result.json")  # they name their folders
    assert parts == whole


@pytest.mark.parametrize("nested", [False, True])
def test_the_second_order_terms_of_a_supernet_rise_with_its_steps(nested: bool) -> None:
    supernet = build_supernet(SPACES["small-quadra"], seed=0, nested=nested).eval()
    supernet.set_sample(supernet.gates.sample_path(torch.Generator().manual_seed(0)))
    images = torch.randn(2, 3, 16, 16)
    warmup = SecondOrderWarmup(supernet, 10, lambda tensor: tensor)
    assert warmup.layers
    with torch.no_grad():
        whole = supernet(images)
        warmup.begin(0)
        first_order = supernet(images)
        for layer in warmup.layers:
            for parameter in layer.branches["a"].parameters():
                parameter.zero_()
        warmup.end()
        torch.testing.assert_close(supernet(images), first_order)
    assert not torch.equal(whole, first_order)
