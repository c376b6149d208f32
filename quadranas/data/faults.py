"""Faults of image files, reported at once."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import IO

from quadranas.data.decoding import CorruptImageError
from quadranas.errors import QuadranasError

MAX_LISTED = 20
"""Number of faulty images that an error lists."""

LFS_POINTER = b"version https://git-lfs"


class TooSmallImageError(QuadranasError):
    """An image that is too small for the resolution.

    Args:
        largest: the largest resolution that it suffices for.
    """

    def __init__(self, message: str, largest: int = 0) -> None:
        super().__init__(message, _lower(largest, "it"))
        self.largest = largest


def raise_faults(faults: Sequence[QuadranasError], num_images: int) -> None:
    """Raise one error for all faulty images; nothing without any.

    Args:
        num_images: the number of images that were read.

    Raises:
        CorruptImageError: at least one of them is corrupt.
        QuadranasError: there are other faults only.
    """
    if len(faults) == 1:
        raise faults[0]
    if not faults:
        return
    corrupt = [fault for fault in faults if isinstance(fault, CorruptImageError)]
    lines = [f"{len(faults)} of {num_images} images cannot be used:"]
    lines += [f"  {fault.message}" for fault in faults[:MAX_LISTED]]
    if len(faults) > MAX_LISTED:
        lines.append(f"  and {len(faults) - MAX_LISTED} more")
    message = "\n".join(lines)
    hints = []
    if corrupt:
        hints.append("Replace or remove them, or skip corrupt images with --skip-corrupt.")
    small = [fault.largest for fault in faults if isinstance(fault, TooSmallImageError)]
    if small:
        hints.append(_lower(min(small), "small images"))
    hint = " ".join(hints)
    if corrupt:
        members = tuple(member for fault in corrupt for member in fault.members)
        raise CorruptImageError(message, hint, members) from corrupt[0]
    raise QuadranasError(message, hint) from faults[0]


def _lower(largest: int, what: str) -> str:
    what = "the image" if what == "it" else what
    return f"Lower the training resolution to {largest} or less, or remove {what}."


def lfs_reason(open_file: Callable[[int, bool], IO[bytes]], number: int) -> str:
    """Why a pointer of Git LFS is no image; empty for other files."""
    with suppress(Exception), open_file(number, False) as file:
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            return "a Git LFS pointer; fetch the image with: git lfs pull"
    return ""
