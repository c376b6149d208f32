"""Whole networks against plain references in float64, published checkpoints, export, compile."""

import math
import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

from quadranas.errors import QuadranasError
from quadranas.layers.quadranet import ResidualBranch
from quadranas.network.published import create_model, load_published_weights
from quadranas.network.skeleton import build_subnet
from quadranas.network.weights import load_tensors, load_weights
from quadranas.space.architecture import Architecture, Block
from quadranas.space.cost import count_macs
from quadranas.space.operation import OpSpec
from quadranas.space.reference import REFERENCE_MODELS
from quadranas.space.space_file import load_space

Scrambler = Callable[..., nn.Module]
Array = NDArray[np.float64]
Weights = Mapping[str, Array]

DEPTHS = (2, 3, 18, 2)


# ---------------------------------------------------------------- plain mathematics, NumPy only


def layer_norm(x: Array, weights: Weights, name: str) -> Array:
    """Over the last axis."""
    centred = x - x.sum(-1, keepdims=True) / x.shape[-1]
    variance = (centred**2).sum(-1, keepdims=True) / x.shape[-1]
    scaled: Array = centred / np.sqrt(variance + 1e-6)
    return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def linear(x: Array, weights: Weights, name: str) -> Array:
    rows = x.reshape(-1, x.shape[-1])
    out = rows @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]
    return out.reshape(*x.shape[:-1], -1)


def gelu(x: Array) -> Array:
    erf: Array = np.vectorize(math.erf, otypes=[np.float64])(x / math.sqrt(2))
    return x * 0.5 * (1 + erf)


