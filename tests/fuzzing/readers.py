"""Every reader of files, with a valid file for it and files that attack it."""

import hashlib
import io
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

from quadranas.acceleration.engine import Engine
from quadranas.backends.interface import Conversion, FileBackend
from quadranas.backends.onnx_file import count_nodes
from quadranas.backends.pytorch_archive import count_targets
from quadranas.backends.registry import open_backend
from quadranas.commands.predict import predict
from quadranas.conversion.adaptation import CHANGES, adapt, load_adapted, save_adapted
from quadranas.conversion.pretrained_network import kept_pretrained, open_pretrained
from quadranas.data.augmentation import Augmenter
from quadranas.data.dataset import load_dataset
from quadranas.data.decoding import read_image
from quadranas.data.folders import folder_from, folder_index, scan_folder
from quadranas.data.index_cache import CACHE_VARIABLE, load_index, save_index
from quadranas.data.preprocessing import load_preprocessing
from quadranas.deployment.bundle import MANIFEST, checksums, open_bundle, write_manifest
from quadranas.inspection.records import Distribution, LayerRecord, StepRecord, read_records
from quadranas.latency.device import load_device
from quadranas.latency.journal import Identity, Journal, read_identity
from quadranas.latency.table_files import load_table
from quadranas.measurement.hand_times import read_times, write_empty_times
from quadranas.network.skeleton import build_subnet
from quadranas.network.weights import load_weights, save_tensors
from quadranas.reporter import Reporter
from quadranas.reports.run_view import read_run
from quadranas.runs import layout
from quadranas.runs.conditions import load_conditions
from quadranas.runs.config import SearchConfig, TrainConfig, load_config
from quadranas.runs.fronts import load_fronts
from quadranas.runs.pretrained_record import PretrainedNote
from quadranas.runs.recipe import load_recipe
from quadranas.runs.results import open_run
from quadranas.runs.run_folder import RunFolder
from quadranas.runs.stored_network import open_network
from quadranas.space.architecture import load_architecture
from quadranas.space.around import space_around
from quadranas.space.cost import count_macs
from quadranas.space.space_file import load_space, load_whole_space
from quadranas.strategies.scores import load_scores
from quadranas.training.teacher import open_teacher
from tests.bundles import device_for, manifest_of, toy_architecture
from tests.command_line import CHECKOUT
from tests.data.sources import samples_of, write_parquet, write_tar
from tests.fuzzing.damage import (
    Spoil,
    spoil_json,
    spoil_lines,
    spoil_nothing,
    spoil_onnx,
    spoil_png,
    spoil_safetensors,
    spoil_yaml,
    spoil_zip,
)
from tests.pictures import noise, write_classes, write_zip

GOLDEN = CHECKOUT / "tests/golden/0.1.0"
IDENTITY: Identity = {"kind": "build-lut", "device": "board", "threads": 1, "precision": None}


