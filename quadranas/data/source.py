"""Folders and zip files with images: listed once, and read by the paths of their members."""

import io
import os
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, TypeAlias
from weakref import finalize

from quadranas.data.decoding import image_extensions
from quadranas.data.digests import digest_of
from quadranas.data.left_out import (
    LeftOut,
    described,
    is_zipped_link,
    left_out_entry,
    left_out_of,
    left_out_zipped,
)
from quadranas.errors import QuadranasError, refuse_unwritable
from quadranas.files import require_readable

MAX_FILE_BYTES = 256 * 2**20
"""Maximum uncompressed size of a zip member."""

MAX_FOLDER_DEPTH = 6

LAYOUT = (
    "Accepted: a folder or a zip file with train/ and test/ or val/, each with one folder of "
    "images per class; or with class folders only."
)

Tree: TypeAlias = "dict[str, Tree | str | LeftOut]"


@dataclass(frozen=True)
class Source:
    """A folder or a zip file with images.

    Args:
        tree: the folders as nested dicts; leaves are the paths of images, and what is left out.
        open: opens an image by its path; True to read the whole file, False for its header.
        num_bytes: the size of an image file by its path.
        digest: the digest of an image file by its path; True to digest the whole file, False for
            samples of a large one.
    """

    path: Path
    tree: Tree
    open: Callable[[str, bool], IO[bytes]]
    num_bytes: Callable[[str], int]
    digest: Callable[[str, bool], str]


def open_source(path: Path, option: str) -> Source:
    """List the images of a folder or a zip file.

    Raises:
        QuadranasError: the path is missing, damaged, without images, or neither folder nor zip.
    """
    refuse_unwritable(str(path.absolute()), option)
    if not path.exists():
        raise QuadranasError(f"{option} {path} does not exist", LAYOUT)
    refuse_unwritable(str(path.resolve()), option)
    try:
        source = _open_folder(path) if path.is_dir() else _open_zip(path)
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise QuadranasError(
            f"{option} {path} is not a zip file, or is damaged: {error}",
            f"Download or pack it again. {LAYOUT}",
        ) from error
    except OSError as error:
        raise QuadranasError(f"cannot read {option} {path}: {error.strerror or error}") from error
    if not leaves_of(source.tree):
        raise QuadranasError(
            f"{option} {path} contains no files with an image extension, such as .png or .jpg"
            f"{described(left_out_of(source.tree), '; left out: ')}",
            LAYOUT,
        )
    return source


def _open_folder(path: Path) -> Source:
    def list_folder(folder: Path, depth: int) -> Tree:
        tree: Tree = {}
        with os.scandir(folder) as entries:
            for entry in entries:
                if _is_hidden(entry.name):
                    continue
                if entry.is_dir() and depth < MAX_FOLDER_DEPTH:
                    tree[entry.name] = list_folder(folder / entry.name, depth + 1)
                elif entry.is_file() and entry.name.lower().endswith(image_extensions()):
                    tree[entry.name] = (folder / entry.name).relative_to(path).as_posix()
                else:
                    tree[entry.name] = left_out_entry(entry)
        return tree

    return Source(
        path,
        list_folder(path, 0),
        open=lambda member, whole: (path / member).open("rb"),
        num_bytes=lambda member: (path / member).stat().st_size,
        digest=lambda member, whole: digest_of(path / member, whole=whole),
    )


def _open_zip(path: Path) -> Source:
    require_readable(path, "zip file")
    archive = zipfile.ZipFile(path)
    # Closes the file without a ResourceWarning even if the archive ends up in a reference cycle,
    # such as that of a caught error, in which the file object may be collected first.
    assert archive.fp is not None
    finalize(archive, archive.fp.close)
    tree: Tree = {}
    for info in archive.infolist():
        parts = PurePosixPath(info.filename).parts
        if len(parts) > MAX_FOLDER_DEPTH or any(_is_hidden(part) for part in parts):
            continue
        folder = tree
        for part in parts if info.is_dir() else parts[:-1]:
            inner = folder.setdefault(part, {})
            folder = inner if isinstance(inner, dict) else {}
        if info.is_dir():
            continue
        if info.filename.lower().endswith(image_extensions()) and not is_zipped_link(info):
            folder.setdefault(parts[-1], info.filename)
        else:
            folder.setdefault(parts[-1], left_out_zipped(info))

    def open_member(member: str, whole: bool) -> IO[bytes]:
        size = archive.getinfo(member).file_size
        if size > MAX_FILE_BYTES:
            raise ValueError(f"it unpacks to {size} bytes; the limit is {MAX_FILE_BYTES}")
        # Reading the whole member also verifies its checksum; reading the header is much cheaper.
        return io.BytesIO(archive.read(member)) if whole else archive.open(member)

    return Source(
        path,
        tree,
        open_member,
        num_bytes=lambda member: archive.getinfo(member).file_size,
        # The checksum, which is verified whenever the image is read.
        digest=lambda member, whole: f"{archive.getinfo(member).CRC:08x}",
    )


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def folders_of(tree: Tree) -> "dict[str, Tree]":
    """The folders in a folder."""
    return {name: inner for name, inner in tree.items() if isinstance(inner, dict)}


def leaves_of(tree: Tree) -> list[str]:
    """The paths of all images in a folder and its folders."""
    leaves: list[str] = []
    for inner in tree.values():
        if isinstance(inner, dict):
            leaves += leaves_of(inner)
        elif isinstance(inner, str):
            leaves.append(inner)
    return leaves