def convolution(x: Array, kernel: Array, stride: int, padding: int, *, depthwise: bool) -> Array:
    """A sum over taps. Shapes: x (B, H, W, C), kernel (C_out, C_in or 1, K, K)."""
    size = kernel.shape[-1]
    x = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    high, wide = ((n - size) // stride + 1 for n in x.shape[1:3])
    out = np.zeros((x.shape[0], high, wide, kernel.shape[0]))
    for row in range(size):
        for column in range(size):
            rows = slice(row, row + stride * (high - 1) + 1, stride)
            columns = slice(column, column + stride * (wide - 1) + 1, stride)
            tap = x[:, rows, columns]
            weights = kernel[..., row, column]  # (C_out, C_in or 1)
            out += tap * weights[:, 0] if depthwise else tap @ weights.T
    return out


def patches(x: Array, weights: Weights, name: str) -> Array:
    """A convolution whose stride is its kernel."""
    kernel = weights[f"{name}.weight"]
    out = convolution(x, kernel, kernel.shape[-1], 0, depthwise=False)
    return out + weights[f"{name}.bias"]


def quadratic_depthwise(x: Array, weights: Weights, names: tuple[str, str, str]) -> Array:
    a, b, c = (
        convolution(x, kernel, 1, kernel.shape[-1] // 2, depthwise=True) + weights[f"{name}.bias"]
        for name in names
        for kernel in [weights[f"{name}.weight"]]
    )
    return a * b + c


def maybe_quadratic(x: Array, weights: Weights, name: str) -> Array:
    if f"{name}.a.weight" not in weights:
        return linear(x, weights, name)
    a, b, c = (linear(x, weights, f"{name}.{branch}") for branch in "abc")
    return a * b + c


def plain_quadranet(images: Array, weights: Weights) -> Array:
    """QuadraNet25 from the equations, under our names."""
    x = patches(images, weights, "blocks.stage1_entry.patch_stem.conv")
    x = layer_norm(x, weights, "blocks.stage1_entry.patch_stem.norm")
    for stage, depth in enumerate(DEPTHS, start=1):
        if stage > 1:
            entry = f"blocks.stage{stage}_entry.downsample"
            x = patches(layer_norm(x, weights, f"{entry}.norm"), weights, f"{entry}.conv")
        for index in range(1, depth + 1):
            block = f"blocks.stage{stage}_block{index}"
            conv, part = f"{block}.quadratic_depthwise", f"{block}.feed_forward"
            branches = (f"{conv}.conv.a", f"{conv}.conv.b", f"{conv}.conv.c")
            y = quadratic_depthwise(layer_norm(x, weights, f"{conv}.norm"), weights, branches)
            x = x + weights[f"{conv}.gamma"] * y
            y = maybe_quadratic(layer_norm(x, weights, f"{part}.norm"), weights, f"{part}.expand")
            y = maybe_quadratic(gelu(y), weights, f"{part}.project")
            x = x + weights[f"{part}.gamma"] * y
    x = layer_norm(x.mean((1, 2)), weights, "blocks.head.norm_head.norm")
    return linear(x, weights, "blocks.head.norm_head.linear")


def published_quadranet(images: Array, weights: Weights, depths: tuple[int, ...]) -> Array:
    """QuadraNet from the equations, under the names of the published checkpoints."""
    x = images
    for stage, depth in enumerate(depths):
        entry = f"downsample_layers.{stage}"
        if stage == 0:
            x = layer_norm(patches(x, weights, f"{entry}.0"), weights, f"{entry}.1")
        else:
            x = patches(layer_norm(x, weights, f"{entry}.0"), weights, f"{entry}.1")
        for index in range(depth):
            block = f"stages.{stage}.{index}"
            conv = f"{block}.QuadraConv.conv"
            y = layer_norm(x, weights, f"{block}.norm1")
            y = quadratic_depthwise(y, weights, (f"{conv}1", f"{conv}2", f"{conv}3"))
            x = x + weights[f"{block}.gamma1"] * y
            y = linear(layer_norm(x, weights, f"{block}.norm2"), weights, f"{block}.pwconv1")
            x = x + weights[f"{block}.gamma2"] * linear(gelu(y), weights, f"{block}.pwconv2")
    return linear(layer_norm(x.mean((1, 2)), weights, "norm"), weights, "head")


def batch_norm(x: Array, weights: Weights, name: str) -> Array:
    centred = x - weights[f"{name}.running_mean"]
    scaled = centred / np.sqrt(weights[f"{name}.running_var"] + 1e-5)
    return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def plain_mobile_network(images: Array, weights: Weights, network: Architecture) -> Array:
    """A network of inverted bottlenecks from the equations, in evaluation mode."""
    x = images
    for block in network.blocks:
        (op,) = block.ops
        prefix = f"blocks.{block.name}.{op.kind}"
        if op.kind == "conv_bn":
            kernel = weights[f"{prefix}.0.weight"]
            x = convolution(x, kernel, op.stride, op.kernel_size // 2, depthwise=False)
            x = np.clip(batch_norm(x, weights, f"{prefix}.1"), 0, 6)
        elif op.kind == "mbconv":
            layer, y = 0, x
            if op.expand_ratio > 1:
                y = convolution(y, weights[f"{prefix}.layers.0.weight"], 1, 0, depthwise=False)
                y = np.clip(batch_norm(y, weights, f"{prefix}.layers.1"), 0, 6)
                layer = 3
            kernel = weights[f"{prefix}.layers.{layer}.weight"]
            y = convolution(y, kernel, op.stride, op.kernel_size // 2, depthwise=True)
            y = np.clip(batch_norm(y, weights, f"{prefix}.layers.{layer + 1}"), 0, 6)
            kernel = weights[f"{prefix}.layers.{layer + 3}.weight"]
            y = convolution(y, kernel, 1, 0, depthwise=False)
            y = batch_norm(y, weights, f"{prefix}.layers.{layer + 4}")
            x = x + y if (op.stride, op.in_channels) == (1, op.out_channels) else y
        else:
            x = linear(x.mean((1, 2)), weights, f"{prefix}.linear")
    return x


def arrays(tensors: Mapping[str, Tensor]) -> dict[str, Array]:
    return {name: tensor.double().numpy() for name, tensor in tensors.items()}


def images_and_array(resolution: int = 32, batch: int = 2) -> tuple[Tensor, Array]:
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(batch, 3, resolution, resolution, generator=generator)
    return images.double(), images.double().permute(0, 2, 3, 1).numpy()


def reference_model(name: str) -> tuple[nn.Module, Tensor]:
    """A model whose tensors are yet to be filled, and two images."""
    with torch.device("meta"):
        model = create_model(name, num_classes=5, resolution=32).eval()
    images, _ = images_and_array()
    return model.to_empty(device="cpu"), images.float()


# ---------------------------------------------------------------- forward pass


@pytest.mark.parametrize("name", ["quadranet25_t", "quadranet25_t_q1", "quadranet25_t_q12"])
def test_reference_models_compute_what_the_paper_writes(name: str, scramble: Scrambler) -> None:
    model, _ = reference_model(name)
    scramble(model).double()
    images, array = images_and_array()
    with torch.no_grad():
        scores = model(images)
    expected = torch.from_numpy(plain_quadranet(array, arrays(model.state_dict())))
    assert expected.std() > 0.1
    torch.testing.assert_close(scores, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("seed", [0, 1])
def test_mobile_networks_compute_what_the_paper_writes(seed: int, scramble: Scrambler) -> None:
    space = load_space("mbconv-mobile").with_num_classes(11)
    generator = np.random.default_rng(seed)
    choices: dict[str, tuple[int, ...] | None] = {
        block.name: None
        if block.optional and generator.random() < 0.6
        else tuple(int(generator.integers(len(slot.candidates))) for slot in block.slots)
        for block in space.blocks
    }
    network = space.architecture(choices).adapted(resolution=64)
    model = scramble(build_subnet(network).double(), seed).eval()
    images, array = images_and_array(64)
    with torch.no_grad():
        scores = model(images)
    expected = plain_mobile_network(array, arrays(model.state_dict()), network)
    assert expected.std() > 0.1
    torch.testing.assert_close(scores, torch.from_numpy(expected), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("num_classes", "resolution"), [(1, 32), (7, 96), (21841, 224)])
def test_any_class_count_and_any_multiple_of_32(num_classes: int, resolution: int) -> None:
    with torch.device("meta"):
        model = create_model("quadranet25_t", num_classes=num_classes, resolution=resolution)
        assert model(torch.empty(2, 3, resolution, resolution)).shape == (2, num_classes)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"resolution": 100}, "resolution 100 does not fit quadranet25_t.*\nUse 96 or 128."),
        ({"num_classes": 0}, "0 classes do not fit quadranet25_t: the number must be 1 to 65536"),
        ({"drop_path": 1.0}, "drop_path must be at least 0 and below 1, got 1.0"),
        ({"drop_path": -0.1}, "drop_path must be at least 0 and below 1, got -0.1"),
        ({"drop_path": math.nan}, "drop_path must be at least 0 and below 1, got nan"),
    ],
)
def test_impossible_models(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(QuadranasError, match=message):
        create_model("quadranet25_t", **arguments)


def test_an_unknown_model() -> None:
    with pytest.raises(QuadranasError, match=r"unknown model 'quadranet25'.*did you mean 'quadra"):
        create_model("quadranet25")


def test_a_block_name_that_torch_has_taken() -> None:
    stem = OpSpec(
        kind="patch_stem", in_channels=3, out_channels=8, resolution=8, kernel_size=8, stride=8
    )
    head = OpSpec(kind="norm_head", in_channels=8, out_channels=2, resolution=1)
    blocks = (Block(name="keys", ops=(stem,)), Block(name="head", ops=(head,)))
    network = Architecture(name="n", resolution=8, num_classes=2, blocks=blocks)
    with pytest.raises(QuadranasError, match=r"a block has an impossible name.*'keys'"):
        build_subnet(network)


def test_weights_lie_in_channels_last() -> None:
    model = build_subnet(load_space("toy").architecture({}))
    kernels = [p for p in model.parameters() if p.dim() == 4]
    assert kernels
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in kernels)


# ---------------------------------------------------------------- initialisation


def test_reference_models_start_as_published() -> None:
    model = create_model("quadranet25_t", num_classes=1000)
    kinds = {"weight": 0, "bias": 0, "norm": 0, "gamma": 0}
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            kinds["weight"] += 1
            count = module.weight.numel()
            assert module.weight.std().item() == pytest.approx(0.02, rel=4 / math.sqrt(2 * count))
            assert module.weight.mean().item() == pytest.approx(0, abs=4 * 0.02 / math.sqrt(count))
            assert module.bias is not None
            assert not module.bias.any()
        elif isinstance(module, nn.LayerNorm):
            kinds["norm"] += 1
            assert (module.weight == 1).all()
            assert not module.bias.any()
        elif isinstance(module, ResidualBranch):
            kinds["gamma"] += 1
            assert (module.gamma == 1e-6).all()
    # 25 blocks of three convolutions, two linear layers, two norms, two gammas; four entries; head
    assert kinds == {"weight": 25 * 5 + 4 + 1, "bias": 0, "norm": 25 * 2 + 4 + 1, "gamma": 50}


def test_subnets_start_with_gammas_of_one() -> None:
    model = build_subnet(load_space("toy").extreme(count_macs, largest=True))
    gammas = [m.gamma for m in model.modules() if isinstance(m, ResidualBranch)]
    assert len(gammas) == 8
    assert all((gamma == 1).all() for gamma in gammas)


def test_drop_path_rises_linearly_over_the_blocks() -> None:
    with torch.device("meta"):
        model = create_model("quadranet25_t", drop_path=0.24)
    found = [m.drop_probability for m in model.modules() if isinstance(m, ResidualBranch)]
    assert found == pytest.approx([0.01 * index for index in range(25) for _ in range(2)])


def test_a_new_model_is_nearly_its_stem_and_head() -> None:
    model = create_model("quadranet25_t", num_classes=5, resolution=32).eval()
    images, _ = images_and_array()
    with torch.no_grad():
        before = model(images.float())
        for module in model.modules():
            if isinstance(module, ResidualBranch):
                module.gamma.zero_()
        torch.testing.assert_close(model(images.float()), before, rtol=0, atol=1e-4)


# ---------------------------------------------------------------- published checkpoints


NARROW_DEPTHS, NARROW_WIDTHS = (2, 2, 4, 2), (40, 80, 128, 256)


def narrow_model(num_classes: int = 6) -> nn.Module:
    """The narrow QuadraNet: kernel 7, expansion 4, the least depths of the mobile space."""
    space = load_space("quadranet-mobile", widths=NARROW_WIDTHS).with_num_classes(num_classes)
    choices: dict[str, tuple[int, ...] | None] = {
        block.name: None if block.optional else (2, 1)
        for block in space.blocks
        if block.stage.startswith("stage") and not block.stage.endswith("entry")
    }
    return build_subnet(space.architecture(choices).adapted(resolution=32)).eval()


def published_tensors(
    depths: tuple[int, ...], widths: tuple[int, ...], num_classes: int
) -> dict[str, Tensor]:
    """A checkpoint of random tensors under the published names."""
    shapes: dict[str, tuple[int, ...]] = {}
    for stage, (depth, width) in enumerate(zip(depths, widths, strict=True)):
        entry = f"downsample_layers.{stage}"
        if stage == 0:
            shapes |= {f"{entry}.0.weight": (width, 3, 4, 4), f"{entry}.0.bias": (width,)}
            shapes |= {f"{entry}.1.weight": (width,), f"{entry}.1.bias": (width,)}
        else:
            before = widths[stage - 1]
            shapes |= {f"{entry}.0.weight": (before,), f"{entry}.0.bias": (before,)}
            shapes |= {f"{entry}.1.weight": (width, before, 2, 2), f"{entry}.1.bias": (width,)}
        for index in range(depth):
            block = f"stages.{stage}.{index}"
            for norm in ("norm1", "norm2"):
                shapes |= {f"{block}.{norm}.weight": (width,), f"{block}.{norm}.bias": (width,)}
            for number in (1, 2, 3):
                conv = f"{block}.QuadraConv.conv{number}"
                shapes |= {f"{conv}.weight": (width, 1, 7, 7), f"{conv}.bias": (width,)}
            shapes |= {f"{block}.pwconv1.weight": (4 * width, width)}
            shapes |= {f"{block}.pwconv1.bias": (4 * width,)}
            shapes |= {f"{block}.pwconv2.weight": (width, 4 * width)}
            shapes |= {f"{block}.pwconv2.bias": (width,)}
            shapes |= {f"{block}.gamma1": (width,), f"{block}.gamma2": (width,)}
    shapes |= {"norm.weight": (widths[-1],), "norm.bias": (widths[-1],)}
    shapes |= {"head.weight": (num_classes, widths[-1]), "head.bias": (num_classes,)}
    generator = torch.Generator().manual_seed(5)
    return {
        name: torch.randn(shape, generator=generator)
        * (math.prod(shape[1:]) ** -0.5 if len(shape) > 1 else 0.5)
        for name, shape in shapes.items()
    }


def narrow_tensors() -> dict[str, Tensor]:
    return published_tensors(NARROW_DEPTHS, NARROW_WIDTHS, 6)


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same_state(model: nn.Module, state: Mapping[str, Tensor]) -> bool:
    return all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("form", ["safetensors", "pth", "model", "state_dict"])
def test_a_published_checkpoint_is_used_whole(tmp_path: Path, form: str) -> None:
    tensors = narrow_tensors()
    path = tmp_path / ("weights.safetensors" if form == "safetensors" else "weights.pth")
    if form == "safetensors":
        save_file(tensors, path)
    elif form == "pth":
        torch.save(tensors, path)
    else:
        torch.save({form: tensors, "epoch": 300, "lr": [0.1]}, path)
    model = narrow_model()
    load_published_weights(model, path)  # type: ignore[arg-type]

    assert len(model.state_dict()) == len(tensors)
    wanted = sorted(tensor.double().sum().item() for tensor in tensors.values())
    assert sorted(t.double().sum().item() for t in model.state_dict().values()) == wanted

    images, array = images_and_array()
    with torch.no_grad():
        scores = model.double()(images)
    expected = torch.from_numpy(published_quadranet(array, arrays(tensors), NARROW_DEPTHS))
    assert expected.std() > 0.1
    torch.testing.assert_close(scores, expected, rtol=1e-10, atol=1e-10)


def test_a_checkpoint_of_a_reference_model(tmp_path: Path) -> None:
    tensors = published_tensors(DEPTHS, (64, 128, 256, 512), 1000)
    path = tmp_path / "quadranet25_t.safetensors"
    save_file(tensors, path)
    model = create_model("quadranet25_t").eval()
    load_published_weights(model, str(path))
    path.unlink()  # 65 MB
    images, array = images_and_array(batch=1)
    with torch.no_grad():
        scores = model.double()(images)
    expected = torch.from_numpy(published_quadranet(array, arrays(tensors), DEPTHS))
    torch.testing.assert_close(scores, expected, rtol=1e-10, atol=1e-10)


def rename(tensors: dict[str, Tensor]) -> None:
    tensors["stages.0.0.dwconv.weight"] = tensors.pop("stages.0.0.QuadraConv.conv2.weight")


def cut_head(tensors: dict[str, Tensor]) -> None:
    tensors["head.weight"] = tensors["head.weight"][:5]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda t: t.pop("stages.2.3.gamma1"),
            "does not fit this model: 1 tensors missing ['stages.2.3.gamma1'], 0 unexpected []",
        ),
        (
            lambda t: t.update({"head_dist.weight": torch.zeros(2)}),
            "does not fit this model: 0 tensors missing [], 1 unexpected ['head_dist.weight']",
        ),
        (
            rename,
            "1 tensors missing ['stages.0.0.QuadraConv.conv2.weight'], "
            "1 unexpected ['stages.0.0.dwconv.weight']",
        ),
        (
            cut_head,
            "'blocks.head.norm_head.linear.weight' has shape (5, 256), expected (6, 256)",
        ),
    ],
)
def test_a_checkpoint_that_does_not_fit(
    tmp_path: Path, spoil: Callable[[dict[str, Tensor]], object], message: str
) -> None:
    tensors = narrow_tensors()
    spoil(tensors)
    path = tmp_path / "weights.pth"
    torch.save(tensors, path)
    model = narrow_model()
    before = state_of(model)
    with pytest.raises(QuadranasError, match=re.escape(message)) as caught:
        load_published_weights(model, path)  # type: ignore[arg-type]
    assert str(path) in str(caught.value)
    assert same_state(model, before)


