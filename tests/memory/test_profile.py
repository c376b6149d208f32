"""Predicted memory: against counts by hand, and against what PyTorch's allocator hands out."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from quadranas.errors import QuadranasError
from quadranas.layers.quadratic import QuadraticConv2d, QuadraticLinear
from quadranas.memory import measure_memory, profile_memory
from quadranas.network.skeleton import build_subnet
from quadranas.space.architecture import Architecture, LayerChange
from quadranas.space.catalog import find_architecture
from quadranas.space.cost import count_macs, count_params
from tests.bundles import toy_architecture
from tests.command_line import call
from tests.commands.test_export import architecture as small_architecture

TOLERANCE = 0.1
"""What the documentation promises of the predicted peaks."""


class TwoPaths(nn.Module):
    """Adds two paths, so that its input receives gradients from both sides."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(64, 64), nn.Linear(64, 64)

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(x, self.left(x).relu(), self.right(x))


class Attention(nn.Module):
    """Attention by PyTorch's fused kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(32, 96)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).unflatten(-1, (3, 2, 16)).permute(2, 0, 3, 1, 4)
        return functional.scaled_dot_product_attention(query, key, value)


class ByValue(nn.Module):
    """Its work depends on the values of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        chosen: Tensor = self.linear(x[x[:, 0] > 0])
        return chosen


def saved(model: nn.Module, *shape: int) -> dict[str, int]:
    found = profile_memory(model, shape, differentiate_input=True)
    return {layer.name: layer.saved_bytes for layer in found.layers}


def image_size(channels: int, side: int) -> int:
    """Bytes of two float32 feature maps."""
    return 4 * 2 * channels * side**2


def test_an_efficient_layer_keeps_its_input_alone() -> None:
    conv = QuadraticConv2d(4, 4, 3, padding=1, groups=4)
    assert saved(conv, 2, 4, 6, 6) == {"": image_size(4, 6)}


def test_a_direct_layer_keeps_its_input_and_both_factors() -> None:
    conv = QuadraticConv2d(4, 8, 3, padding=1, memory_efficient=False)
    assert saved(conv, 2, 4, 6, 6) == {"": image_size(4, 6) + 2 * image_size(8, 6)}


def test_a_linear_layer_keeps_its_input_and_gelu_its_own() -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.GELU())
    assert saved(model, 4, 8) == {"0": 4 * 4 * 8, "1": 4 * 4 * 16}


def test_what_two_layers_keep_counts_once() -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
    assert saved(model, 4, 8) == {"0": 4 * 4 * 8, "1": 4 * 4 * 16, "2": 0}


def test_work_that_is_no_modules_own_counts_for_the_module_around_it() -> None:
    # addcmul keeps both factors, of which one is what relu keeps
    assert saved(TwoPaths(), 4, 64) == {"": 2 * 4 * 4 * 64, "left": 4 * 4 * 64, "right": 0}


def test_parameters_and_macs_are_those_of_the_layers() -> None:
    model = nn.Sequential(nn.Linear(8, 16), QuadraticLinear(16, 2))
    found = profile_memory(model, (4, 8))
    counts = [(layer.name, layer.kind, layer.params, layer.macs) for layer in found.layers]
    assert counts == [
        ("0", "Linear", 8 * 16 + 16, 8 * 16),
        ("1", "QuadraticLinear", 3 * (16 * 2 + 2), 3 * 16 * 2),
    ]
    assert (found.params, found.macs) == (144 + 102, 128 + 96)


def test_the_parts_of_the_peak_after_a_large_batch() -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 2))
    found = profile_memory(model, (4096, 8))
    weights = 4 * (8 * 16 + 16 + 16 * 2 + 2)
    parts = found.training.parts
    assert (parts["parameters"], parts["inputs"]) == (weights, 4 * 4096 * 8)
    assert parts["optimizer_state"] == 2 * weights + 4 * 4  # two moments, four step counts
    assert found.training.phase == "backward"
    assert found.inference.parts["gradients"] == found.inference.parts["optimizer_state"] == 0


def conv_net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 32, 7, padding=3, groups=32), nn.Conv2d(32, 64, 1, bias=False),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
    )  # fmt: skip


SMALL: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "perceptron": (
        lambda: nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64)),
        (512, 64),
    ),
    "two paths": (TwoPaths, (2048, 64)),
    "convolutions": (conv_net, (4, 3, 32, 32)),
    "convolutions, extrapolated": (conv_net, (40, 3, 32, 32)),
    "attention": (lambda: nn.TransformerEncoderLayer(64, 4, 128, batch_first=True), (4, 32, 64)),
    "fused attention": (Attention, (4, 128, 32)),
    "quadratic": (
        lambda: nn.Sequential(
            QuadraticConv2d(3, 32, 3, norm=True), QuadraticConv2d(32, 8, 3, form="bilinear")
        ),
        (2, 3, 12, 12),
    ),
}


def check(model: nn.Module, *shape: int, **options: Any) -> None:
    predicted = profile_memory(model, shape, **options)
    measured = measure_memory(model, shape, **options)
    training, inference = predicted.training.num_bytes, predicted.inference.num_bytes
    assert training == pytest.approx(measured.training_peak_bytes, rel=TOLERANCE)
    assert inference == pytest.approx(measured.inference_peak_bytes, rel=TOLERANCE)


@pytest.mark.parametrize("name", SMALL)
def test_small_networks_take_what_is_predicted(name: str) -> None:
    build, shape = SMALL[name]
    check(build(), *shape)


def test_another_optimizer_and_loss_are_followed() -> None:
    model = nn.Sequential(nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 256))
    check(
        model,
        *(8, 256),
        loss=lambda output: output.square().sum(),
        optimizer=lambda parameters: torch.optim.SGD(parameters, momentum=0.9, foreach=True),
    )


