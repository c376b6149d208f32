"""Image files in a folder or a zip file: listed by split and class, checked and decoded.

Shapes: N images of a split, R the resolution; pixels are (N, R, R, 3) in uint8.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TypeVar, final

from PIL import Image

from quadranas.data.class_names import check_class_name
from quadranas.data.decoding import (
    CorruptImageError,
    Pixels,
    fit,
    image_formats,
    reason_of,
)
from quadranas.data.faults import TooSmallImageError, lfs_reason, raise_faults
from quadranas.data.left_out import LeftOut, described, left_out_of
from quadranas.data.source import (
    LAYOUT,
    Source,
    Tree,
    folders_of,
    leaves_of,
    open_source,
)
from quadranas.errors import QuadranasError, printable

MAX_UPSCALING = 4
"""Maximum ratio of the resolution to the shorter side of an image."""

THREADS_FROM_RESOLUTION = 64
"""Lowest resolution to decode with several threads. Below it they mostly wait for each other:
10,000 images of 32 pixels took 2.1 s on one thread, 2.7 to 3.5 s on two (Python 3.11, Pillow 13.0,
two cores, November 2026)."""

NUM_THREADS = min(8, os.cpu_count() or 1)
CHUNK = 16

Result = TypeVar("Result")


@final
@dataclass(frozen=True)
class ImageFiles:
    """The image files of one split, ordered by label.

    Args:
        members: paths inside the source.
        labels: the index into `class_names`, one per member.
        left_out: what the class folders contain besides, and what lies beside them.
    """

    source: Source
    members: tuple[str, ...]
    labels: tuple[int, ...]
    class_names: tuple[str, ...]
    left_out: tuple[LeftOut, ...] = ()

    def __len__(self) -> int:
        return len(self.members)

    def select(self, indices: Sequence[int]) -> "ImageFiles":
        """The files at the given indices."""
        members = tuple(self.members[index] for index in indices)
        labels = tuple(self.labels[index] for index in indices)
        return replace(self, members=members, labels=labels)

    def sift(
        self,
        resolution: int,
        *,
        skip_corrupt: bool,
        out: Pixels | None = None,
        any_size: bool = False,
    ) -> list[int]:
        """Check the images and return the indices of the usable ones.

        Args:
            resolution: R, the height and width of the decoded images.
            skip_corrupt: decode every image, and skip corrupt ones.
            out: array for the pixels, (N, R, R, 3). Without `out` and `skip_corrupt`, only headers
                are read.
            any_size: accept images that are too small for the resolution.

        Raises:
            CorruptImageError: images cannot be decoded, and `skip_corrupt` is off; all are named.
            QuadranasError: images are too small, or their files cannot be read.
        """
        required = 0 if any_size else resolution

        def fault_of(index: int) -> QuadranasError | None:
            try:
                if out is not None:
                    out[index] = self._read(index, resolution, required)
                elif skip_corrupt:
                    self._read(index, resolution, required)
                else:
                    self.use(index, False, lambda image, file: None, required)
            except QuadranasError as error:
                return error
            return None

        num_threads = NUM_THREADS if resolution >= THREADS_FROM_RESOLUTION else 1
        faults = self.each(fault_of, num_threads)
        corrupt = [isinstance(fault, CorruptImageError) and skip_corrupt for fault in faults]
        raise_faults(
            [fault for fault, skip in zip(faults, corrupt, strict=True) if fault and not skip],
            len(self),
        )
        return [index for index, skip in enumerate(corrupt) if not skip]

    def each(self, function: Callable[[int], Result], num_threads: int) -> list[Result]:
        """The results of a function for the index of every image, in order."""

        def chunk(start: int) -> list[Result]:
            return [function(i) for i in range(start, min(start + CHUNK, len(self)))]

        with ThreadPoolExecutor(num_threads) as pool:
            return [r for part in pool.map(chunk, range(0, len(self), CHUNK)) for r in part]

    def size(self, index: int) -> tuple[int, int]:
        """Width and height in pixels, read from the header; errors as in `sift`."""
        return self.use(index, False, lambda image, file: image.size)

    def num_bytes(self, index: int) -> int:
        """Size of the file in bytes; errors as in `digest`."""
        return self._on_disk(index, self.source.num_bytes)

    def digest(self, index: int, *, whole: bool) -> str:
        """Digest of the file, of all of it or of samples.

        Raises:
            QuadranasError: the file cannot be read.
        """
        return self._on_disk(index, lambda member: self.source.digest(member, whole))

    def _on_disk(self, index: int, use: Callable[[str], Result]) -> Result:
        member = self.members[index]
        try:
            return use(member)
        except OSError as error:
            raise QuadranasError(
                f"cannot read image {member} in {self.source.path}: {error.strerror or error}"
            ) from error

    def _read(self, index: int, resolution: int, required: int) -> Pixels:
        return self.use(index, True, lambda image, file: fit(image, resolution), required)

    def use(
        self,
        index: int,
        whole: bool,
        use: Callable[[Image.Image, IO[bytes]], Result],
        resolution: int = 0,
    ) -> Result:
        """Apply `use` to an opened image and its file, which `whole` reads and checks first.

        Raises:
            CorruptImageError: the image cannot be decoded, or `use` refuses it.
            QuadranasError: it is too small for `resolution`, or its file cannot be read.
        """
        member, path = self.members[index], self.source.path
        try:
            with (
                self.source.open(member, whole) as file,
                Image.open(file, formats=image_formats()) as image,
            ):
                width, height = image.size
                result = use(image, file)
        except Exception as error:  # Pillow's decoders have no common error class
            reason = lfs_reason(self.source.open, member) or reason_of(error)
            where = f"image {printable(member)} in {path}: {reason}"
            if isinstance(error, OSError) and error.errno is not None:
                raise QuadranasError(f"cannot read {where}") from error
            raise CorruptImageError(
                f"corrupt {where}",
                "Replace or remove it, or skip corrupt images with --skip-corrupt.",
                (member,),
            ) from error
        if min(width, height) * MAX_UPSCALING < resolution:
            raise TooSmallImageError(
                f"image {printable(member)} in {path} is too small: {width} x {height} pixels; "
                f"resolution {resolution} needs at least {-(-resolution // MAX_UPSCALING)} on "
                "both sides",
                min(width, height) * MAX_UPSCALING,
            )
        return result


@dataclass(frozen=True)
class ImageListing:
    """The image files of a data set, found in one walk over its folder or zip.

    Args:
        data, val: their folders or zips, as given.
        test: the files of the test split; None if it has to be held out of `train`.
    """

    data: Path
    val: Path | None
    train: ImageFiles
    test: ImageFiles | None


def list_images(data: str | Path, val: str | Path | None) -> ImageListing:
    """Find the image files of a data set; the arguments and errors are those of `find_splits`."""
    train, test = find_splits(Path(data), val)
    return ImageListing(Path(data), None if val is None else Path(val), train, test)


def find_splits(data: Path, val: str | Path | None) -> tuple[ImageFiles, ImageFiles | None]:
    """List the files of the training and the test split; None if the data have no test split.

    Args:
        data, val: see `load_dataset`.

    Raises:
        QuadranasError: a path, folder, class or image is missing, or the splits are ambiguous.
    """
    source = open_source(data, "--data")
    tree = _unwrap(source.tree)
    splits = {name.lower(): folder for name, folder in folders_of(tree).items()}
    is_split = "train" in splits and bool(folders_of(splits["train"]))
    if val is not None:
        if is_split:
            raise QuadranasError(
                f"--data {data} contains splits of its own, so --val {val} is ambiguous",
                "Omit --val, or pass the train folder itself as --data.",
            )
        other = open_source(Path(val), "--val")
        test = _list_files(other, _unwrap(other.tree), f"--val {val}")
        return _list_files(source, tree, f"--data {data}"), test
    if is_split:
        held_out = next((name for name in ("test", "val") if name in splits), None)
        if held_out is None:
            raise QuadranasError(f"--data {data} has train/ but neither test/ nor val/", LAYOUT)
        train = _list_files(source, splits["train"], f"train/ of {data}")
        test = _list_files(source, splits[held_out], f"{held_out}/ of {data}")
        return train, test
    if len(splits) > 1 and set(splits) <= {"train", "test", "val"}:
        raise QuadranasError(
            f"--data {data} has {', '.join(splits)} without class folders", LAYOUT
        )
    return _list_files(source, tree, f"--data {data}"), None


def _list_files(source: Source, tree: Tree, where: str) -> ImageFiles:
    """The images of one folder per class, classes and images in alphabetical order."""
    folders = sorted(folders_of(tree).items())
    if not folders:
        raise QuadranasError(f"{where} has no class folders", LAYOUT)
    members: list[str] = []
    labels: list[int] = []
    for label, (name, folder) in enumerate(folders):
        check_class_name(name, where)
        images = sorted(leaf for leaf in folder.values() if isinstance(leaf, str))
        if not images:
            raise QuadranasError(
                f"class folder {name!r} of {where} contains no images"
                f"{described(left_out_of(folder), '; left out: ')}",
                LAYOUT,
            )
        nested = [leaf for inner in folders_of(folder).values() for leaf in leaves_of(inner)]
        if nested:
            raise QuadranasError(
                f"image {nested[0]} of {where} is in a subfolder of its class folder", LAYOUT
            )
        members += images
        labels += [label] * len(images)
    names = tuple(name for name, _ in folders)
    if len(names) < 2:
        raise QuadranasError(
            f"{where} has only one class, {names[0]!r}; at least 2 are needed", LAYOUT
        )
    return ImageFiles(source, tuple(members), tuple(labels), names, tuple(left_out_of(tree)))


def _unwrap(tree: Tree) -> Tree:
    """The tree without outer folders that contain everything; a single class folder is kept."""
    folders = list(folders_of(tree).values())
    return _unwrap(folders[0]) if len(folders) == 1 and folders_of(folders[0]) else tree
