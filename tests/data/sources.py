"""The same pictures in every kind of source; registering one is enough to have it tested."""

import io
import json
import tarfile
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tests.pictures import write_zip

Members = Iterable[tuple[str, bytes]]


def write_tar(path: Path, members: Members) -> Path:
    """A tar file with members of given content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def pictures_in(folder: Path) -> list[tuple[Path, str]]:
    """The image files of a folder with class folders, and their classes."""
    return [(path, path.parent.name) for path in sorted(folder.glob("*/*"))]


def samples_of(folder: Path) -> list[tuple[str, bytes]]:
    """The members of WebDataset shards with the images of a folder."""
    classes = sorted({label for _, label in pictures_in(folder)})
    members = []
    for number, (path, label) in enumerate(pictures_in(folder)):
        members.append((f"{number:06}{path.suffix}", path.read_bytes()))
        if number % 2:
            members.append((f"{number:06}.cls", b"%d\n" % classes.index(label)))
        else:
            content = {"label": classes.index(label), "caption": label}
            members.append((f"{number:06}.json", json.dumps(content).encode()))
    return members


def as_folder(folder: Path, output: Path) -> Path:
    return folder


def as_zip(folder: Path, output: Path) -> Path:
    return write_zip(output.with_suffix(".zip"), folder)


def as_tar(folder: Path, output: Path) -> Path:
    members = ((str(path.relative_to(folder)), path.read_bytes()) for path in folder.glob("*/*/*"))
    return write_tar(output.with_suffix(".tar"), sorted(members))


def as_shards(folder: Path, output: Path) -> Path:
    """Two shards of the training split and one of the test split."""
    train, test = samples_of(folder / "train"), samples_of(folder / "test")
    half = len(train) // 4 * 2
    write_tar(output / "pets-train-0000.tar", train[:half])
    write_tar(output / "pets-train-0001.tar", train[half:])
    write_tar(output / "pets-validation-0000.tar", test)
    names = sorted(path.name for path in (folder / "train").iterdir())
    (output / "classes.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
    return output


def as_parquet(folder: Path, output: Path) -> Path:
    """Two files of the training split, with row groups of five, and one of the test split."""
    classes = sorted(path.name for path in (folder / "train").iterdir())
    for split in ("train", "test"):
        pictures = pictures_in(folder / split)
        parts = [pictures[:7], pictures[7:]] if split == "train" else [pictures]
        for number, part in enumerate(parts):
            name = f"{split}-{number:05}-of-{len(parts):05}.parquet"
            images = [{"bytes": path.read_bytes(), "path": path.name} for path, _ in part]
            labels = [classes.index(label) for _, label in part]
            write_parquet(output / "data" / name, {"image": images, "label": labels}, classes)
    return output


def write_parquet(
    path: Path, columns: dict[str, Any], class_names: list[str] | None = None, **options: Any
) -> Path:
    """A Parquet file, with the hub's metadata if the names of classes are given."""
    import pyarrow
    from pyarrow import parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    table = pyarrow.table(columns)
    if class_names is not None:
        features = {
            "image": {"_type": "Image"},
            "label": {"names": class_names, "_type": "ClassLabel"},
        }
        metadata = {"huggingface": json.dumps({"info": {"features": features}})}
        table = table.replace_schema_metadata(metadata)
    parquet.write_table(table, path, **({"row_group_size": 5} | options))
    return path


SOURCES: dict[str, Callable[[Path, Path], Path]] = {
    "folder": as_folder,
    "zip": as_zip,
    "tar": as_tar,
    "tar shards": as_shards,
}
if find_spec("pyarrow"):
    SOURCES["parquet"] = as_parquet
"""Writes the pictures of a folder with train/ and test/ as a source: folder, place; returns the
path to pass as `--data`."""