def test_a_checkpoint_for_another_kind_of_model(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(narrow_tensors(), path)
    with torch.device("meta"):
        mobile = build_subnet(load_space("mbconv-mobile").architecture({}))
        quadratic = create_model("quadranet25_t_q1")
    with pytest.raises(QuadranasError, match="does not fit this model, which is not a QuadraNet"):
        load_published_weights(mobile, path)
    with pytest.raises(QuadranasError, match=r"does not fit this model: \d+ tensors missing"):
        load_published_weights(quadratic, path)


class Exploit:
    """Unpickled carelessly, it creates a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.marker,))


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("writer", ["torch", "pickle"])
def test_a_pickle_with_code_is_refused_and_not_executed(
    tmp_path: Path, writer: str, nested: bool
) -> None:
    marker = tmp_path / "marker"
    exploit = Exploit(marker)
    content: Any = {"model": narrow_tensors(), "args": exploit} if nested else exploit
    path = tmp_path / "weights.pth"
    if writer == "torch":
        torch.save(content, path)
        torch.load(path, weights_only=False)
    else:
        path.write_bytes(pickle.dumps(content))
        pickle.loads(path.read_bytes())
    assert marker.exists()  # the file is as dangerous as it should be
    marker.unlink()

    model = narrow_model()
    before = state_of(model)
    with pytest.raises(QuadranasError, match=r"cannot read weights .*weights.pth: ") as caught:
        load_published_weights(model, path)  # type: ignore[arg-type]
    assert "damaged, or holds more than tensors, which is refused because" in str(caught.value)
    assert not marker.exists()
    assert same_state(model, before)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("kept", [0.0, 0.001, 0.5, 0.999])
def test_a_torn_file_is_refused(tmp_path: Path, suffix: str, kept: float) -> None:
    path = tmp_path / f"weights{suffix}"
    tensors = {"a": torch.randn(100, 100)}
    if suffix == ".pth":
        torch.save(tensors, path)
    else:
        save_file(tensors, path)
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data))])
    with pytest.raises(QuadranasError, match=rf"cannot read weights {path}: "):
        load_weights(nn.Linear(2, 2), path)


@pytest.mark.parametrize("content", [[1, 2], {"model": 3}, {"a": {"b": torch.zeros(1)}}, {1: 2}])
def test_a_file_without_named_tensors(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(QuadranasError, match=r"weights.pth: expected named tensors"):
        load_published_weights(narrow_model(), tmp_path / "weights.pth")  # type: ignore[arg-type]


def test_a_missing_file(tmp_path: Path) -> None:
    for name in ("none.pth", "none.safetensors"):
        with pytest.raises(QuadranasError, match=f"cannot read weights .*{name}: .*No such file"):
            load_weights(nn.Linear(2, 2), tmp_path / name)


# ---------------------------------------------------------------- our own weights


def test_weights_round_trip(tmp_path: Path, scramble: Scrambler) -> None:
    network = load_space("mbconv-mobile").architecture({})
    trained = scramble(build_subnet(network))
    path = tmp_path / "subnet.safetensors"
    save_file({name: t.contiguous() for name, t in trained.state_dict().items()}, path)
    again = build_subnet(network)
    assert not same_state(again, trained.state_dict())
    load_weights(again, path)
    assert same_state(again, trained.state_dict())


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"weight": torch.zeros(2, 3)}, "f does not fit this network: it lacks tensor 'bias'"),
        (
            {"weight": torch.zeros(2, 3), "bias": torch.zeros(2), "more": torch.zeros(1)},
            "f does not fit this network: it has the unexpected tensor 'more'",
        ),
        (
            {"weight": torch.zeros(2, 3), "bias": torch.zeros(3)},
            r"f does not fit this network: 'bias' has shape \(3,\), expected \(2,\)",
        ),
    ],
)
def test_weights_that_do_not_fit(tensors: dict[str, Tensor], message: str) -> None:
    model = nn.Linear(3, 2)
    before = state_of(model)
    with pytest.raises(QuadranasError, match=message):
        load_tensors(model, tensors, "f")
    assert same_state(model, before)


# ---------------------------------------------------------------- export and compile


# The others differ in width and depth only.
FAST_MODELS = ("quadranet25_t", "quadranet25_t_q12")


def small_network(name: str) -> tuple[nn.Module, Tensor]:
    """The largest toy network, or the smallest mobile one at 64 pixels."""
    network = load_space(name).extreme(count_macs, largest=name == "toy")
    network = network.adapted(resolution=32 if name == "toy" else 64, num_classes=5)
    images, _ = images_and_array(network.resolution)
    return build_subnet(network).eval(), images.float()


@torch.no_grad()
def assert_exports(model: nn.Module, images: Tensor) -> None:
    expected = model(images)
    assert expected.std() > 0.01
    exported = torch.export.export(model, (images,))
    torch.testing.assert_close(exported.module()(images), expected)


@torch.no_grad()
def assert_compiles(model: nn.Module, images: Tensor, backend: str) -> None:
    torch.compiler.reset()
    expected = model(images)
    assert expected.std() > 0.01
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    torch.testing.assert_close(compiled(images), expected, rtol=1e-4, atol=1e-4)
    torch.compiler.reset()


@pytest.mark.parametrize(
    "name",
    [
        name if name in FAST_MODELS else pytest.param(name, marks=pytest.mark.slow)
        for name in REFERENCE_MODELS
    ],
)
def test_reference_models_export(name: str, scramble: Scrambler) -> None:
    model, images = reference_model(name)
    assert_exports(scramble(model), images)


@pytest.mark.parametrize("name", ["toy", "mbconv-mobile"])
def test_small_networks_export(name: str, scramble: Scrambler) -> None:
    model, images = small_network(name)
    assert_exports(scramble(model), images)


@pytest.mark.parametrize("name", ["toy", "mbconv-mobile"])
def test_small_networks_are_traced_whole(name: str, scramble: Scrambler) -> None:
    model, images = small_network(name)
    assert_compiles(scramble(model), images, "aot_eager")


# torch 2.13: inductor's own import of torch.utils.mkldnn uses it.
OLD_JIT = pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")


@OLD_JIT
@pytest.mark.slow
@pytest.mark.parametrize("name", ["toy", "mbconv-mobile"])
def test_small_networks_compile(name: str, scramble: Scrambler) -> None:
    model, images = small_network(name)
    assert_compiles(scramble(model), images, "inductor")


@OLD_JIT
@pytest.mark.slow
@pytest.mark.parametrize("name", REFERENCE_MODELS)
def test_reference_models_compile(name: str, scramble: Scrambler) -> None:
    model, images = reference_model(name)
    assert_compiles(scramble(model), images, "inductor")
