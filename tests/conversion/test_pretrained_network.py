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
from quadranas.errors import MissingExtraError, QuadranasError
from quadranas.network.published import published_name
from quadranas.network.skeleton import Network, build_subnet
from quadranas.runs.pretrained_record import PretrainedNote
from quadranas.space.cost import count_macs
from quadranas.space.space_file import load_space
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


@pytest.mark.parametrize("kind", ["half", "one", "nan", "more", "shape", "axes", "even", "other"])
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
    with pytest.raises(QuadranasError, match=r"no-such\.pth"):
        open_pretrained(tmp_path / "no-such.pth")
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(MissingExtraError, match=r"quadranas\[timm\]"):
        open_pretrained("timm:convnext_tiny")
