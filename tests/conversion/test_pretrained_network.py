"""Pre-trained networks from runs, files and published checkpoints, and what is refused."""

import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from quadranas.conversion.pretrained_network import (
    PretrainedNetwork,
    kept_pretrained,
    open_pretrained,
)
from quadranas.conversion.quadratic_bottlenecks import made_quadratic
from quadranas.errors import MissingExtraError, QuadranasError
from quadranas.layers.replacement import quadratic_layers
from quadranas.network.published import published_name
from quadranas.network.skeleton import Network, build_subnet
from quadranas.runs.config import PretrainedConfig, WeightConfig
from quadranas.runs.pretrained_record import PretrainedNote
from quadranas.space.around import space_around
from quadranas.space.cost import count_macs
from quadranas.space.matching import match_stages
from quadranas.space.space_file import SpaceFile, build_space, load_space, load_space_file
from quadranas.supernet.embedding import embed, largest_choices
from quadranas.supernet.supernet import build_supernet
from quadranas.training.inheritance import Inheritance
from tests.conversion.known_networks import ConvNeXt, MobileNetV2, as_trained, timm_names
from tests.conversion.test_pretrained import Malicious


def quadranet() -> Network:
    return build_subnet(load_space("toy").extreme(count_macs, largest=True)).eval()


def published(network: Network) -> dict[str, Tensor]:
    return {published_name(name): tensor for name, tensor in network.state_dict().items()}


def check_equal(opened: PretrainedNetwork, network: Network) -> None:
    assert network.architecture is not None
    own = [op.model_copy(update={"resolution": 1}) for op in network.architecture.ops()]
    found = [op.model_copy(update={"resolution": 1}) for op in opened.architecture.ops()]
    assert found == own
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(opened.network()(x), network(x))


def write(tensors: Mapping[str, Tensor], path: Path) -> Path:
    if path.suffix == ".safetensors":
        save_file(dict(tensors), path)
    else:
        torch.save({"epoch": 3, "model": {f"module.{n}": t for n, t in tensors.items()}}, path)
    return path


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("naming", ["own", "published"])
def test_a_file_of_tensors_says_what_network_it_is(
    naming: str, suffix: str, tmp_path: Path
) -> None:
    network = quadranet()
    tensors = network.state_dict() if naming == "own" else published(network)
    opened = open_pretrained(write(tensors, tmp_path / f"weights{suffix}"))
    check_equal(opened, network)
    assert opened.family == "QuadraNet"
    assert opened.architecture.resolution == 224
    assert opened.class_names is None
    assert opened.mean is None
    if suffix == ".pth":
        (note,) = opened.notes
        assert note == "tensors under the key 'model'; names without the prefix 'module.'"


def test_a_run_knows_its_images(finished_run: Path, tmp_path: Path) -> None:
    opened = open_pretrained(finished_run)
    assert opened.class_names == ("cat", "dog")
    assert opened.resolution == 32
    assert opened.mean is not None
    beside = open_pretrained(finished_run / "subnet.safetensors")
    assert beside.digest == opened.digest
    assert beside.class_names == opened.class_names
    note = PretrainedNote(source="a run", family=opened.family, digest=opened.digest)
    opened.keep(tmp_path, note)
    kept = kept_pretrained(tmp_path)
    assert kept is not None
    assert (kept.source, kept.mean, kept.architecture) == (
        "a run",
        opened.mean,
        opened.architecture,
    )
    assert kept.digest == opened.digest
    tensors = {name: tensor + 1 for name, tensor in opened.tensors.items()}
    save_file(tensors, tmp_path / "pretrained.safetensors")
    with pytest.raises(QuadranasError, match=r"is not the file that pretrained\.json describes"):
        kept_pretrained(tmp_path)
    shutil.rmtree(tmp_path)
    assert kept_pretrained(tmp_path) is None


def test_half_precision_is_converted_and_said(tmp_path: Path) -> None:
    network = quadranet()
    half = {name: tensor.half() for name, tensor in network.state_dict().items()}
    opened = open_pretrained(write(half, tmp_path / "half.safetensors"))
    assert opened.notes == ("values of type float16",)
    assert all(tensor.dtype == torch.float32 for tensor in opened.tensors.values())
    network.load_state_dict(half)
    check_equal(opened, network)


