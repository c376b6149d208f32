"""Folders of images, of a file system or an archive: which splits and classes they contain."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import final

import numpy as np

from quadranas.data.class_names import check_class_name
from quadranas.data.image_files import ImageFiles
from quadranas.data.left_out import LeftOut, described
from quadranas.data.names import SEPARATOR, Names, packed, unpacked
from quadranas.data.source import LAYOUT, Source
from quadranas.errors import QuadranasError

MAX_FOLDER_DEPTH = 6

SPLITS = ("train", "test", "val")


@final
@dataclass(frozen=True)
class Folder:
    """What a folder contains.

    Args:
        folders: its folders by name.
        prefix: the beginning of the paths of its images inside the source, with its slash.
        names: the rest of the paths of its images in alphabetical order; see `names.packed`.
        left_out: the number of files that are not used, by kind.
        changed_ns: time stamp of the last change of its entries, in nanoseconds; 0 if a later
            change might have the same.
    """

    folders: Mapping[str, "Folder"] = field(default_factory=dict)
    prefix: str = ""
    names: bytes = b""
    left_out: Mapping[LeftOut, int] = field(default_factory=dict)
    changed_ns: int = 0

    @property
    def images(self) -> list[str]:
        """The paths of its images in alphabetical order."""
        return [f"{self.prefix}{name}" for name in unpacked(self.names)]

    def walk(self) -> Iterator["Folder"]:
        """The folder and all folders in it."""
        yield self
        for inner in self.folders.values():
            yield from inner.walk()

    @property
    def num_images(self) -> int:
        """The number of its images."""
        return self.names.count(SEPARATOR)

    @property
    def has_images(self) -> bool:
        """Whether there are images in it or in any of its folders."""
        return any(folder.names for folder in self.walk())

    def unused(self) -> Counter[LeftOut]:
        """What is left out of it and its folders, and images that lie beside folders."""
        found: Counter[LeftOut] = Counter()
        for inner in self.folders.values():
            found.update(inner.unused())
        for kind, number in self.left_out.items():
            if kind.is_link or not self.folders:  # lists and licences beside folders are usual
                found[kind] += number
        if self.folders and self.names:
            found[LeftOut("image", beside=True)] += self.num_images
        return found


Member = tuple[tuple[str, ...], str | LeftOut | None]
"""An entry of an archive: the parts of its path, and its path as an image, why it is left out, or
None for a folder."""


def folder_of(members: Iterable[Member]) -> Folder:
    """The folders that an archive contains; of several members of one name, the first counts."""
    root: dict[str, object] = {}
    for parts, content in members:
        if not 0 < len(parts) <= MAX_FOLDER_DEPTH or any(is_hidden(part) for part in parts):
            continue
        folder = root
        for part in parts if content is None else parts[:-1]:
            inner = folder.setdefault(part, {})
            folder = inner if isinstance(inner, dict) else {}
        if content is not None:
            folder.setdefault(parts[-1], content)
    return _frozen(root)


def _frozen(tree: Mapping[str, object]) -> Folder:
    paths = sorted(leaf for leaf in tree.values() if isinstance(leaf, str))
    prefixes = {"".join(path.rpartition("/")[:2]) for path in paths}
    prefix = (
        prefixes.pop() if len(prefixes) == 1 else ""
    )  # archives may spell a folder in two ways
    return Folder(
        {name: _frozen(inner) for name, inner in tree.items() if isinstance(inner, dict)},
        prefix,
        packed(path.removeprefix(prefix) for path in paths),
        Counter(leaf for leaf in tree.values() if isinstance(leaf, LeftOut)),
    )


def is_hidden(name: str) -> bool:
    """Whether a file or folder is one that a system keeps beside the user's."""
    return name.startswith(".") or name == "__MACOSX"


@final
@dataclass(frozen=True)
class ClassFolders:
    """A folder or an archive with one folder of images per class.

    Args:
        path: the folder or archive, as it was given.
        root: what it contains.
        source: the source of the images with given paths.
    """

    path: Path
    root: Folder
    source: Callable[[Names], Source]

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that it is divided into; see `quadranas.data.listing.Contents`."""
        folders = self._split_folders()
        is_divided = "train" in folders and bool(folders["train"].folders)
        return tuple(name for name in SPLITS if name in folders) if is_divided else ()

    def split(self, name: str) -> ImageFiles:
        """The images of one of its splits."""
        return self._listed(self._split_folders()[name], f"{name}/ of {self.path}")

    def undivided(self) -> ImageFiles:
        """All images, from which a test split is held out."""
        folders = self._split_folders()
        if len(folders) > 1 and set(folders) <= set(SPLITS):
            raise QuadranasError(
                f"--data {self.path} has {', '.join(folders)} without class folders", LAYOUT
            )
        return self.everything("--data")

    def everything(self, option: str) -> ImageFiles:
        """All images as one split, whatever the folders are called."""
        return self._listed(_unwrap(self.root), f"{option} {self.path}")

    def _split_folders(self) -> dict[str, Folder]:
        return {name.lower(): inner for name, inner in _unwrap(self.root).folders.items()}

    def _listed(self, folder: Folder, where: str) -> ImageFiles:
        """The images of one folder per class, classes and images in alphabetical order."""
        classes = dict(sorted(folder.folders.items()))
        if not classes:
            raise QuadranasError(f"{where} has no class folders", LAYOUT)
        for name, inner in classes.items():
            check_class_name(name, where)
            _check_class(name, inner, where)
        if len(classes) < 2:
            raise QuadranasError(
                f"{where} has only one class, {next(iter(classes))!r}; at least 2 are needed",
                LAYOUT,
            )
        names = Names.of((inner.prefix, inner.names) for inner in classes.values())
        counts = [inner.num_images for inner in classes.values()]
        return ImageFiles(
            self.source(names),
            np.arange(len(names)),
            np.repeat(np.arange(len(classes)), counts),
            tuple(classes),
            folder.unused(),
        )


def _check_class(name: str, folder: Folder, where: str) -> None:
    """Refuse a class folder without images, or with folders of images."""
    if not folder.names:
        raise QuadranasError(
            f"class folder {name!r} of {where} contains no images"
            f"{described(folder.unused(), '; left out: ')}",
            LAYOUT,
        )
    nested = next((f for inner in folder.folders.values() for f in inner.walk() if f.names), None)
    if nested:
        raise QuadranasError(
            f"image {nested.images[0]} of {where} is in a subfolder of its class folder", LAYOUT
        )


def _unwrap(folder: Folder) -> Folder:
    """The folder without outer ones that contain everything; a single class folder is kept."""
    inner = list(folder.folders.values())
    return _unwrap(inner[0]) if len(inner) == 1 and inner[0].folders else folder
