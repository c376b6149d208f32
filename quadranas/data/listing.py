"""The images of a data set: which kind of source a path is, and which splits it contains."""

import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from quadranas.data.class_folders import ClassFolders
from quadranas.data.folders import list_folder
from quadranas.data.image_files import ImageFiles
from quadranas.data.left_out import described
from quadranas.data.parquet import list_parquet
from quadranas.data.source import LAYOUT
from quadranas.data.tar_shards import list_tar
from quadranas.data.zips import list_zip
from quadranas.errors import QuadranasError, refuse_unwritable

SHARDS: dict[str, Callable[[Path], "Contents"]] = {
    ".parquet": list_parquet,
    ".tar": list_tar,
}
"""How files that contain many images each are listed, or folders of them, by their extension."""


COMPRESSED = re.compile(r"\.(tgz|tar\.[a-z0-9]+)$")
"""Ends of the names of compressed tar files, which their reader explains."""


class Contents(Protocol):
    """What a folder or file with images contains.

    The methods raise a `QuadranasError` for a class, a label or an image that is missing.
    """

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that it is divided into, of train, test and val; without train, none."""

    def split(self, name: str) -> ImageFiles:
        """The images of one of its splits."""

    def undivided(self) -> ImageFiles:
        """All images, from which a test split is held out; refused if they are in splits."""

    def everything(self, option: str) -> ImageFiles:
        """All images as one split; `option` names them in messages."""


@dataclass(frozen=True)
class ImageListing:
    """The images of a data set, found in one walk over its folder or file.

    Args:
        data, val: their folders or files, as given.
        test: the images of the test split; None if it has to be held out of `train`.
    """

    data: Path
    val: Path | None
    train: ImageFiles
    test: ImageFiles | None


def list_images(data: str | Path, val: str | Path | None) -> ImageListing:
    """Find the images of a data set; the arguments and errors are those of `find_splits`."""
    train, test = find_splits(Path(data), val)
    return ImageListing(Path(data), None if val is None else Path(val), train, test)


def find_splits(data: Path, val: str | Path | None) -> tuple[ImageFiles, ImageFiles | None]:
    """List the images of the training and the test split; None if the data have no test split.

    Args:
        data, val: see `load_dataset`.

    Raises:
        QuadranasError: a path, folder, class or image is missing, or the splits are ambiguous.
    """
    contents = open_contents(data, "--data")
    if val is not None:
        if contents.splits:
            raise QuadranasError(
                f"--data {data} contains splits of its own, so --val {val} is ambiguous",
                "Omit --val, or pass the train folder itself as --data.",
            )
        test = open_contents(Path(val), "--val").everything("--val")
        return contents.everything("--data"), test
    if not contents.splits:
        return contents.undivided(), None
    held_out = next((name for name in ("test", "val") if name in contents.splits), None)
    if held_out is None:
        raise QuadranasError(f"--data {data} has train/ but neither test/ nor val/", LAYOUT)
    return contents.split("train"), contents.split(held_out)


def open_contents(path: Path, option: str) -> Contents:
    """List what a folder or a file contains.

    Raises:
        QuadranasError: the path is missing, damaged, without images, or of no known kind.
    """
    refuse_unwritable(str(path.absolute()), option)
    if not path.exists():
        raise QuadranasError(f"{option} {path} does not exist", LAYOUT)
    refuse_unwritable(str(path.resolve()), option)
    try:
        return _opened(path, option)
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise QuadranasError(
            f"{option} {path} is not a zip file, or is damaged: {error}",
            f"Download or pack it again. {LAYOUT}",
        ) from error
    except OSError as error:
        raise QuadranasError(f"cannot read {option} {path}: {error.strerror or error}") from error


def _opened(path: Path, option: str) -> Contents:
    """The contents by the extension; of a folder without images, those of the shards in it."""
    kind = ".tar" if COMPRESSED.search(path.name.lower()) else path.suffix.lower()
    if path.is_file() and kind in SHARDS:
        return _with_images(SHARDS[kind](path), option)
    contents = list_folder(path) if path.is_dir() else list_zip(path)
    if path.is_dir() and not contents.root.has_images:
        kinds = {kind.kind for folder in contents.root.walk() for kind in folder.left_out}
        if found := sorted(kinds & set(SHARDS)):
            return SHARDS[found[0]](path)
    return _with_images(contents, option)


def _with_images(contents: Contents, option: str) -> Contents:
    """The contents, if they are more than empty folders."""
    if isinstance(contents, ClassFolders) and not contents.root.has_images:
        raise QuadranasError(
            f"{option} {contents.path} contains no files with an image extension, such as .png "
            f"or .jpg{described(contents.root.unused(), '; left out: ')}",
            LAYOUT,
        )
    return contents
