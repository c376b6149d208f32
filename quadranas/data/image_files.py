"""The images of one split in a source: checked and decoded, and what is wrong with them."""

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import IO, TypeVar, final

import numpy as np
import numpy.typing as npt
from PIL import Image

from quadranas.data.decoding import (
    CorruptImageError,
    Pixels,
    fit,
    image_formats,
    reason_of,
)
from quadranas.data.faults import TooSmallImageError, lfs_reason, raise_faults
from quadranas.data.left_out import LeftOut
from quadranas.data.source import Source
from quadranas.errors import QuadranasError, printable

MAX_UPSCALING = 4
"""Maximum ratio of the resolution to the shorter side of an image."""

THREADS_FROM_RESOLUTION = 64
"""Lowest resolution to decode with several threads. Below it they mostly wait for each other:
10,000 images of 32 pixels took 2.1 s on one thread, 2.7 to 3.5 s on two (Python 3.11, Pillow 13.0,
two cores, November 2026)."""

NUM_THREADS = min(8, os.cpu_count() or 1)
CHUNK, MAX_CHUNKS = 16, 4096
"""Least number of images that a thread takes at a time, and largest number of such portions."""

Result = TypeVar("Result")
Indices = npt.NDArray[np.int64]


@final
@dataclass(frozen=True, eq=False)
class ImageFiles:
    """The images of one split.

    Args:
        numbers: their numbers in the source, (N,).
        labels: the index into `class_names`, one per image, (N,).
        left_out: the number of files in the class folders and beside them that are not used, by
            kind.
    """

    source: Source
    numbers: Indices
    labels: Indices
    class_names: tuple[str, ...]
    left_out: Mapping[LeftOut, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.numbers)

    def member(self, index: int) -> str:
        """The path of an image inside the source."""
        return self.source.names[int(self.numbers[index])]

    @property
    def members(self) -> tuple[str, ...]:
        """The paths of all images inside the source."""
        return tuple(map(self.member, range(len(self))))

    def select(self, indices: Sequence[int] | Indices) -> "ImageFiles":
        """The images at the given indices."""
        chosen = np.asarray(indices, dtype=np.int64)
        return replace(self, numbers=self.numbers[chosen], labels=self.labels[chosen])

    def ordered(self, class_names: tuple[str, ...]) -> "ImageFiles":
        """The same images, with the indices of the same classes in another order."""
        index = {name: number for number, name in enumerate(class_names)}
        order = np.array([index[name] for name in self.class_names], dtype=np.int64)
        return replace(self, labels=order[self.labels], class_names=class_names)

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
                    out[index] = self.read(index, resolution, required)
                elif skip_corrupt:
                    self.read(index, resolution, required)
                else:
                    self.use(index, False, lambda image, file: None, required)
            except QuadranasError as error:
                return error
            return None

        faults = self.each(fault_of, threads_for(resolution))
        corrupt = [isinstance(fault, CorruptImageError) and skip_corrupt for fault in faults]
        raise_faults(
            [fault for fault, skip in zip(faults, corrupt, strict=True) if fault and not skip],
            len(self),
        )
        return [index for index, skip in enumerate(corrupt) if not skip]

    def each(self, function: Callable[[int], Result], num_threads: int) -> list[Result]:
        """The results of a function for the index of every image, in order."""
        return in_threads(function, len(self), num_threads)

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
        return self._on_disk(index, lambda number: self.source.digest(number, whole))

    def _on_disk(self, index: int, use: Callable[[int], Result]) -> Result:
        try:
            return use(int(self.numbers[index]))
        except Exception as error:  # libraries have no common error class
            raise self._fault(index, error) from error

    def read(self, index: int, resolution: int, required: int = 0) -> Pixels:
        """An image at a resolution R, (R, R, 3).

        Args:
            required: the resolution that it has to be large enough for; 0 for none.

        Raises:
            CorruptImageError, QuadranasError: as in `use`.
        """
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
        number = int(self.numbers[index])
        try:
            with (
                self.source.open(number, whole) as file,
                Image.open(file, formats=image_formats()) as image,
            ):
                width, height = image.size
                result = use(image, file)
        except Exception as error:  # Pillow's decoders have no common error class
            raise self._fault(index, error) from error
        if min(width, height) * MAX_UPSCALING < resolution:
            raise TooSmallImageError(
                f"image {printable(self.member(index))} in {self.source.path} is too small: "
                f"{width} x {height} pixels; resolution {resolution} needs at least "
                f"{-(-resolution // MAX_UPSCALING)} on both sides",
                min(width, height) * MAX_UPSCALING,
            )
        return result

    def _fault(self, index: int, error: Exception) -> QuadranasError:
        """The error for an image that cannot be read or decoded."""
        member = self.member(index)
        reason = lfs_reason(self.source.open, int(self.numbers[index])) or reason_of(error)
        where = f"image {printable(member)} in {self.source.path}: {reason}"
        if isinstance(error, OSError) and error.errno is not None:
            return QuadranasError(f"cannot read {where}")
        return CorruptImageError(
            f"corrupt {where}",
            "Replace or remove it, or skip corrupt images with --skip-corrupt.",
            (member,),
        )


def threads_for(resolution: int) -> int:
    """The number of threads that decode to a resolution fastest, in pixels."""
    return NUM_THREADS if resolution >= THREADS_FROM_RESOLUTION else 1


def in_threads(function: Callable[[int], Result], count: int, num_threads: int) -> list[Result]:
    """The results of a function for 0 to `count` - 1, in order."""
    if num_threads == 1:
        return [function(index) for index in range(count)]
    size = max(CHUNK, count // MAX_CHUNKS)

    def chunk(start: int) -> list[Result]:
        return [function(i) for i in range(start, min(start + size, count))]

    with ThreadPoolExecutor(num_threads) as pool:
        return [r for part in pool.map(chunk, range(0, count, size)) for r in part]