def network(name: str, resolution: int) -> nn.Module:
    return build_subnet(find_architecture(name).adapted(resolution=resolution))


def test_a_reference_network_takes_what_is_predicted() -> None:
    check(network("quadranet25_t", 64), 2, 3, 64, 64)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "batch", "resolution"),
    [
        ("quadranet36_t", 4, 96),
        ("quadranet36_s", 2, 96),
        ("quadranet25_b", 4, 96),
        ("quadranet36_t_q12", 2, 64),
        ("proxyless-cpu", 3, 96),
        ("proxyless-gpu", 16, 64),
        ("quadranet25_t", 24, 64),
        ("proxyless-mobile", 2, 64),
    ],
)
def test_reference_networks_take_what_is_predicted(name: str, batch: int, resolution: int) -> None:
    check(network(name, resolution), batch, 3, resolution, resolution)


def test_a_batch_that_no_machine_holds_is_predicted() -> None:
    found = profile_memory(conv_net(), (10**7, 3, 32, 32))
    assert found.training.num_bytes > 2**40


def test_the_model_is_neither_run_nor_changed() -> None:
    model = conv_net().eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    profile_memory(model, (4, 3, 32, 32))
    assert not model.training
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_model_without_memory_is_enough() -> None:
    with torch.device("meta"):
        model = conv_net()
    assert profile_memory(model, (4, 3, 32, 32)) == profile_memory(conv_net(), (4, 3, 32, 32))


@pytest.mark.parametrize(
    ("model", "shape", "message"),
    [
        (nn.Linear(4, 4), (0, 4), r"input_shape \(0, 4\) must be sizes of at least 1"),
        (nn.Linear(4, 4), (2, 5), r"Linear does not train on an input of shape \(2, 5\)"),
        (nn.Linear(4, 4).requires_grad_(False), (2, 4), "Linear has no trainable parameter"),
        (
            ByValue(),
            (2, 4),
            "ByValue cannot be predicted: the output shape of aten.nonzero.default "
            "depends on values",
        ),
    ],
)
def test_what_cannot_be_predicted_is_said(
    model: nn.Module, shape: tuple[int, ...], message: str
) -> None:
    with pytest.raises(QuadranasError, match=message):
        profile_memory(model, shape)


def test_a_device_that_is_not_here_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for device in ("cuda", "cuda:1", "tpu"):
        with pytest.raises(QuadranasError, match=f"predicted for device '{device}';"):
            profile_memory(nn.Linear(4, 4), (2, 4), device=device)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_takes_what_is_predicted() -> None:
    check(network("quadranet25_t", 64), 2, 3, 64, 64, device="cuda")


def run(*arguments: str | Path) -> dict[str, Any]:
    outcome = call("profile", *arguments, "--json")
    assert outcome.code == 0, outcome.err
    return outcome.json()


@pytest.fixture(scope="module")
def architecture() -> Architecture:
    """A small network of inverted bottlenecks."""
    return small_architecture("mbconv")


def test_the_command_counts_what_profile_counts(tmp_path: Path) -> None:
    toy_architecture().save(tmp_path / "toy.json")
    found = run(tmp_path / "toy.json", "--memory", "--batch", "3", "--resolution", "64")
    stored = toy_architecture().adapted(resolution=64)
    assert (found["batch"], found["resolution"]) == (3, 64)
    assert (found["params"], found["macs"]) == (count_params(stored), count_macs(stored))
    assert found["saved_bytes"] == sum(layer["saved_bytes"] for layer in found["layers"])
    assert found["training_peak_bytes"] == sum(found["training_parts_bytes"].values())
    assert found["inference_peak_bytes"] == sum(found["inference_parts_bytes"].values())
    kept = sum(layer["saved_bytes_direct"] for layer in found["layers"])
    assert found["direct"]["saved_bytes"] == kept > found["saved_bytes"]
    assert found["direct"]["training_peak_bytes"] > found["training_peak_bytes"]


def test_the_command_prints_layers_and_parts(architecture: Architecture, tmp_path: Path) -> None:
    architecture.save(tmp_path / "plain.json")
    outcome = call("profile", tmp_path / "plain.json", "--memory")
    assert outcome.code == 0, outcome.err
    millions = count_params(architecture) / 1e6
    assert f"batch 1 at 64 pixels: {millions:.2f} M parameters" in outcome.out
    assert "training peak" in outcome.out
    assert "memory-efficient" not in outcome.out  # nothing is quadratic


def test_a_changed_network_is_counted(architecture: Architecture, tmp_path: Path) -> None:
    change = LayerChange(name="blocks.stem_block1.conv_bn.0", kind="quadratic")
    architecture.model_copy(update={"changes": (change,)}).save(tmp_path / "changed.json")
    refused = call("profile", tmp_path / "changed.json")
    assert refused.code == 2
    assert "--memory" in refused.err
    found = run(tmp_path / "changed.json", "--memory", "--batch", "2")
    assert found["params"] > count_params(architecture)
    assert found["direct"]["saved_bytes"] > found["saved_bytes"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("quadranet25_t", "--memory", "--batch", "0"), "Invalid value for '--batch'"),
        (("quadranet25_t", "--batch", "2"), "--batch needs --memory"),
        (("quadranet25_t", "--memory", "--resolution", "63"), "resolution 63 does not fit"),
        (("quadranet25_x", "--memory"), "unknown model 'quadranet25_x'"),
        (("proxyless-mobile", "--memory", "--resolution", "32"), "does not train on an input"),
    ],
)
def test_a_faulty_command_is_explained(arguments: tuple[str, ...], message: str) -> None:
    outcome = call("profile", *arguments, "--json")
    assert outcome.code == 2
    assert message in json.loads(outcome.out)["error"]
