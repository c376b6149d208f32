"""The source of images in tar files, as WebDataset writes them: local, uncompressed, indexed once.

Files with one name up to the first dot form a sample: an image, and its label in a `.cls` file (a
number or a name) or under `label` in a `.json` file. The names of numbered classes stand in
`classes.txt` beside the shards, one per line; without it, the numbers are the names. A single tar
file may instead contain one folder of images per class, as a zip file does.

Format: https://github.com/webdataset/webdataset
"""

import io
import tarfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any, ClassVar, final

import numpy as np
import numpy.typing as npt

from quadranas.data import source
from quadranas.data.class_folders import ClassFolders, Member, folder_of, is_hidden
from quadranas.data.decoding import image_extensions
from quadranas.data.digests import digest_of
from quadranas.data.image_files import ImageFiles
from quadranas.data.index_cache import (
    MIN_IMAGES,
    SETTLED_NS,
    Index,
    load_index,
    save_index,
)
from quadranas.data.labels import label_values
from quadranas.data.left_out import LeftOut, extension_of
from quadranas.data.names import Names, packed
from quadranas.data.shards import Shards, find_shards
from quadranas.data.tar_members import Place, is_plain_file, left_out_member, members_of
from quadranas.errors import QuadranasError, printable, some
from quadranas.files import parse_json, read_text, require_readable

CLASSES_FILE = "classes.txt"
LABELS = (".cls", ".json")
LABEL_KEYS = ("label", "cls", "class")
"""The keys of a label in a sample's JSON file; the first that occurs is used."""

MAX_LABEL_BYTES = 2**20


@final
@dataclass(frozen=True, eq=False)
class TarSource:
    """Images that are members of tar files; see `quadranas.data.source.Source`.

    Args:
        shards: the tar files.
        shard_of, starts, sizes: the `Place` of every image, (N,).
    """

    kind: ClassVar[str] = "tar shards"

    path: Path
    names: Names
    shards: tuple[Path, ...]
    shard_of: npt.NDArray[np.uint32]
    starts: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]

    @classmethod
    def of(
        cls, path: Path, names: Names, shards: Sequence[Path], places: npt.NDArray[np.int64]
    ) -> "TarSource":
        """The source of images at given places, (N, 3)."""
        shard_of, starts, sizes = places.T.copy()
        return cls(path, names, tuple(shards), shard_of.astype(np.uint32), starts, sizes)

    def open(self, number: int, whole: bool) -> IO[bytes]:
        """Read the member."""
        place = self._place(number)
        if place.size > source.MAX_FILE_BYTES:
            raise ValueError(f"it has {place.size} bytes; the limit is {source.MAX_FILE_BYTES}")
        with self.shards[place.shard].open("rb", buffering=0) as file:
            file.seek(place.start)
            content = file.read(place.size)
        if len(content) < place.size:
            raise EOFError(f"its shard {self.shards[place.shard].name} ends early")
        return io.BytesIO(content)

    def num_bytes(self, number: int) -> int:
        """Size of the member in bytes."""
        return self._place(number).size

    def digest(self, number: int, whole: bool) -> str:
        """Digest of the member; False for blocks of a large one."""
        place = self._place(number)
        return digest_of(self.shards[place.shard], whole=whole, start=place.start, size=place.size)

    def _place(self, number: int) -> Place:
        return Place(int(self.shard_of[number]), int(self.starts[number]), int(self.sizes[number]))


@dataclass
class _Sample:
    """The files of one sample: place and extension of its images, and its label."""

    images: list[tuple[str, Place]] = field(default_factory=list)
    label: int | str | None = None


