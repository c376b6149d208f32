"""What a data set was understood to be: its splits, classes, image sizes and damaged files."""

import io
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import IO

import numpy as np
from PIL import Image

from quadranas.data.decoding import CorruptImageError, fit
from quadranas.data.examination import ORDINARY, Look, Verify, look_at, warnings_of
from quadranas.data.image_files import CHUNK, NUM_THREADS, ImageFiles, in_threads
from quadranas.errors import QuadranasError, printable
from quadranas.validation import Frozen

BLOCK = 64 * CHUNK
"""Number of images between two reports of the progress."""

RESOLUTION = 64
"""Size in pixels that images are decoded to for their examination."""

THUMBNAIL = 96
"""Height and width of the images of a contact sheet, in pixels."""


class DataSplit(Frozen):
    """A split of a data set.

    Args:
        name: `train` or `test`.
        num_images: number of images, with the corrupt ones.
        num_bytes: size of the image files, in bytes.
        smallest_side, median_side, largest_side: shorter side of the images, in pixels; null if
            all of them are corrupt.
        formats: number of images of each format.
        corrupt: what is wrong with images that cannot be used, by their paths inside the source.
    """

    name: str
    num_images: int
    num_bytes: int
    smallest_side: int | None
    median_side: int | None
    largest_side: int | None
    formats: dict[str, int]
    corrupt: dict[str, str]


class DataClass(Frozen):
    """A class of a data set.

    Args:
        name: its name.
        num_train, num_test: number of images in the training and in the test split.
    """

    name: str
    num_train: int
    num_test: int


@dataclass
class Examined:
    """What was seen of the images of a split.

    Args:
        sides: the shorter side of every readable image, in pixels.
        corrupt: what is wrong with the others, by their paths.
        looks: the images that look unusual, with their names.
    """

    num_bytes: int = 0
    sides: list[int] = field(default_factory=list)
    formats: Counter[str] = field(default_factory=Counter)
    corrupt: dict[str, str] = field(default_factory=dict)
    looks: list[tuple[str, Look]] = field(default_factory=list)

    def split(self, name: str, files: ImageFiles) -> DataSplit:
        """The summary of the split."""
        smallest, median, largest = self._quantiles()
        return DataSplit(
            name=name,
            num_images=len(files),
            num_bytes=self.num_bytes,
            smallest_side=smallest,
            median_side=median,
            largest_side=largest,
            formats=dict(self.formats.most_common()),
            corrupt=self.corrupt,
        )

    def _quantiles(self) -> tuple[int | None, int | None, int | None]:
        if not self.sides:
            return None, None, None
        sides = np.sort(self.sides)
        return int(sides[0]), int(sides[(len(sides) - 1) // 2]), int(sides[-1])


def examine_split(
    files: ImageFiles, *, verify: Verify, advance: Callable[[int], None]
) -> Examined:
    """Open every image of a split once; damaged ones are part of the result.

    Args:
        advance: is told the number of images that are done.

    Raises:
        QuadranasError: a file cannot be read.
    """
    found = Examined()

    def see(image: Image.Image, file: IO[bytes]) -> tuple[int, str, Look]:
        side, kind = min(image.size), image.format or "unknown"
        return side, kind, look_at(image, file, RESOLUTION, decode_all=verify == "full")

    def examine_one(start: int, position: int) -> tuple[int, str, Look] | CorruptImageError:
        try:
            return files.use(start + position, True, see)
        except CorruptImageError as error:
            return error

    for start in range(0, len(files), BLOCK):
        part = range(start, min(start + BLOCK, len(files)))
        seen = in_threads(partial(examine_one, start), len(part), NUM_THREADS)
        for index, one in zip(part, seen, strict=True):
            _add(found, files, index, one)
        advance(part.stop)
    return found


def _add(
    found: Examined, files: ImageFiles, index: int, seen: tuple[int, str, Look] | CorruptImageError
) -> None:
    found.num_bytes += files.num_bytes(index)
    member = files.member(index)
    if isinstance(seen, CorruptImageError):
        _, _, reason = seen.message.partition(f" in {files.source.path}: ")
        found.corrupt[printable(member)] = reason
        return
    side, kind, look = seen
    found.sides.append(side)
    found.formats[kind] += 1
    if look != ORDINARY:
        found.looks.append((f"{printable(member)} in {files.source.path}", look))


def look_warnings(splits: Sequence[Examined]) -> list[str]:
    """Warnings about images without content in all splits."""
    looks = [look for split in splits for look in split.looks]
    return warnings_of(looks, sum(len(split.sides) for split in splits))


def count_classes(train: ImageFiles, test: ImageFiles) -> tuple[DataClass, ...]:
    """The number of images of every class."""
    size = len(train.class_names)
    counts = (np.bincount(files.labels, minlength=size).tolist() for files in (train, test))
    return tuple(
        DataClass(name=name, num_train=num_train, num_test=num_test)
        for name, num_train, num_test in zip(train.class_names, *counts, strict=True)
    )


def thumbnails(files: ImageFiles, label: int, most: int) -> list[tuple[str, bytes | None]]:
    """Evenly spaced images of a class, as small JPEG files with their paths; None if corrupt."""
    of_class = np.flatnonzero(files.labels == label)
    places = np.linspace(0, len(of_class) - 1, min(most, len(of_class))).astype(int)
    return [(files.member(i), _thumbnail(files, i)) for i in of_class[places].tolist()]


def _thumbnail(files: ImageFiles, index: int) -> bytes | None:
    try:
        pixels = files.use(index, True, lambda image, file: fit(image, THUMBNAIL))
    except QuadranasError:
        return None
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "JPEG", quality=80)
    return content.getvalue()