def damaged(kind: str) -> tuple[dict[str, Tensor], str]:
    tensors = published(quadranet())
    names = sorted(tensors)
    if kind == "half":
        return {name: tensors[name] for name in names[: len(names) // 2]}, "is incomplete: there"
    if kind == "stem":
        kept = {n: t for n, t in tensors.items() if not n.startswith("downsample_layers.0")}
        return kept, "do not make a whole QuadraNet: operation 0 .* but receives 3 at"
    if kind == "one":
        del tensors["stages.0.0.norm1.bias"]
        return tensors, "it lacks tensor 'blocks.stage1_block1.quadratic_depthwise.norm.bias'"
    if kind == "nan":
        tensors["norm.weight"][1] = torch.nan
        return tensors, "has 1 of 16 values that are NaN or infinite"
    if kind == "more":
        return tensors | {"stages.0.0.grn.weight": torch.ones(3)}, "has tensors that none has"
    if kind == "shape":
        tensors["stages.1.1.pwconv2.weight"] = torch.ones(16, 3)
        return tensors, r"has shape \(16, 3\), expected \(16, 64\)"
    if kind == "axes":
        tensors["stages.1.1.pwconv1.weight"] = torch.ones(64)
        return tensors, r"expand.weight has shape \(64,\), expected 2 axes"
    if kind == "even":
        for branch in "123":
            tensors[f"stages.0.0.QuadraConv.conv{branch}.weight"] = torch.ones(8, 1, 4, 4)
        return tensors, "kernel_size must be odd, got 4"
    return {"layer1.0.conv1.weight": torch.ones(4, 3, 3, 3)}, "belongs to no known family"


@pytest.mark.parametrize(
    "kind", ["half", "stem", "one", "nan", "more", "shape", "axes", "even", "other"]
)
def test_a_checkpoint_that_does_not_fit_has_one_message(kind: str, tmp_path: Path) -> None:
    tensors, message = damaged(kind)
    path = write(tensors, tmp_path / "weights.safetensors")
    with pytest.raises(QuadranasError, match=message) as raised:
        open_pretrained(path)
    assert str(path) in raised.value.message
    assert raised.value.hint


def test_nothing_that_is_read_executes_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save({"model": Malicious()}, tmp_path / "weights.pth")
    with pytest.raises(QuadranasError, match="refused because it could execute code"):
        open_pretrained(tmp_path / "weights.pth")
    assert capsys.readouterr().out == ""
    with pytest.raises(QuadranasError, match=r"there is no pre-trained network .*no-such\.pth"):
        open_pretrained(tmp_path / "no-such.pth")
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(MissingExtraError, match=r"quadranas\[timm\]"):
        open_pretrained("timm:convnext_tiny")


NETWORKS = {"ConvNeXt": ConvNeXt, "MobileNetV2": MobileNetV2}


@pytest.mark.parametrize("family", NETWORKS)
@pytest.mark.parametrize("nested", [False, True], ids=["independent", "nested"])
def test_the_largest_network_of_a_space_around_it_is_the_network(
    family: str, nested: bool, tmp_path: Path
) -> None:
    network = as_trained(NETWORKS[family]())
    opened = open_pretrained(write(network.state_dict(), tmp_path / "weights.pth"))
    assert opened.family == family
    space = build_space(space_around(opened.architecture, "around", "weights"))
    assert space.num_architectures > 100
    supernet = build_supernet(space, seed=0, nested=nested).eval()
    matches = match_stages(space, opened.architecture, "weights")
    found = embed(supernet, matches, opened.tensors, uses_head=True)
    assert found.deviations == ()
    supernet.set_choices(largest_choices(space))
    x = 3 * torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = network(x)
        assert wanted.std(0).max() > 5e-3
        for computed in (opened.network()(x), supernet(x)):
            torch.testing.assert_close(computed, wanted, rtol=1e-5, atol=1e-5)


MOBILE = load_space("mbconv-quadratic", widths=(4, 3, 4, 5, 6, 7, 8, 9, 12))


@pytest.mark.parametrize("nested", [False, True], ids=["independent", "nested"])
def test_the_largest_network_of_the_quadratic_mobile_space_is_the_network(
    nested: bool, tmp_path: Path
) -> None:
    network = as_trained(MobileNetV2())
    first_order = open_pretrained(write(network.state_dict(), tmp_path / "weights.pth"))
    opened = made_quadratic(first_order, MOBILE)
    assert made_quadratic(opened) is opened
    assert made_quadratic(first_order).architecture == opened.architecture
    supernet = build_supernet(MOBILE.with_num_classes(5), seed=0, nested=nested).eval()
    matches = match_stages(MOBILE, opened.architecture, "weights")
    found = embed(supernet, matches, opened.tensors, uses_head=True)
    assert found.deviations == ()
    optimizer = Inheritance(found, opened.new, PretrainedConfig(rate=0.25)).supernet_optimizer(
        supernet, WeightConfig()
    )
    quadratic = sum(len(g["params"]) for g in optimizer.param_groups if g["role"] == "quadratic")
    names = [name for name, _ in supernet.network.named_parameters()]
    assert quadratic == sum(name.endswith((".a.weight", ".b.weight")) for name in names) > 0
    supernet.set_choices(largest_choices(MOBILE))
    x = 3 * torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = network(x)
        for computed in (opened.network()(x), supernet(x)):
            torch.testing.assert_close(computed, wanted, rtol=1e-5, atol=1e-5)


def test_only_stages_that_are_quadratic_in_the_space_become_quadratic(tmp_path: Path) -> None:
    tensors = as_trained(MobileNetV2()).state_dict()
    opened = open_pretrained(write(tensors, tmp_path / "weights.pth"))
    assert made_quadratic(opened, load_space("mbconv-mobile")) is opened
    file = load_space_file("mbconv-quadratic", widths=(4, 3, 4, 5, 6, 7, 8, 9, 12))
    content = file.model_dump()
    content["stages"][2]["slots"][0]["kind"] = "mbconv"
    space = build_space(SpaceFile.model_validate(content))
    changed = made_quadratic(opened, space)
    match_stages(space, changed.architecture, "weights")
    kinds = {op.kind for block in changed.architecture.blocks for op in block.ops}
    assert {"mbconv", "quadratic_mbconv"} <= kinds
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(changed.network()(x), opened.network()(x), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("family", "number"), [("ConvNeXt", 5), ("MobileNetV2", 17)])
def test_quadratic_factors_start_at_exactly_zero_and_learn(
    family: str, number: int, tmp_path: Path
) -> None:
    network = as_trained(NETWORKS[family]())
    opened = made_quadratic(open_pretrained(write(network.state_dict(), tmp_path / "weights.pth")))
    own = opened.network()
    layers = quadratic_layers(own)
    assert len(layers) == number
    x = torch.randn(2, 3, 32, 32)
    for path, layer in layers.items():
        channels = int(layer.branches["a"].in_channels)  # type: ignore[arg-type]
        _, second = layer.terms(torch.randn(2, channels, 8, 8))
        assert second is not None
        assert not second.any()
        leaves = [name for name, _ in layer.branches["a"].named_parameters()]
        factors = {f"{path}.{branch}.{leaf}" for branch in "ab" for leaf in leaves}
        assert factors <= opened.new
    assert len(opened.new) == 2 * len(leaves) * len(layers)
    own.train()(x).square().sum().backward()
    for layer in layers.values():
        gradients = [parameter.grad for parameter in layer.branches["a"].parameters()]
        assert all(gradient is not None and gradient.any() for gradient in gradients)


def test_timms_names_mean_the_same(tmp_path: Path) -> None:
    tensors = as_trained(ConvNeXt()).state_dict()
    official = open_pretrained(write(tensors, tmp_path / "official.pth"))
    renamed = timm_names(tensors)
    assert "stages.1.blocks.2.mlp.fc1.weight" in renamed
    assert "stages.1.downsample.1.weight" in renamed
    found = open_pretrained(write(renamed, tmp_path / "timm.pth"))
    assert found.digest == official.digest
    assert found.architecture == official.architecture


def test_a_relative_with_other_layers_is_no_mobilenet(tmp_path: Path) -> None:
    tensors = {
        name: tensor
        for name, tensor in MobileNetV2().state_dict().items()
        if not name.startswith("features.16.")
    }
    with pytest.raises(QuadranasError, match="its stages have 1, 2, 3, 4, 3, 2, 1 blocks, those"):
        open_pretrained(write(tensors, tmp_path / "weights.pth"))
    own = build_subnet(
        load_space("mbconv-mobile", widths=(4,) * 9).extreme(count_macs, largest=False)
    )
    with pytest.raises(QuadranasError, match="whose strides its tensors do not tell"):
        open_pretrained(write(own.state_dict(), tmp_path / "own.safetensors"))


def test_a_convnext_does_not_fit_a_quadranet_space(tmp_path: Path) -> None:
    opened = open_pretrained(write(ConvNeXt().state_dict(), tmp_path / "weights.pth"))
    with pytest.raises(
        QuadranasError, match=r"consists of .*quadratic_convnext, the space of .*feed_forward"
    ) as raised:
        match_stages(load_space("toy"), opened.architecture, opened.source)
    assert "quadranas space-from" in raised.value.hint