class Attack:
    """Starts a program when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.system, ("true",)


def _pickled(**content: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def _bomb(name: str, num_bytes: int) -> bytes:
    """A small zip with a member that unpacks to many zeros."""
    file = io.BytesIO()
    with (
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open(name, "w") as out,
    ):
        for _ in range(num_bytes >> 20):
            out.write(bytes(1 << 20))
    return file.getvalue()


LAUGHS = b"a: &a [x, x]\n" + b"".join(
    b"%c: &%c [*%c, *%c, *%c, *%c, *%c, *%c, *%c, *%c, *%c]\n" % (k + 1, k + 1, *(9 * (k,)))
    for k in range(97, 110)
)
YAML_ATTACKS = (LAUGHS, b"!!python/object/apply:os.system ['true']", b"a: " + b"[" * 5_000)
JSON_ATTACKS = (b"[" * 100_000, b'{"a":' * 100_000, b'{"header": ' + b"9" * 10_000 + b"}")
PICKLES = (pickle.dumps(Attack()), _pickled(model=Attack()))


@dataclass(frozen=True)
class Reader:
    """A reader of files.

    Args:
        functions: the functions that it covers, by itself and by what they call.
        make: writes a valid file, and those that belong to it, into an empty folder, given the
            folder of a finished run; returns the valid file.
        read: reads the file, and uses what it read.
        spoil: damages the structure of the file.
        attacks: files that must be refused, or read without harm; a costly one is a function.
        writes: whether the reader repairs what it reads.
    """

    functions: tuple[str, ...]
    make: Callable[[Path, Path], Path]
    read: Callable[[Path], object]
    spoil: Spoil
    attacks: tuple[bytes | Callable[[], bytes], ...] = ()
    writes: bool = False


def _copy(source: str) -> Callable[[Path, Path], Path]:
    """Copies a file of the checkout."""

    def make(folder: Path, run: Path) -> Path:
        return Path(shutil.copy(CHECKOUT / source, folder))

    return make


def _in_run(name: str) -> Callable[[Path, Path], Path]:
    """Copies a finished run, of which a file will be damaged."""

    def make(folder: Path, run: Path) -> Path:
        shutil.copytree(run, folder, dirs_exist_ok=True)
        shutil.rmtree(folder / layout.TENSORBOARD)
        if name == layout.RECORDS:
            (folder / name).write_text(f"{RECORD.model_dump_json()}\n" * 3, encoding="utf-8")
        return folder / name

    return make


VALUES = Distribution(
    num_values=3, num_nonfinite=0, mean=0.0, std=1.0, max_abs=2.0, quantiles=(0.0,) * 7,
    low=-2.0, high=2.0, counts=(1,) * 40,
)  # fmt: skip
RECORD = StepRecord(step=1, layers={"a": LayerRecord(kind="hadamard", activation=VALUES)})


def _make_weights(suffix: str, *, zipped: bool = True) -> Callable[[Path, Path], Path]:
    def make(folder: Path, run: Path) -> Path:
        path = folder / f"weights{suffix}"
        tensors = build_subnet(toy_architecture()).state_dict()
        if suffix == ".safetensors":
            save_tensors(tensors, path)
        else:
            torch.save({"model": tensors}, path, _use_new_zipfile_serialization=zipped)
        return path

    return make


def _make_pretrained(folder: Path, run: Path) -> Path:
    network = open_pretrained(run)
    note = PretrainedNote(source="run", family=network.family, digest=network.digest)
    network.keep(folder, note)
    return folder / layout.PRETRAINED


def _make_bundle(folder: Path, run: Path) -> Path:
    manifest = manifest_of("onnx")
    shutil.copy(GOLDEN / "bundle-onnx" / manifest.artefact, folder)
    write_manifest(folder, manifest.model_copy(update={"files": checksums(folder)}))
    return folder / MANIFEST


def _make_image(suffix: str, **options: Any) -> Callable[[Path, Path], Path]:
    def make(folder: Path, run: Path) -> Path:
        path = folder / f"image{suffix}"
        Image.fromarray(noise(1, 24, 20, 3)).save(path, **options)
        return path

    return make


def _make_zip(folder: Path, run: Path) -> Path:
    pictures = write_classes(folder / "pictures", count=3)
    path = write_zip(folder / "data.zip", pictures)
    shutil.rmtree(pictures)
    return path


def _make_folder(folder: Path, run: Path) -> Path:
    write_classes(folder / "pictures", count=3)
    return folder / "pictures" / "cat" / "001.png"


INDEXED = Path("/pictures")


def _make_index(folder: Path, run: Path) -> Path:
    found = scan_folder(write_classes(folder / "pictures", count=3))
    shutil.rmtree(folder / "pictures")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CACHE_VARIABLE, str(folder))
        save_index("folder", INDEXED, folder_index(found))
    (path,) = folder.iterdir()
    return path


def _read_index(path: Path) -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CACHE_VARIABLE, str(path.parent))
        index = load_index("folder", INDEXED)
    return index and list(folder_from(index).walk())


def _make_tar(folder: Path, run: Path) -> Path:
    pictures = write_classes(folder / "pictures", count=3)
    path = write_tar(folder / "data.tar", samples_of(pictures))
    shutil.rmtree(pictures)
    return path


def _make_parquet(folder: Path, run: Path) -> Path:
    images = [_make_image(".png")(folder, run).read_bytes()] * 6
    path = write_parquet(folder / "data.parquet", {"image": images, "label": [0, 1] * 3})
    (folder / "image.png").unlink()
    return path


def _make_archive(folder: Path, run: Path) -> Path:
    path = folder / "model.pt2"
    network = nn.Sequential(nn.Conv2d(3, 2, 1), nn.Flatten())
    with closing(open_backend(device_for("torch"), folder)) as backend:
        assert isinstance(backend, FileBackend)
        backend.convert(network.eval(), Conversion(input_shape=(1, 3, 4, 4)), path)
    return path


def _make_adapted(folder: Path, run: Path) -> Path:
    save_adapted(adapt(_base()), folder)
    return folder / CHANGES


def _base() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))


def _make_journal(folder: Path, run: Path) -> Path:
    path = folder / "host.timings"
    with Journal(path, IDENTITY) as journal:
        for number in range(3):
            journal.add("stem", number, [0.1, 0.2])
    return path


def _read_journal(path: Path) -> object:
    read_identity(path)
    with Journal(path, IDENTITY) as journal:
        return journal.num_timings


def _read_checkpoint(path: Path) -> object:
    """A damaged file whose name has the digest of its content."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    path.replace(path.with_name(f"000000009-{digest}.pt"))
    with Reporter(quiet=True) as reporter:
        return RunFolder(path.parents[1]).latest_checkpoint(reporter)


