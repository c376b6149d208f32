"""export: what ONNX Runtime computes, for which networks, and what it leaves behind."""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from quadranas.architecture import Architecture
from quadranas.errors import MissingExtraError, PromiseMissedError, QuadranasError
from quadranas.export import TOLERANCE, export
from quadranas.naming import find_architecture
from quadranas.network import build_subnet
from quadranas.space import load_space
from quadranas.tensor_files import save_tensors
from quadranas.trained import Subject, open_subject
from tests.command_line import call, listing

Scrambler = Callable[..., nn.Module]


def architecture(name: str) -> Architecture:
    """Small networks of every family; of the reference model the first block of each stage."""
    if name == "mbconv":
        space = load_space("mbconv-mobile", widths=(4, 4, 8, 8, 8, 8, 8, 8, 16))
        choices = {b.name: None if b.optional else (0,) * len(b.slots) for b in space.blocks}
        return space.architecture(choices).adapted(resolution=64, num_classes=5)
    if name == "toy":
        space = load_space("toy")
        return space.extreme(lambda spec: spec.kernel_size, largest=True)
    reference = find_architecture("quadranet25_t_q12").adapted(resolution=32, num_classes=3)
    if name == "quadranet25_t_q12":
        return reference
    blocks = [b for b in reference.blocks if b.name.endswith(("entry", "block1", "head"))]
    return reference.model_copy(update={"blocks": tuple(blocks)})


def subject(name: str, folder: Path, scramble: Scrambler) -> Subject:
    """The network with weights for which every tensor matters."""
    described = architecture(name)
    network = scramble(build_subnet(described))
    save_tensors(network.state_dict(), folder / "weights.safetensors")
    return Subject(described, weights=folder / "weights.safetensors")


@pytest.mark.parametrize(
    "name",
    [
        *("toy", "mbconv", "quadranet"),
        pytest.param("quadranet25_t_q12", marks=pytest.mark.slow),
    ],
)
def test_the_file_computes_what_pytorch_computes(
    tmp_path: Path, scramble: Scrambler, name: str
) -> None:
    exported = subject(name, tmp_path, scramble)
    result = export(exported, output=tmp_path / "net.onnx")
    onnx.checker.check_model(str(tmp_path / "net.onnx"), full_check=True)
    session = onnxruntime.InferenceSession(
        str(tmp_path / "net.onnx"), providers=["CPUExecutionProvider"]
    )
    network = exported.network().eval()
    size = exported.architecture.resolution
    for batch in (1, 3, 8):
        images = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(batch))
        with torch.no_grad():
            expected = network(images).numpy()
        (logits,) = session.run(["logits"], {"images": images.numpy()})
        assert logits.shape == (batch, exported.architecture.num_classes)
        assert np.abs(logits - expected).max() <= TOLERANCE * np.abs(expected).max()
    assert 0 <= result["max_abs_error"] < 1e-3
    assert result["top1_agreement"] == 1.0
    assert result["size_bytes"] == (tmp_path / "net.onnx").stat().st_size
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.onnx", "weights.safetensors"]


def test_a_run_through_the_command_line(
    tmp_path: Path, finished_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "run"
    for name in ("architecture.json", "subnet.safetensors", "preprocessing.json"):
        run.mkdir(exist_ok=True)
        (run / name).write_bytes((finished_run / name).read_bytes())
    outcome = call("export", "run", "--format", "onnx")
    assert outcome.code == 0, outcome.err
    assert outcome.err == ""
    first, second = outcome.out.splitlines()
    assert first.startswith("run/subnet.onnx: 0.")
    assert first.endswith("MiB, input 32 pixels")
    assert second.startswith("ONNX Runtime against PyTorch: largest error ")
    assert second.endswith("top-1 agreement 100%")
    before = (run / "subnet.onnx").read_bytes()
    refused = call("export", "run")
    assert refused.code == 2
    assert "run/subnet.onnx exists already\nAdd --force to replace it" in refused.err
    assert (run / "subnet.onnx").read_bytes() == before
    forced = call("export", "run", "--force", "--resolution", "64", "--json").json()
    assert (forced["resolution"], forced["predicted_ms"]) == (64, None)
    named = call(
        *("export", "run/architecture.json", "--weights", "run/subnet.safetensors", "--json")
    )
    assert named.json()["path"] == "subnet.onnx"
    assert named.json()["predicted_ms"] <= 0.8
    assert listing(run) == sorted(
        ["architecture.json", "preprocessing.json", "subnet.onnx", "subnet.safetensors"]
    )


@pytest.mark.parametrize("fault", ["wrong", "interrupted"])
def test_a_file_that_fails_the_check_replaces_nothing(
    tmp_path: Path, finished_run: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    (tmp_path / "net.onnx").write_text("the old one", encoding="utf-8")

    def save(network: nn.Module, resolution: int, path: Path) -> tuple[float, float, float]:
        path.write_text("the new one", encoding="utf-8")
        if fault == "interrupted":
            raise KeyboardInterrupt
        return 5.0, 0.5, 0.0

    monkeypatch.setattr("quadranas.export._save", save)
    raised = PromiseMissedError if fault == "wrong" else KeyboardInterrupt
    with pytest.raises(raised) as caught:
        export(open_subject(str(finished_run)), output=tmp_path / "net.onnx", force=True)
    if fault == "wrong":
        assert "largest error 5, 0.5 of the largest logit; accepted: 0.001" in str(caught.value)
        outcome = call("export", finished_run, "--output", tmp_path / "net.onnx", "--force")
        assert outcome.code == 3
    assert (tmp_path / "net.onnx").read_text(encoding="utf-8") == "the old one"
    assert listing(tmp_path) == ["net.onnx"]


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_extra_is_named(
    tmp_path: Path, finished_run: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=r"pip install 'quadranas\[onnxruntime\]'"):
        export(open_subject(str(finished_run)), output=tmp_path / "net.onnx")
    outcome = call("export", finished_run, "--output", tmp_path / "net.onnx", "--json")
    assert outcome.code == 2
    assert outcome.json()["error"] == f"'onnxruntime' needs the package {package!r}"
    assert listing(tmp_path) == []


def test_a_folder_that_cannot_be_written(tmp_path: Path, finished_run: Path) -> None:
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    with pytest.raises(QuadranasError, match=r"cannot write .*/net\.onnx: File exists"):
        export(open_subject(str(finished_run)), output=tmp_path / "file" / "net.onnx")
    assert listing(tmp_path) == ["file"]