def list_tar(path: Path) -> Shards | ClassFolders:
    """List a tar file, or the tar files in a folder.

    Raises:
        QuadranasError: a shard that is compressed, damaged or ends early.
        OSError: a file cannot be read.
    """
    if path.is_dir():
        return Shards(path, find_shards(path, ".tar"), partial(_list_samples, path))
    require_readable(path, "tar file")
    if any(extension_of(info.name) in LABELS for info, _, _ in members_of(path, 0)):
        return Shards(path, {"": [path]}, partial(_list_samples, path))
    places: dict[str, Place] = {}
    entries: list[Member] = []
    for info, place, _ in members_of(path, 0):
        content = _content(info)
        entries.append((PurePosixPath(info.name).parts, content))
        places.setdefault(info.name, place)
    return ClassFolders(
        path,
        folder_of(entries),
        lambda names: TarSource.of(path, names, [path], _table([places[n] for n in names])),
    )


def _table(places: Sequence[Place]) -> npt.NDArray[np.int64]:
    return np.array(places, dtype=np.int64).reshape(-1, 3)


def _content(info: tarfile.TarInfo) -> str | LeftOut | None:
    """A member as an entry of an archive; see `Member`."""
    if info.isdir():
        return None
    if not is_plain_file(info):
        return left_out_member(info)
    is_image = info.name.lower().endswith(image_extensions())
    return info.name if is_image else LeftOut(extension_of(info.name))


def _list_samples(path: Path, shards: Sequence[Path], where: str) -> ImageFiles:
    """The samples in some shards, in their order, from the index of earlier if nothing changed.

    Args:
        path: the folder or the one shard.
        where: description of the data, for messages.
    """
    kind = f"tar {' '.join(map(str, shards))}"
    stamps = _stamps(path, shards)
    index = load_index(kind, path)
    if index is not None and index.facts["stamps"] == stamps:
        return _restored(path, shards, index)
    files = _read_samples(path, shards, where)
    is_settled = all(time.time_ns() - changed > SETTLED_NS for _, _, changed in stamps)
    if len(files) >= MIN_IMAGES and is_settled:
        save_index(kind, path, _index(files, stamps))
    return files


def _stamps(path: Path, shards: Sequence[Path]) -> list[list[Any]]:
    """Name, size and time of the last change of all files that a listing is made of."""
    files = [*shards, *(file for file in [_classes_file(path)] if file.is_file())]
    stats = [file.stat() for file in files]
    return [
        [printable(file.name), stat.st_size, stat.st_mtime_ns]
        for file, stat in zip(files, stats, strict=True)
    ]


def _index(files: ImageFiles, stamps: list[list[Any]]) -> Index:
    images = files.source
    assert isinstance(images, TarSource)
    facts = {
        "stamps": stamps,
        "class_names": files.class_names,
        "left_out": [[kind.kind, number] for kind, number in files.left_out.items()],
        "prefixes": images.names.folders,
    }
    return Index(
        facts,
        {
            "names": np.frombuffer(images.names.buffer, dtype=np.uint8),
            "bounds": images.names.bounds,
            "shard_of": images.shard_of,
            "starts": images.starts,
            "sizes": images.sizes,
            "labels": files.labels,
        },
    )


def _restored(path: Path, shards: Sequence[Path], index: Index) -> ImageFiles:
    """The reverse of `_index`."""
    facts, arrays = index.facts, index.arrays
    names = Names.restored(facts["prefixes"], arrays["bounds"], arrays["names"].tobytes())
    images = TarSource(
        *(path, names, tuple(shards), arrays["shard_of"], arrays["starts"], arrays["sizes"])
    )
    return ImageFiles(
        *(images, np.arange(len(names)), arrays["labels"], tuple(facts["class_names"])),
        {LeftOut(kind): number for kind, number in facts["left_out"]},
    )


def _read_samples(path: Path, shards: Sequence[Path], where: str) -> ImageFiles:
    """The samples in some shards; arguments as in `_list_samples`."""
    names: list[tuple[str, bytes]] = []
    places: list[npt.NDArray[np.int64]] = []
    values: list[int | str] = []
    left_out: Counter[LeftOut] = Counter()
    for number, shard in enumerate(shards):
        found: list[str] = []
        stored: list[Place] = []
        for key, sample in _samples(shard, number, left_out).items():
            if not sample.images:
                left_out[LeftOut(".cls")] += 1
                continue
            extension, place = _only_image(key, sample, shard)
            found.append(f"{key}{extension}")
            stored.append(place)
            values.append(_label(key, sample, shard))
        prefix = f"{shard.relative_to(path).as_posix()}/" if path.is_dir() else ""
        names.append((prefix, packed(found)))
        places.append(_table(stored))
    if not values:
        raise QuadranasError(
            f"{where} contains no samples with an image, such as 000.jpg with 000.cls",
            source.LAYOUT,
        )
    class_names, labels = label_values(values, _class_names(path), where)
    return ImageFiles(
        TarSource.of(path, Names.of(names), shards, np.concatenate(places)),
        np.arange(len(values)),
        labels,
        class_names,
        left_out,
    )


