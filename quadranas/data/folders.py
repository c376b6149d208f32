"""The source of images that are files in a folder."""

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, ClassVar, TypeAlias, final

import numpy as np

from quadranas.data.class_folders import MAX_FOLDER_DEPTH, ClassFolders, Folder, is_hidden
from quadranas.data.decoding import image_extensions
from quadranas.data.digests import digest_of
from quadranas.data.index_cache import (
    MIN_IMAGES,
    SETTLED_NS,
    Index,
    load_index,
    save_index,
)
from quadranas.data.left_out import LeftOut, left_out_entry
from quadranas.data.names import Names, packed

Stat: TypeAlias = Callable[[str], os.stat_result]
Scan: TypeAlias = "Callable[[str], AbstractContextManager[Iterator[os.DirEntry[str]]]]"
"""Lists a folder, as `os.scandir` does."""


@final
@dataclass(frozen=True)
class FolderSource:
    """Images that are files in a folder; see `quadranas.data.source.Source`."""

    kind: ClassVar[str] = "folder"

    path: Path
    names: Names

    def open(self, number: int, whole: bool) -> IO[bytes]:
        """Open the file, which is read where it is needed in any case."""
        return (self.path / self.names[number]).open("rb")

    def num_bytes(self, number: int) -> int:
        """Size of the file in bytes."""
        return (self.path / self.names[number]).stat().st_size

    def digest(self, number: int, whole: bool) -> str:
        """Digest of the file; False for blocks of a large one."""
        return digest_of(self.path / self.names[number], whole=whole)


def list_folder(path: Path) -> ClassFolders:
    """List a folder of images; of a large one, only the folders that have changed since last time.

    Raises:
        OSError: a folder cannot be read.
    """
    known = _known(path)
    root = scan_folder(path, known)
    if root != known and sum(folder.num_images for folder in root.walk()) >= MIN_IMAGES:
        save_index("folder", path, folder_index(root))
    return ClassFolders(path, root, partial(FolderSource, path))


def _known(path: Path) -> Folder | None:
    """What a folder contained when it was listed before; None if that is not known."""
    index = load_index("folder", path)
    return None if index is None else folder_from(index)


def scan_folder(
    path: Path,
    known: Folder | None = None,
    *,
    scan: Scan = os.scandir,
    stat: Stat = os.stat,
) -> Folder:
    """Walk over a folder; errors as in `list_folder`.

    Args:
        known: what it contained before. Folders whose time stamp is the same are not read again.
        scan: lists one folder.
        stat: gives the time stamp of one.
    """

    def walk(place: str, prefix: str, depth: int, known: Folder | None) -> Folder:
        changed_ns = stat(place).st_mtime_ns
        if known is not None and known.changed_ns == changed_ns != 0:
            inner = {name: f"{place}{os.sep}{name}" for name in known.folders}
            names, left_out = known.names, known.left_out
        else:
            with scan(place) as entries:
                names, left_out, inner = _listed(entries, depth)
            has_links = any(kind.is_link for kind in left_out)  # whose targets may appear
            is_settled = started_ns - changed_ns > SETTLED_NS and not has_links
            changed_ns = changed_ns if is_settled else 0
        before = {} if known is None else known.folders
        folders = {
            name: walk(where, f"{prefix}{name}/", depth + 1, before.get(name))
            for name, where in inner.items()
        }
        return Folder(folders, prefix, names, left_out, changed_ns)

    started_ns = time.time_ns()
    return walk(str(path), "", 0, known)


def _listed(
    entries: "Iterator[os.DirEntry[str]]", depth: int
) -> tuple[bytes, Counter[LeftOut], dict[str, str]]:
    """What a folder contains: names of images, what is left out, and the paths of its folders."""
    extensions = image_extensions()
    inner: dict[str, str] = {}
    images: list[str] = []
    left_out: Counter[LeftOut] = Counter()
    for entry in entries:
        if is_hidden(entry.name):
            continue
        is_folder, is_file = _kind(entry)
        if is_folder and depth < MAX_FOLDER_DEPTH:
            inner[entry.name] = entry.path
        elif is_file and entry.name.lower().endswith(extensions):
            images.append(entry.name)
        else:
            left_out[left_out_entry(entry)] += 1
    return packed(sorted(images)), left_out, inner


def _kind(entry: "os.DirEntry[str]") -> tuple[bool, bool]:
    """Whether an entry is a folder, and whether it is a file; neither for a link to itself."""
    try:
        return entry.is_dir(), entry.is_file()
    except OSError:
        if entry.is_symlink():
            return False, False
        raise


def folder_index(root: Folder) -> Index:
    """A folder as an index: the facts of every folder before those in it, and all paths."""
    facts: list[dict[str, Any]] = []

    def add(name: str, folder: Folder) -> None:
        facts.append(
            {
                "name": name,
                "changed_ns": folder.changed_ns,
                "num_folders": len(folder.folders),
                "num_bytes": len(folder.names),
                "left_out": [[kind.kind, n] for kind, n in folder.left_out.items()],
            }
        )
        for inner_name, inner in folder.folders.items():
            add(inner_name, inner)

    add("", root)
    names = b"".join(folder.names for folder in root.walk())
    return Index({"folders": facts}, {"names": np.frombuffer(names, dtype=np.uint8)})


def folder_from(index: Index) -> Folder:
    """The reverse of `folder_index`."""
    names = index.arrays["names"]
    facts = iter(index.facts["folders"])
    start = 0

    def next_folder(prefix: str, is_root: bool = False) -> tuple[str, Folder]:
        nonlocal start
        fact = next(facts)
        part = names[start : start + fact["num_bytes"]].tobytes()
        start += fact["num_bytes"]
        prefix = "" if is_root else f"{prefix}{fact['name']}/"
        folders = dict(next_folder(prefix) for _ in range(fact["num_folders"]))
        left_out = Counter({LeftOut(kind): n for kind, n in fact["left_out"]})
        return fact["name"], Folder(folders, prefix, part, left_out, fact["changed_ns"])

    return next_folder("", is_root=True)[1]
