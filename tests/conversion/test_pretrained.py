"""Weights from elsewhere: what of a checkpoint is used, what is not, and what is refused."""

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from quadranas.conversion import adapt, load_convnext, load_pretrained
from quadranas.errors import MissingExtraError, QuadranasError
from quadranas.layers.replacement import quadratic_layers
from quadranas.network.skeleton import build_subnet
from quadranas.space.architecture import Architecture, Block
from quadranas.space.operation import OpSpec

WIDTHS = (8, 16)
CLASSES = 5


def quadranet(widths: tuple[int, ...] = WIDTHS, num_quadratic: int = 0) -> nn.Module:
    """Two stages of two and one blocks."""
    blocks, channels, size = [], 3, 32
    for stage, width in enumerate(widths, start=1):
        kind, patch = ("patch_stem", 4) if stage == 1 else ("downsample", 2)
        entry = OpSpec(
            kind=kind, in_channels=channels, out_channels=width, kernel_size=patch,
            stride=patch, resolution=size,
        )  # fmt: skip
        blocks.append(Block(name=f"stage{stage}_entry", ops=(entry,)))
        channels, size = width, size // patch
        shape = {"in_channels": width, "out_channels": width, "resolution": size}
        conv = OpSpec(kind="quadratic_depthwise", kernel_size=7, **shape)
        mlp = OpSpec(kind="feed_forward", expand_ratio=4, num_quadratic=num_quadratic, **shape)
        for index in range(1, (2, 1)[stage - 1] + 1):
            blocks.append(Block(name=f"stage{stage}_block{index}", ops=(conv, mlp)))
    head = OpSpec(kind="norm_head", in_channels=channels, out_channels=CLASSES, resolution=size)
    blocks.append(Block(name="head", ops=(head,)))
    return build_subnet(
        Architecture(name="small", resolution=32, num_classes=CLASSES, blocks=tuple(blocks))
    ).eval()


def convnext(naming: str, depths: tuple[int, ...] = (2, 1)) -> dict[str, Tensor]:
    """A ConvNeXt's tensors, under the official names or timm's."""
    timm = naming == "timm"
    shapes: dict[str, tuple[int, ...]] = {}
    before = 3
    for stage, (depth, width) in enumerate(zip(depths, WIDTHS, strict=True)):
        entry = f"downsample_layers.{stage}"
        if timm:
            entry = "stem" if stage == 0 else f"stages.{stage}.downsample"
        conv, norm = ("0", "1") if stage == 0 else ("1", "0")
        patch = 4 if stage == 0 else 2
        shapes[f"{entry}.{conv}.weight"] = (width, before, patch, patch)
        shapes[f"{entry}.{conv}.bias"] = (width,)
        normed = width if stage == 0 else before
        shapes |= {f"{entry}.{norm}.weight": (normed,), f"{entry}.{norm}.bias": (normed,)}
        for index in range(depth):
            block = f"stages.{stage}.blocks.{index}" if timm else f"stages.{stage}.{index}"
            parts = ("conv_dw", "mlp.fc1", "mlp.fc2") if timm else ("dwconv", "pwconv1", "pwconv2")
            shapes |= {
                f"{block}.gamma": (width,),
                f"{block}.{parts[0]}.weight": (width, 1, 7, 7),
                f"{block}.{parts[0]}.bias": (width,),
                f"{block}.norm.weight": (width,),
                f"{block}.norm.bias": (width,),
                f"{block}.{parts[1]}.weight": (4 * width, width),
                f"{block}.{parts[1]}.bias": (4 * width,),
                f"{block}.{parts[2]}.weight": (width, 4 * width),
                f"{block}.{parts[2]}.bias": (width,),
            }
        before = width
    norm, head = ("head.norm", "head.fc") if timm else ("norm", "head")
    shapes |= {f"{norm}.weight": (before,), f"{norm}.bias": (before,)}
    shapes |= {f"{head}.weight": (CLASSES, before), f"{head}.bias": (CLASSES,)}
    generator = torch.Generator().manual_seed(5)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