def _make_checkpoint(folder: Path, run: Path) -> Path:
    shutil.copytree(run / layout.CHECKPOINTS, folder / layout.CHECKPOINTS)
    newest, *others = sorted((folder / layout.CHECKPOINTS).iterdir())
    for other in others:
        other.unlink()
    return newest


def _summary(path: Path) -> object:
    table = load_table(path)
    return table.header.summary(), table.header.conditions, len(table.latencies_ms)


def _configuration(path: Path) -> object:
    return load_config(SearchConfig, path)


def _search_space(path: Path) -> object:
    space = load_space(path)
    return space.num_architectures, space.digest


def _report_data(path: Path) -> object:
    return read_run(path.parent)


def _conditions(path: Path) -> object:
    found = load_conditions(path.parent)
    return None if found is None else found.changes(Engine())


def _pretrained(path: Path) -> object:
    """Opens a file of weights, and describes the space around it."""
    opened = open_pretrained(path)
    return space_around(opened.architecture, "around", opened.source), opened.network()


def _teacher(path: Path) -> object:
    data = load_dataset(None, resolution=32)
    config = TrainConfig(teacher=str(path))
    return open_teacher(config, data, Augmenter.of(data), Engine())


def _make_times(folder: Path, run: Path) -> Path:
    write_empty_times(folder, HAND_FILES)
    path = folder / "times.csv"
    text = path.read_text(encoding="utf-8").replace(",,,,,", ",1.5,1.6,1.4,1.5,1e0")
    path.write_text(text, encoding="utf-8")
    return path


OWN_SPACE = """\
name: own
model: mine.py:build
digest: 0123456789abcdef
resolution: 16
num_classes: 2
rest_params: 100
rest_macs: 1000
blocks:
- name: layer1
  layer: layer1
  optional: true
  in_channels: 8
  out_channels: 8
  resolution: 8
  candidates:
  - changes:
    - {name: layer1.conv1, kind: hidden, width: 4, followers: [layer1.bn1, layer1.conv2]}
    params: 50
    macs: 500
  - {params: 100, macs: 1000}
"""


def _make_own_space(folder: Path, run: Path) -> Path:
    path = folder / "own.yaml"
    path.write_text(OWN_SPACE, encoding="utf-8")
    return path


def _make_own_architecture(folder: Path, run: Path) -> Path:
    space = load_space(_make_own_space(folder, run))
    path = folder / "own.json"
    space.architecture({"layer1": (0,)}, "own").save(path)
    return path


HAND_FILES = {f"{number:04d}-abcd.onnx": f"network {number}" for number in range(5)}