def _samples(shard: Path, number: int, left_out: Counter[LeftOut]) -> dict[str, _Sample]:
    """The samples of one shard by their key, the path up to the first dot of the file name."""
    samples: dict[str, _Sample] = {}
    for info, place, archive in members_of(shard, number):
        folder, slash, name = info.name.rpartition("/")
        if info.isdir() or is_hidden(name):
            continue
        if not is_plain_file(info):
            left_out[left_out_member(info)] += 1
            continue
        stem, dot, rest = name.partition(".")
        key, extension = f"{folder}{slash}{stem}", f"{dot}{rest}"
        if extension.lower() in image_extensions():
            samples.setdefault(key, _Sample()).images.append((extension, place))
        elif extension.lower() in LABELS:
            sample = samples.setdefault(key, _Sample())
            if sample.label is None or extension.lower() == ".cls":
                sample.label = _stored_label(archive, info, shard)
    return samples


def _stored_label(
    archive: tarfile.TarFile, info: tarfile.TarInfo, shard: Path
) -> int | str | None:
    """The label in a file of a sample; None if a JSON file contains none.

    Raises:
        QuadranasError: the file is too large, or not valid.
    """
    where = f"label {info.name} in {shard}"
    if info.size > MAX_LABEL_BYTES:
        raise QuadranasError(f"{where} has {info.size} bytes; the limit is {MAX_LABEL_BYTES}")
    file = archive.extractfile(info)
    assert file is not None
    try:
        text = file.read().decode("utf-8-sig").strip()
        content = parse_json(text) if info.name.lower().endswith(".json") else _number(text)
    except ValueError as error:
        raise QuadranasError(f"{where} is not valid: {error}", source.LAYOUT) from error
    if isinstance(content, dict):
        content = next((content[key] for key in LABEL_KEYS if key in content), None)
    if content is None or (isinstance(content, int | str) and not isinstance(content, bool)):
        return content if content != "" else None
    raise QuadranasError(
        f"{where} is a {type(content).__name__}; accepted: the number or the name of a class"
    )


def _number(text: str) -> int | str:
    return int(text) if text.lstrip("-").isdecimal() and len(text) < 19 else text


def _only_image(key: str, sample: _Sample, shard: Path) -> tuple[str, Place]:
    if len(sample.images) > 1:
        extensions = some([extension for extension, _ in sample.images])
        raise QuadranasError(
            f"sample {key} in {shard} has {len(sample.images)} images ({extensions}); accepted: 1",
            "Pack only the image to train on, with its label.",
        )
    return sample.images[0]


def _label(key: str, sample: _Sample, shard: Path) -> int | str:
    if sample.label is None:
        raise QuadranasError(
            f"sample {key} in {shard} has no label; accepted: a file {key}.cls with the number or "
            f"the name of its class, or {key}.json with it under {some(LABEL_KEYS)}",
            "Pack the labels with the images, or use one folder of images per class.",
        )
    return sample.label


def _classes_file(path: Path) -> Path:
    return (path if path.is_dir() else path.parent) / CLASSES_FILE


def _class_names(path: Path) -> list[str] | None:
    """The names in `classes.txt` beside the shards; None without the file."""
    file = _classes_file(path)
    if not file.is_file():
        return None
    text = read_text(file, "class names").removeprefix("\ufeff")  # as editors on Windows write
    return [line.strip() for line in text.splitlines() if line.strip()]
