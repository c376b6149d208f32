"""Weights in other files: which are opened, and which are not."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from quadranas.errors import QuadranasError
from quadranas.prediction.graph import read_graph
from tests.onnx_files import model


def write_external(folder: Path, location: str = "w.bin") -> Path:
    """A file whose weights, and the small integers that a shape depends on, are in another."""
    folder.mkdir(parents=True, exist_ok=True)
    whole = model("a = Conv(x, w)\ny = Reshape(a, s)", {"w": (8, 8, 16, 16), "s": [2, 4, 1, 1]})
    path = folder / "net.onnx"
    onnx.save(whole, path, save_as_external_data=True, location="w.bin", size_threshold=0)
    loaded = onnx.load(path, load_external_data=False)
    for tensor in loaded.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    path.write_bytes(loaded.SerializeToString())
    return path


def as_cache(folder: Path) -> Path:
    """Both files are links into a folder of contents, as in Hugging Face's cache."""
    write_external(folder / "blobs")
    snapshot = folder / "snapshots" / "main"
    snapshot.mkdir(parents=True)
    for name in ("net.onnx", "w.bin"):
        (snapshot / name).symlink_to(Path("../../blobs") / name)
    return snapshot / "net.onnx"


def weights_linked(folder: Path) -> Path:
    """A copy of the file, and a link to its weights, as for a folder outside the cache."""
    path = write_external(folder / "model")
    store = folder / "store"
    store.mkdir()
    (folder / "model" / "w.bin").rename(store / "contents")
    (folder / "model" / "w.bin").symlink_to(store / "contents")
    return path


def hard_link(folder: Path) -> Path:
    path = write_external(folder / "model")
    os.link(folder / "model" / "w.bin", folder / "second")
    return path


def below(folder: Path) -> Path:
    path = write_external(folder, "weights/w.bin")
    (folder / "weights").mkdir()
    (folder / "w.bin").rename(folder / "weights" / "w.bin")
    return path


@pytest.mark.parametrize("lay_out", [as_cache, weights_linked, hard_link, below])
def test_links_that_this_machine_made_are_followed(
    tmp_path: Path, lay_out: Callable[[Path], Path]
) -> None:
    assert read_graph(lay_out(tmp_path)).shapes["y"] == (2, 4, 1, 1)


@pytest.mark.parametrize(
    "location", ["{}/w.bin", "../w.bin", "a/../../w.bin", "a\\..\\..\\w.bin", "C:\\w.bin", ""]
)
def test_a_file_cannot_choose_a_place_outside_its_folder(tmp_path: Path, location: str) -> None:
    path = write_external(tmp_path / "model", location.format(tmp_path))
    (tmp_path / "model" / "w.bin").rename(tmp_path / "w.bin")
    with pytest.raises(QuadranasError, match="is not below the folder of the ONNX file"):
        read_graph(path)


def become_pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda file: file.unlink(),
        lambda file: file.write_bytes(file.read_bytes()[:-1]),
        lambda file: (file.unlink(), file.mkdir()),
        become_pipe,
        lambda file: (file.unlink(), file.symlink_to("/dev/zero")),
        lambda file: (file.unlink(), file.symlink_to(file)),
    ],
)
def test_weights_that_are_not_there(tmp_path: Path, spoil: Callable[[Path], object]) -> None:
    path = write_external(tmp_path)
    spoil(tmp_path / "w.bin")
    with pytest.raises(QuadranasError, match=r"'w.bin' is missing or truncated"):
        read_graph(path)


@pytest.mark.parametrize("key", ["offset", "length"])
@pytest.mark.parametrize("value", ["-1", "x", str(2**70), "9" * 5000])
def test_offsets_that_are_no_places(tmp_path: Path, key: str, value: str) -> None:
    path = write_external(tmp_path)
    loaded = onnx.load(path, load_external_data=False)
    data = loaded.graph.initializer[1].external_data
    (entry,) = [entry for entry in data if entry.key == key]
    entry.value = value
    path.write_bytes(loaded.SerializeToString())
    with pytest.raises(QuadranasError, match=r"'w.bin' is missing or truncated"):
        read_graph(path)


def test_a_device_is_not_read(tmp_path: Path) -> None:
    pipe = tmp_path / "net.onnx"
    os.mkfifo(pipe)
    for path in (Path("/dev/zero"), pipe):
        with pytest.raises(QuadranasError, match="not a file"):
            read_graph(path)


def test_weights_in_a_branch_are_checked_too(tmp_path: Path) -> None:
    whole = model("y = Relu(x)", {"c": 1.0})
    tensor = onnx.numpy_helper.from_array(np.zeros(3, np.float32), "t")
    onnx.external_data_helper.set_external_data(tensor, "/etc/hostname")
    branch = onnx.helper.make_graph([], "branch", [], [], [tensor])
    whole.graph.node.append(onnx.helper.make_node("If", ["c"], ["z"], then_branch=branch))
    (tmp_path / "net.onnx").write_bytes(whole.SerializeToString())
    with pytest.raises(QuadranasError, match="'/etc/hostname' is not below the folder"):
        read_graph(tmp_path / "net.onnx")
