"""The source of images that are files in a folder."""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, TypeAlias, final

from quadranas.data.class_folders import MAX_FOLDER_DEPTH, ClassFolders, Folder, is_hidden
from quadranas.data.decoding import image_extensions
from quadranas.data.digests import digest_of
from quadranas.data.left_out import LeftOut, left_out_entry
from quadranas.data.names import Names, pack

Scan: TypeAlias = "Callable[[str], AbstractContextManager[Iterator[os.DirEntry[str]]]]"
"""Lists a folder, as `os.scandir` does."""


@final
@dataclass(frozen=True)
class FolderSource:
    """Images that are files in a folder; see `quadranas.data.source.Source`."""

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
    """List a folder of images.

    Raises:
        OSError: a folder cannot be read.
    """
    return ClassFolders(path, scan_folder(path), partial(FolderSource, path))


def scan_folder(path: Path, scan: Scan = os.scandir) -> Folder:
    """Walk over a folder; errors as in `list_folder`.

    Args:
        scan: lists one folder.
    """

    def walk(place: str, prefix: str, depth: int) -> Folder:
        folders: dict[str, Folder] = {}
        images: list[str] = []
        left_out: Counter[LeftOut] = Counter()
        inner: list[tuple[str, str]] = []
        with scan(place) as entries:
            for entry in entries:
                if is_hidden(entry.name):
                    continue
                if entry.is_dir() and depth < MAX_FOLDER_DEPTH:
                    inner.append((entry.name, entry.path))
                elif entry.is_file() and entry.name.lower().endswith(extensions):
                    images.append(f"{prefix}{entry.name}")
                else:
                    left_out[left_out_entry(entry)] += 1
        for name, where in inner:
            folders[name] = walk(where, f"{prefix}{name}/", depth + 1)
        return Folder(folders, pack(images), left_out)

    extensions = image_extensions()
    return walk(str(path), "", 0)
