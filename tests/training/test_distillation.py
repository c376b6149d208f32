"""Distillation: the loss, what a teacher sees, the kinds of teachers, and bad ones."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

from quadranas.acceleration.engine import Engine
from quadranas.commands.export import export
from quadranas.commands.train import train
from quadranas.data.augmentation import AugmentConfig, Augmenter
from quadranas.data.batch import Batch
from quadranas.data.dataset import Dataset, load_dataset
from quadranas.errors import MissingExtraError, QuadranasError, RunInterruptedError
from quadranas.runs.config import DistillationConfig, TrainConfig, WeightConfig
from quadranas.runs.run_folder import RunFolder
from quadranas.runs.stored_network import open_network
from quadranas.training.distillation import distilled_loss
from quadranas.training.teacher import Teacher, open_teacher
from tests.acceleration.processes import run_together
from tests.command_line import SMALL, Server, call, contents
from tests.onnx_files import write


@pytest.fixture(scope="module")
def data(pictures: Path) -> Dataset:
    return load_dataset(pictures, resolution=32)


def opened(data: Dataset, **keys: Any) -> Teacher:
    teacher = open_teacher(TrainConfig(**keys), data, Augmenter.of(data), Engine())
    assert teacher is not None
    return teacher


def test_the_loss_is_that_of_labels_and_teacher() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, wanted = torch.randn(2, 5, 4, generator=generator, dtype=torch.float64)
    targets = torch.eye(4, dtype=torch.float64)[[0, 1, 2, 3, 0]]
    teacher = Teacher("t", lambda images: wanted, resolution=8, digest="")
    config = DistillationConfig(weight=0.3, temperature=4.0)
    augmenter = Augmenter(AugmentConfig(), num_classes=4, mean=(0, 0, 0), std=(1, 1, 1))
    loss = distilled_loss(WeightConfig(label_smoothing=0), teacher, config, augmenter)
    p, q = (np.exp(x.numpy() / 4) for x in (wanted, logits))
    p, q = p / p.sum(1, keepdims=True), q / q.sum(1, keepdims=True)
    divergence = (p * (np.log(p) - np.log(q))).sum(1).mean()
    labels = functional.cross_entropy(logits, targets)
    found = loss(logits, Batch(torch.zeros(5, 3, 8, 8), targets))
    assert float(found) == pytest.approx(0.7 * float(labels) + 0.3 * 16 * divergence)


def test_a_teacher_sees_the_images_in_its_own_size_and_normalisation() -> None:
    seen: list[Tensor] = []

    def compute(images: Tensor) -> Tensor:
        seen.append(images)
        return images.mean((2, 3))

    mean, std = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.5, 0.6, 0.7])
    columns: dict[str, Any] = {"mean": mean.view(1, 3, 1, 1), "std": std.view(1, 3, 1, 1)}
    pixels = torch.rand(2, 3, 16, 16, dtype=torch.float64)
    own_mean, own_std = torch.full((1, 3, 1, 1), 0.4), torch.full((1, 3, 1, 1), 0.2)
    normalised = (pixels - own_mean) / own_std
    teacher = Teacher("t", compute, 16, "", **columns)
    teacher.logits(normalised, own_mean, own_std)
    torch.testing.assert_close(seen[0], (pixels - columns["mean"]) / columns["std"])
    Teacher("t", compute, 8, "", **columns).logits(normalised, own_mean, own_std)
    assert seen[1].shape == (2, 3, 8, 8)
    # Halving the size with antialiasing keeps the mean.
    torch.testing.assert_close(seen[1].mean((2, 3)), seen[0].mean((2, 3)), rtol=0, atol=0.05)


@pytest.mark.usefixtures("exports")
def test_a_run_and_its_exported_file_are_the_same_teacher(
    finished_run: Path, data: Dataset, tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime")
    file = export(finished_run, device="host", format="onnx", output=tmp_path / "bundle").path
    batch = Augmenter.of(data).plain(data.train.batch(torch.arange(5)))
    statistics = Augmenter.of(data).statistics(batch.device)
    teachers = [opened(data, teacher=str(place)) for place in (finished_run, file)]
    found = [teacher.logits(batch, *statistics) for teacher in teachers]
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)
    assert teachers[1].class_names == data.class_names
    stored = open_network(finished_run)
    with torch.no_grad():
        expected = stored.network().eval()(batch)
    torch.testing.assert_close(found[0], expected)
    named: dict[str, Any] = {"teacher": str(finished_run / "architecture.json")}
    weights = str(finished_run / "subnet.safetensors")
    by_file = opened(data, **named, teacher_weights=weights)
    torch.testing.assert_close(by_file.logits(batch, *statistics), expected)


def onnx_file(path: Path, classes: int = 2, image: Any = (1, 3, 24, 24)) -> Path:
    """A network whose logits are the means of the first channels."""
    pytest.importorskip("onnxruntime")
    nodes = """
        pooled = GlobalAveragePool (x)
        flat = Flatten (pooled)
        y = Gather <axis = 1> (flat, kept)
    """
    return write(path, nodes, {"kept": list(range(classes))}, image)


def test_a_file_for_one_image_at_a_time_is_a_teacher(data: Dataset, tmp_path: Path) -> None:
    file = onnx_file(tmp_path / "one.onnx")
    teacher = opened(data, teacher=str(file))
    assert teacher.resolution == 24
    images = torch.randn(5, 3, 24, 24)
    zero, one = torch.zeros(1, 3, 1, 1), torch.ones(1, 3, 1, 1)
    expected = images.mean((2, 3))[:, :2]
    torch.testing.assert_close(teacher.logits(images, zero, one), expected)
    several = onnx_file(tmp_path / "three.onnx", image=(3, 3, 24, 24))
    found = opened(data, teacher=str(several)).logits(images, zero, one)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    "image",
    [("B", 3, "R", "R"), (None, 3, None, None), ("B", 3, "height", "width"), (1, "C", "H", "W")],
)
def test_a_file_for_images_of_any_size_needs_their_size(
    data: Dataset, tmp_path: Path, image: Any
) -> None:
    images = torch.randn(5, 3, 24, 24)
    zero, one = torch.zeros(1, 3, 1, 1), torch.ones(1, 3, 1, 1)
    file = str(onnx_file(tmp_path / "any.onnx", image=image))
    found = opened(data, teacher=file, teacher_resolution=24).logits(images, zero, one)
    torch.testing.assert_close(found, images.mean((2, 3))[:, :2])
    with pytest.raises(QuadranasError, match="takes images of any size"):
        opened(data, teacher=file)


def test_one_known_side_is_the_size_of_a_file(data: Dataset, tmp_path: Path) -> None:
    file = onnx_file(tmp_path / "one.onnx", image=("B", 3, 24, "W"))
    assert opened(data, teacher=str(file)).resolution == 24


def test_teachers_that_do_not_fit_are_refused(
    finished_run: Path, data: Dataset, tmp_path: Path
) -> None:
    def message(**keys: Any) -> str:
        with pytest.raises(QuadranasError) as caught:
            opened(data, **keys)
        assert caught.value.hint
        return caught.value.message

    three = onnx_file(tmp_path / "three.onnx", classes=3)
    assert "tells 3 classes apart; the data have 2" in message(teacher=str(three))
    grey = onnx_file(tmp_path / "grey.onnx", classes=1, image=(1, 1, 24, 24))
    assert "a teacher takes square images, float [B, 3, R, R]" in message(teacher=str(grey))
    fixed = onnx_file(tmp_path / "fixed.onnx")
    assert "refuses images of 32 pixels" in message(teacher=str(fixed), teacher_resolution=32)
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no network")
    assert f"ONNX Runtime cannot read the teacher {broken}" in message(teacher=str(broken))
    with pytest.raises(QuadranasError, match="cannot read teacher"):
        opened(data, teacher=str(tmp_path / "absent.onnx"))
    weights = str(finished_run / "subnet.safetensors")
    assert "holds its weights" in message(teacher=str(fixed), teacher_weights=weights)
    named = str(finished_run / "architecture.json")
    assert "has no trained weights" in message(teacher=named)
    copy = tmp_path / "run"
    shutil.copytree(finished_run, copy)
    known = json.loads((copy / "preprocessing.json").read_text("utf-8"))
    known["class_names"] = ["cat", "wolf"]
    (copy / "preprocessing.json").write_text(json.dumps(known))
    assert "first: 'wolf' instead of 'dog'" in message(teacher=str(copy))


@pytest.mark.parametrize(
    ("last", "message"),
    [
        (
            "y = ReduceMean <keepdims = 0> (flat)",
            r"is torch\.float32 \[2\] for 2 images; expected",
        ),
        ("y = Identity (pooled)", r"is torch\.float32 \[2, 3, 1, 1\] for 2 images; expected"),
        ("y = Log (kept)", "outputs numbers that are not finite"),
    ],
)
def test_outputs_that_are_no_logits_are_refused(
    data: Dataset, tmp_path: Path, last: str, message: str
) -> None:
    pytest.importorskip("onnxruntime")
    nodes = f"""
        pooled = GlobalAveragePool (x)
        flat = Flatten (pooled)
        first = Gather <axis = 1> (flat, indices)
        square = Mul (first, first)
        kept = Neg (square)
        {last}
    """
    file = write(tmp_path / "a.onnx", nodes, {"indices": [0, 1]}, (1, 3, 24, 24))
    with pytest.raises(QuadranasError, match=message):
        opened(data, teacher=str(file))


@pytest.mark.parametrize(
    ("names", "first"),
    [(["cat"], "None instead of 'dog'"), (["cat", "dog", "emu"], "'emu' instead of None")],
)
def test_a_file_beside_another_number_of_class_names_is_refused(
    data: Dataset, tmp_path: Path, names: list[str], first: str
) -> None:
    file = onnx_file(tmp_path / "model.onnx")
    (tmp_path / "manifest.json").write_text(json.dumps({"class_names": names}))
    with pytest.raises(QuadranasError, match=f"other classes than .* first: {first}"):
        opened(data, teacher=str(file))


def test_a_teacher_of_timm_needs_timm(data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(MissingExtraError, match="'timm' needs the package 'timm'"):
        opened(data, teacher="timm:resnet18")


def test_a_teacher_of_timm_brings_its_size_and_normalisation(
    data: Dataset, tmp_path: Path
) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    network = timm.create_model("resnet10t", pretrained=False, num_classes=2).eval()
    weights = tmp_path / "weights.pt"
    torch.save(network.state_dict(), weights)
    teacher = opened(data, teacher="timm:resnet10t", teacher_weights=str(weights))
    expected = timm.data.resolve_model_data_config(network)
    assert teacher.resolution == expected["input_size"][-1]
    assert teacher.mean is not None
    assert teacher.mean.flatten().tolist() == pytest.approx(expected["mean"])
    images = torch.randn(2, 3, teacher.resolution, teacher.resolution)
    assert teacher.std is not None
    found = teacher.logits(images, teacher.mean, teacher.std)
    with torch.no_grad():
        torch.testing.assert_close(found, network(images), rtol=1e-3, atol=1e-4)


def test_a_training_with_a_teacher_resumes_bit_identical(
    finished_run: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    teacher = shutil.copytree(finished_run, tmp_path / "teacher")
    config = TrainConfig(
        data=str(pictures),
        teacher="teacher",
        **{"epochs": 2, "batch_size": 4, "checkpoint_seconds": 0.0},
    )
    architecture = finished_run / "architecture.json"
    train(architecture, config, output=tmp_path / "whole")
    alone = config.model_copy(update={"teacher": None})
    train(architecture, alone, output=tmp_path / "alone")
    assert f"teacher: {teacher}" in (tmp_path / "whole" / "config.yaml").read_text("utf-8")
    real, calls = RunFolder.save_checkpoint, [0]

    def killed(self: RunFolder, state: Any) -> None:
        real(self, state)
        calls[0] += 1
        if calls[0] % 3 == 0:
            raise KeyboardInterrupt

    monkeypatch.setattr(RunFolder, "save_checkpoint", killed)
    with pytest.raises(RunInterruptedError):
        train(architecture, config, output=tmp_path / "parts")
    monkeypatch.chdir(tmp_path.parent)
    monkeypatch.setattr(RunFolder, "save_checkpoint", real)
    weights = teacher / "subnet.safetensors"
    given = load_file(weights)
    save_file({name: tensor + 1 for name, tensor in given.items()}, weights)
    with pytest.raises(QuadranasError, match="learned from a teacher whose weights"):
        train(output=tmp_path / "parts", resume=True)
    save_file(given, weights)
    train(output=tmp_path / "parts", resume=True)
    names = ("metrics.jsonl", "subnet.safetensors")
    parts, whole, other = (contents(tmp_path / n, names) for n in ("parts", "whole", "alone"))
    assert parts == whole
    assert other != whole


def test_two_processes_search_with_a_teacher_as_one_does(
    finished_run: Path, pictures: Path, tmp_path: Path, server: Server
) -> None:
    (tmp_path / "c.yaml").write_text(SMALL.format(pictures=pictures))
    search = (
        *("search", "--space", "toy", "--device", "vpu", "--budget", "1ms", "--json"),
        *("--config", str(tmp_path / "c.yaml"), "--teacher", str(finished_run)),
    )
    assert call(*search, "--output", tmp_path / "one").code == 0
    outcomes = run_together(server, tmp_path / "two", 2, *search, "--output", "run")
    assert [outcome.code for outcome in outcomes] == [0, 0], outcomes[0].err
    places = (tmp_path / "one", tmp_path / "two" / "run")
    one, two = ((place / "metrics.jsonl").read_text("utf-8").splitlines() for place in places)
    for here, there in zip(map(json.loads, one), map(json.loads, two), strict=True):
        assert here.pop("phase") == there.pop("phase")
        assert here == pytest.approx(there, rel=1e-3)