@pytest.mark.parametrize("naming", ["official", "timm"])
def test_a_convnext_becomes_the_linear_terms(naming: str, tmp_path: Path) -> None:
    model, tensors = quadranet(), convnext(naming)
    save_file(tensors, tmp_path / "convnext.safetensors")
    report = load_pretrained(model, tmp_path / "convnext.safetensors")
    assert set(report.used) == set(tensors)
    assert report.unused == {}
    own = model.state_dict()
    assert all(torch.equal(own[target], tensors[name]) for name, target in report.used.items())

    kinds = {name.split(".", 3)[3] for name in report.untouched}
    assert kinds == {"gamma", "norm.weight", "norm.bias", "conv.b.weight", "conv.b.bias"}
    assert all(".quadratic_depthwise." in name for name in report.untouched)

    block, dwconv = ("blocks.0", "conv_dw") if naming == "timm" else ("0", "dwconv")
    weight, bias = (tensors[f"stages.1.{block}.{dwconv}.{leaf}"] for leaf in ("weight", "bias"))
    layer = quadratic_layers(model)["blocks.stage2_block1.quadratic_depthwise.conv"]
    x = torch.randn(2, 16, 5, 5)
    first, second = layer.terms(x)
    assert first is not None
    assert second is not None
    assert not second.any()
    torch.testing.assert_close(first, functional.conv2d(x, weight, bias, padding=3, groups=16))


def test_the_second_order_term_grows_from_zero() -> None:
    model = quadranet()
    load_convnext(model, convnext("official"), "convnext")
    layer = next(iter(quadratic_layers(model).values()))
    model(torch.randn(2, 3, 32, 32)).square().sum().backward()
    gradients = [parameter.grad for parameter in layer.branches["a"].parameters()]
    assert all(gradient is not None and gradient.any() for gradient in gradients)


def test_quadratic_pointwise_layers_take_them_too() -> None:
    model, tensors = quadranet(num_quadratic=2), convnext("official")
    report = load_convnext(model, tensors, "convnext")
    assert report.unused == {}
    layer = quadratic_layers(model)["blocks.stage1_block2.feed_forward.expand"]
    x = torch.randn(3, 8)
    weight, bias = (tensors[f"stages.0.1.pwconv1.{leaf}"] for leaf in ("weight", "bias"))
    torch.testing.assert_close(layer(x), functional.linear(x, weight, bias))


def test_what_is_not_used_is_reported_with_both_shapes() -> None:
    tensors = convnext("official", depths=(3, 1))
    tensors["head.weight"] = torch.zeros(1000, 16)
    model = quadranet()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    report = load_convnext(model, tensors, "convnext")
    assert len(report.unused) == 10
    assert report.unused["head.weight"] == (
        "shape (1000, 16); 'blocks.head.norm_head.linear.weight' has (5, 16)"
    )
    assert report.unused["stages.0.2.gamma"] == "shape (8,); the network has no counterpart"
    kept = "blocks.head.norm_head.linear.weight"
    assert kept in report.untouched
    assert torch.equal(model.state_dict()[kept], before[kept])


def test_a_convnext_of_other_widths_is_refused() -> None:
    message = (
        r"none of its matrices.*'downsample_layers.0.0.weight'.*\(8, 3, 4, 4\).*\(6, 3, 4, 4\)"
    )
    tensors = convnext("official")
    with pytest.raises(QuadranasError, match=message):
        load_convnext(quadranet((6, 12)), tensors, "convnext")
    with pytest.raises(QuadranasError, match="only QuadraNets; this network is not one"):
        load_convnext(nn.Sequential(nn.Linear(2, 2)), tensors, "convnext")


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_a_networks_own_checkpoint_must_fit_wholly(suffix: str, tmp_path: Path) -> None:
    source, path = nn.Sequential(nn.Linear(4, 3)), tmp_path / f"weights.{suffix}"
    (save_file if suffix == "safetensors" else torch.save)(source.state_dict(), path)
    model = nn.Sequential(nn.Linear(4, 3))
    assert load_pretrained(model, path).used == {"0.weight": "0.weight", "0.bias": "0.bias"}
    x = torch.randn(2, 4)
    assert torch.equal(adapt(model)(x), source(x))
    with pytest.raises(QuadranasError, match=r"'0.weight' has shape \(3, 4\), expected \(3, 5\)"):
        load_pretrained(nn.Sequential(nn.Linear(5, 3)), path)