READERS = {
    "configuration": Reader(
        ("load_config", "read_config_file", "read_yaml"),
        _in_run(layout.CONFIG), _configuration, spoil_yaml, YAML_ATTACKS,
    ),
    "recipe": Reader(
        ("load_recipe",),
        _copy("quadranas/runs/recipes/imagenet.yaml"), load_recipe, spoil_yaml, YAML_ATTACKS,
    ),
    "space": Reader(
        ("load_space", "load_space_file"),
        _copy("search_spaces/toy.yaml"), _search_space, spoil_yaml, YAML_ATTACKS,
    ),
    "space of one's own model": Reader(
        ("load_space", "load_space_file"),
        _make_own_space, _search_space, spoil_yaml, YAML_ATTACKS,
    ),
    "space of a run": Reader(
        ("load_whole_space", "load_whole_space_file"),
        _in_run(layout.SPACE), load_whole_space, spoil_yaml, YAML_ATTACKS,
    ),
    "device": Reader(
        ("load_device",),
        _copy("quadranas/latency/devices/vpu.yaml"), load_device, spoil_yaml, YAML_ATTACKS,
    ),
    "times by hand": Reader(
        ("read_times",),
        _make_times, lambda path: read_times([path], HAND_FILES, "a space"), spoil_nothing,
        (b'file,time_1_ms\n"' + b"a" * 200_000, b"file,time_s\n" + b"a,1\n" * 100_000, b"file;\0"),
    ),
    "architecture": Reader(
        ("load_architecture", "read_json"),
        _in_run(layout.ARCHITECTURE),
        lambda path: count_macs(load_architecture(path)), spoil_json, JSON_ATTACKS,
    ),
    "architecture of one's own model": Reader(
        ("load_architecture", "read_json"),
        _make_own_architecture,
        lambda path: count_macs(load_architecture(path)), spoil_json, JSON_ATTACKS,
    ),
    "analytic table": Reader(
        ("load_table",), _copy("latency_tables/toy/vpu.json"), _summary, spoil_json, JSON_ATTACKS
    ),
    "measured table": Reader(
        ("load_table",), _copy("tests/golden/0.1.0/host-table.json"), _summary, spoil_json
    ),
    "manifest": Reader(
        ("open_bundle", "read_manifest"),
        _make_bundle, lambda path: open_bundle(path.parent), spoil_json, JSON_ATTACKS,
    ),
    "result": Reader(
        ("open_run", "read_result", "read_as"),
        _in_run(layout.RESULT), lambda path: open_run(path.parent), spoil_json, JSON_ATTACKS,
    ),
    "gates": Reader(
        ("load_scores",),
        _in_run(layout.GATES),
        lambda path: load_scores(path, load_space("toy").with_num_classes(2)), spoil_json,
        JSON_ATTACKS,
    ),
    "fronts": Reader(
        ("load_fronts",), _in_run(layout.PARETO), load_fronts, spoil_json, JSON_ATTACKS
    ),
    "conditions": Reader(
        ("load_conditions",), _in_run(layout.CONDITIONS), _conditions, spoil_json, JSON_ATTACKS
    ),
    "preprocessing": Reader(
        ("load_preprocessing",),
        _in_run(layout.PREPROCESSING), load_preprocessing, spoil_json, JSON_ATTACKS,
    ),
    "metrics": Reader(
        ("read_run", "read_epochs"),
        _in_run(layout.METRICS),
        _report_data,
        spoil_lines,
        JSON_ATTACKS,
    ),
    "inspection": Reader(
        ("read_records", "read_text"),
        _in_run(layout.RECORDS), lambda path: read_records(path.parent), spoil_lines,
        JSON_ATTACKS,
    ),
    "network of a run": Reader(
        ("open_network",),
        _in_run(layout.ARCHITECTURE), lambda path: open_network(path.parent).config_keys,
        spoil_json,
    ),
    "journal": Reader(
        ("read_identity",), _make_journal, _read_journal, spoil_lines, JSON_ATTACKS, writes=True
    ),
    "checkpoint": Reader(
        (), _make_checkpoint, _read_checkpoint, spoil_zip, PICKLES, writes=True
    ),
    "safetensors": Reader(
        ("load_weights", "read_tensors", "load_pretrained", "load_published_weights"),
        _make_weights(".safetensors"),
        lambda path: load_weights(build_subnet(toy_architecture()), path), spoil_safetensors,
        (b"\xff" * 7 + b"\x7f{", *PICKLES),
    ),
    "torch file": Reader(
        ("load_weights", "read_tensors", "load_pretrained", "load_published_weights"),
        _make_weights(".pth"),
        lambda path: load_weights(build_subnet(toy_architecture()), path), spoil_zip, PICKLES,
    ),
    "old torch file": Reader(
        ("load_weights", "read_tensors"),
        _make_weights(".pth", zipped=False),
        lambda path: load_weights(build_subnet(toy_architecture()), path), spoil_nothing,
    ),
    "pre-trained safetensors": Reader(
        ("open_pretrained",),
        _make_weights(".safetensors"), _pretrained, spoil_safetensors, PICKLES,
    ),
    "pre-trained torch file": Reader(
        ("open_pretrained",), _make_weights(".pth"), _pretrained, spoil_zip, PICKLES
    ),
    "pre-trained network of a run": Reader(
        ("load_pretrained_record",),
        _make_pretrained, lambda path: kept_pretrained(path.parent), spoil_json, JSON_ATTACKS,
    ),
    "adapted network": Reader(
        ("load_adapted",),
        _make_adapted, lambda path: load_adapted(_base(), path.parent), spoil_json, JSON_ATTACKS,
    ),
    "ONNX file": Reader(
        ("read_graph",),
        _copy("tests/golden/0.1.0/bundle-onnx/model.onnx"),
        lambda path: predict(path, device="cpu"), spoil_onnx,
    ),
    "quantised ONNX file": Reader(
        ("read_graph",),
        _copy("tests/golden/0.1.0/bundle-int8/model.onnx"),
        lambda path: predict(path, device="cpu"), spoil_onnx,
    ),
    "exported ONNX file": Reader(
        ("read_onnx",),
        _copy("tests/golden/0.1.0/bundle-onnx/model.onnx"), count_nodes, spoil_onnx,
    ),
    "teacher": Reader(
        ("open_teacher",),
        _copy("tests/golden/0.1.0/bundle-onnx/model.onnx"), _teacher, spoil_onnx,
    ),
    "archive of torch.export": Reader(
        ("read_archive",), _make_archive, count_targets, spoil_zip, PICKLES
    ),
    "PNG": Reader(
        ("read_image", "read_pixels"),
        _make_image(".png"), lambda path: read_image(path, 16), spoil_png,
    ),
    "JPEG": Reader(
        ("read_image", "read_pixels"),
        _make_image(".jpg"), lambda path: read_image(path, 16), spoil_nothing,
    ),
    "TIFF": Reader(
        ("read_image", "read_pixels"),
        _make_image(".tif"), lambda path: read_image(path, 16), spoil_nothing,
    ),
    "GIF": Reader(
        ("read_image", "read_pixels"),
        _make_image(".gif"), lambda path: read_image(path, 16), spoil_nothing,
    ),
    "WebP": Reader(
        ("read_image", "read_pixels"),
        _make_image(".webp"), lambda path: read_image(path, 16), spoil_nothing,
    ),
    "image folder": Reader(
        ("load_dataset", "open_contents"),
        _make_folder, lambda path: load_dataset(path.parents[1], resolution=16), spoil_png,
    ),
    "zip of images": Reader(
        ("load_dataset", "open_contents"),
        _make_zip, lambda path: load_dataset(path, resolution=16), spoil_zip,
        (lambda: _bomb("cat/a.png", 1 << 28), *PICKLES),
    ),
    "index of a folder": Reader(
        ("load_index",), _make_index, _read_index, spoil_safetensors,
        (b"\xff" * 7 + b"\x7f{", *PICKLES),
    ),
    "tar shard": Reader(
        ("load_dataset", "open_contents"),
        _make_tar, lambda path: load_dataset(path, resolution=16), spoil_nothing, PICKLES,
    ),
}  # fmt: skip
"""The readers by their format."""

if find_spec("pyarrow"):
    READERS["Parquet file"] = Reader(
        ("load_dataset",),
        *(_make_parquet, lambda path: load_dataset(path, resolution=16), spoil_nothing, PICKLES),
    )
