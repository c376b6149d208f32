"""publish: a folder for a model hub, and what opens it again."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import quadranas
from quadranas.commands.export import export
from quadranas.commands.publish import publish
from quadranas.data.preprocessing import load_preprocessing
from quadranas.deployment.bundle import open_bundle, write_manifest
from quadranas.deployment.manifest import Accuracy, LatencyNote
from quadranas.deployment.publication import hub_card
from quadranas.errors import QuadranasError
from quadranas.network.weights import save_tensors
from quadranas.runs.stored_network import open_network
from tests.bundles import manifest_of
from tests.command_line import call, listing
from tests.contracts.test_names import NAME, check_card

FILES = ("README.md", "config.json", "model.safetensors", "preprocessing.json")
BUNDLE = ("infer.py", "manifest.json", "model-card.md", "model.onnx")
ACCURACY = Accuracy(
    images="digits, test split",
    num_images=359,
    pytorch=0.973,
    exported=0.9721448,
    trained_resolution=32,
    at_trained_resolution=0.973,
)


@pytest.fixture
def exported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished_run: Path, exports: Path
) -> Path:
    """A copy of a run, with a bundle."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished_run, "run")
    return export("run").bundle


def metadata(card: str) -> dict[str, Any]:
    """The YAML at the beginning of a card."""
    empty, front, _ = card.split("---\n", 2)
    assert empty == ""
    content = yaml.safe_load(front)
    assert isinstance(content, dict)
    return content


def test_a_run_is_published_and_opened(exported: Path) -> None:
    hub = Path("hub")
    result = publish(exported, hub, license="mit")
    inside = [f"bundle/{name}" for name in BUNDLE]
    assert result.files == tuple(sorted([*FILES, *inside]))
    assert listing(hub) == sorted([*FILES, "bundle", *inside])
    accuracy = open_bundle(hub / "bundle").manifest.accuracy
    assert accuracy is not None
    assert (result.accuracy, result.num_images) == (accuracy.pytorch, 8)
    assert result.notes == ()
    card = (hub / "README.md").read_text("utf-8")
    assert metadata(card)["license"] == "mit"
    assert 'quadranas.from_pretrained("FOLDER")' in card

    network = quadranas.from_pretrained(hub)
    assert not network.training
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        expected = open_network("run").network().eval()(images)
        assert torch.equal(network(images), expected)
    assert load_preprocessing(hub / "preprocessing.json") == load_preprocessing(
        Path("run/preprocessing.json")
    )


def test_addresses_of_boards_are_not_published(exported: Path) -> None:
    path = exported / "manifest.json"
    content = json.loads(path.read_text("utf-8"))
    content["device"]["reach"] = {
        "ssh": "secret@10.1.2.3",
        "python": "/home/secret/python",
        "ssh_config": "/home/secret/config",
    }
    path.write_text(json.dumps(content), "utf-8")
    publish(exported, "hub", license="mit")
    for found in Path("hub").rglob("*"):
        assert found.is_dir() or b"secret" not in found.read_bytes(), found
    assert open_bundle(Path("hub/bundle")).manifest.device.is_remote


def test_commands_take_a_published_network(exported: Path, pictures: Path) -> None:
    publish(exported, "hub")
    tested = call("eval", "hub", "--data", pictures, "--json").json()
    known = call("eval", "run", "--json").json()
    assert (tested["accuracy"], tested["num_images"]) == (known["accuracy"], 8)
    assert call("profile", "hub", "--json").json()["params"] > 0
    again = call("publish", exported, "hub", "--license", "apache-2.0")
    assert again.code == 2
    assert "hub exists already\nAdd --force to replace it" in again.err
    again = call("publish", exported, "hub", "--license", "apache-2.0", "--force")
    assert again.code == 0, again.err
    assert "licence apache-2.0" in again.out
    assert "upload it with the hub's own tool" in again.out


def test_the_evaluation_is_a_model_index() -> None:
    measured = LatencyNote(device="host", ms=1.25, source="ONNX Runtime, 1 thread")
    manifest = manifest_of("onnx", accuracy=ACCURACY, latency={"measured": measured})
    (index,) = metadata(hub_card(manifest, "mit"))["model-index"]
    assert index["name"] == "toy"
    (found,) = index["results"]
    assert found["task"]["type"] == "image-classification"
    assert found["dataset"] == {"type": "digits--test-split", "name": "digits, test split"}
    assert [(one["type"], one["value"]) for one in found["metrics"]] == [
        ("accuracy", 0.973),
        ("accuracy", 0.972145),
        ("latency", 1.25),
    ]
    assert "model-index" not in metadata(hub_card(manifest_of("onnx"), "mit"))