class NamedBlock(nn.Module):
    """Layers with the names of ConvNeXt's and QuadraNet's, as MobileNetV3 and others have them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_dw = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.dwconv = nn.Conv2d(8, 8, 1)
        self.QuadraConv = nn.Conv2d(8, 8, 1)
        self.norm = nn.BatchNorm2d(8)


class Family(nn.Module):
    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.downsample_layers = nn.ModuleList([nn.Sequential(nn.Conv2d(3, 8, 3))])
        self.stages = nn.ModuleList([nn.Sequential(NamedBlock(), NamedBlock())])
        self.head = nn.Linear(8, classes)


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod."])
def test_a_layers_name_does_not_make_a_convnext(prefix: str, tmp_path: Path) -> None:
    source, path = Family(), tmp_path / "own.pth"
    torch.save({prefix + name: tensor for name, tensor in source.state_dict().items()}, path)
    model = Family()
    report = load_pretrained(model, path)
    assert set(report.used) == set(model.state_dict())
    assert report.unused == {}
    assert bool(prefix) == ("without prefixes of wrappers" in report.note)
    assert torch.equal(model.head.weight, source.head.weight)
    with pytest.raises(
        QuadranasError, match=r"'head.weight' has shape \(10, 8\), expected \(5, 8\)"
    ):
        load_pretrained(Family(5), path)
    with pytest.raises(QuadranasError, match="does not fit this network: it lacks tensor"):
        load_pretrained(quadranet(), path)


@pytest.mark.parametrize("naming", ["official", "timm"])
def test_a_convnext_in_a_container_is_recognised(naming: str, tmp_path: Path) -> None:
    tensors = {f"module.{name}": tensor for name, tensor in convnext(naming).items()}
    torch.save({"model": tensors, "epoch": 3}, tmp_path / "convnext.pth")
    report = load_pretrained(quadranet(), tmp_path / "convnext.pth")
    assert len(report.used) == len(tensors)
    assert report.note == "tensors under the key 'model'; names without the prefix 'module.'"
    tensors["module.head.bias" if naming == "official" else "module.head.fc.bias"][0] = torch.nan
    save_file(tensors, tmp_path / "nan.safetensors")
    with pytest.raises(QuadranasError, match=r"has 1 of 5 values that are NaN or infinite"):
        load_pretrained(quadranet(), tmp_path / "nan.safetensors")


def test_a_convnext_of_other_layers_is_loaded_as_the_network_it_is(tmp_path: Path) -> None:
    class Twin(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name, tensor in convnext("official").items():
                module: nn.Module = self
                *path, leaf = name.split(".")
                for part in path:
                    if not hasattr(module, part):
                        module.add_module(part, nn.Module())
                    module = module.get_submodule(part)
                module.register_parameter(leaf, nn.Parameter(tensor))

    save_file(Twin().state_dict(), tmp_path / "twin.safetensors")
    assert len(load_pretrained(Twin(), tmp_path / "twin.safetensors").used) == 39


class Malicious:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("executed",)


def test_a_checkpoint_that_executes_code_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "weights.pth"
    for save in (torch.save, lambda content, file: file.write_bytes(pickle.dumps(content))):
        save({"0.weight": Malicious()}, path)
        with pytest.raises(QuadranasError, match="refused because it could execute code"):
            load_pretrained(nn.Sequential(nn.Linear(4, 3)), path)
    assert capsys.readouterr().out == ""


def test_timm_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(MissingExtraError, match=r"quadranas\[timm\]"):
        load_pretrained(quadranet(), "timm:convnext_tiny")