def test_hostile_names_stay_text() -> None:
    accuracy = ACCURACY.model_copy(update={"images": f"{NAME}\n---\nlicense: other"})
    card = hub_card(manifest_of("onnx", name=NAME, accuracy=accuracy), "mit")
    found = metadata(card)
    assert found["license"] == "mit"
    assert set(found) == {
        *("license", "library_name", "pipeline_tag", "tags", "metrics", "model-index"),
    }
    check_card(card.split("---\n", 2)[2])
    assert [c for c in card if not c.isprintable() and c != "\n"] == []


def test_weights_of_another_network_are_refused(exported: Path, finished_run: Path) -> None:
    tensors = open_network("run").network().state_dict()
    other = next(name for name, tensor in tensors.items() if tensor.is_floating_point())
    tensors[other] = tensors[other] + 1
    save_tensors(tensors, Path("run/subnet.safetensors"))
    with pytest.raises(QuadranasError, match=r"are not those that run/exports/onnx-fp32 was exp"):
        publish(exported, "hub")
    assert not Path("hub").exists()
    assert publish(exported, "hub", model=finished_run).license == "unknown"


def test_bundles_that_cannot_be_published(exported: Path) -> None:
    bundle = open_bundle(exported)
    write_manifest(exported, bundle.manifest.model_copy(update={"weights_sha256": None}))
    with pytest.raises(QuadranasError, match="does not record the weights that the file was"):
        publish(exported, "hub")
    write_manifest(exported, bundle.manifest.model_copy(update={"trained": False}))
    with pytest.raises(QuadranasError, match="was exported untrained: its weights are random"):
        publish(exported, "hub")
    write_manifest(exported, bundle.manifest)
    shutil.copytree(exported, "bundle")
    with pytest.raises(QuadranasError, match="bundle is not in a run folder") as caught:
        publish("bundle", "hub")
    assert "--model RUN" in caught.value.hint
    with pytest.raises(QuadranasError, match="the licence 'My own' is not an identifier"):
        publish(exported, "hub", license="My own")
    (Path("bundle") / "infer.py").write_text("other")
    with pytest.raises(QuadranasError, match="differs from the exported file"):
        publish("bundle", "hub", model="run")
    assert not Path("hub").exists()


def test_files_of_others_are_not_replaced(exported: Path) -> None:
    publish(exported, "hub")
    (Path("hub") / "notes.txt").write_text("mine")
    before = listing(Path("hub"))
    with pytest.raises(QuadranasError, match=r"of another origin, which would be lost: notes.txt"):
        publish(exported, "hub", force=True)
    assert listing(Path("hub")) == before
    with pytest.raises(QuadranasError, match="is a file; the output is a folder"):
        publish(exported, Path("hub") / "notes.txt")


def test_folders_that_hold_no_published_network(exported: Path) -> None:
    for folder in ("run", "nowhere"):
        with pytest.raises(QuadranasError, match="is not a published network") as caught:
            quadranas.from_pretrained(folder)
        assert "open_run(RUN).network()" in caught.value.hint
    publish(exported, "hub")
    weights, config = Path("hub/model.safetensors"), Path("hub/config.json")
    kept = weights.read_bytes()
    weights.unlink()
    with pytest.raises(QuadranasError, match=r"hub has no model.safetensors: the download is inc"):
        quadranas.from_pretrained("hub")
    weights.write_bytes(kept[:-5])
    with pytest.raises(QuadranasError, match=r"cannot read weights hub/model.safetensors"):
        quadranas.from_pretrained("hub")
    weights.write_bytes(kept)
    config.write_text(json.dumps({"architectures": ["ResNet"], "model_type": "resnet"}))
    with pytest.raises(QuadranasError, match=r"hub/config.json: not an architecture file: key"):
        quadranas.from_pretrained("hub")


def test_nothing_in_the_folder_is_executed(exported: Path) -> None:
    """Code and pickles beside the files are not even opened."""
    publish(exported, "hub")
    for name in ("modeling.py", "__init__.py", "quadranas.py", "pytorch_model.bin"):
        (Path("hub") / name).write_text("raise SystemExit(9)")
    quadranas.from_pretrained("hub")
    shutil.copy("hub/config.json", "outside.json")
    Path("hub/config.json").unlink()
    Path("hub/config.json").symlink_to(Path("outside.json").resolve())
    with pytest.raises(QuadranasError, match="is a link out of hub"):
        quadranas.from_pretrained("hub")
