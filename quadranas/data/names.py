"""Paths of images in little memory: one buffer of bytes instead of a Python string for each."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Self, final

import numpy as np
from numpy.typing import NDArray

ENCODING, ERRORS = "utf-8", "surrogateescape"
"""Paths may contain bytes that are not UTF-8; they are restored unchanged."""

SEPARATOR = b"\0"
"""Neither file systems nor archives have it in paths."""


@final
@dataclass(frozen=True, eq=False)
class Names:
    """Paths inside a source, by index.

    A million paths of 40 characters take 30 MB; as Python strings, they would take 100 MB.

    Args:
        folders: the beginnings of the paths, each with its slash.
        bounds: the number of paths in all folders up to and including each.
        buffer: the file names, each with a separator after it.
        ends: where the file names end in `buffer`, in bytes; (N,).
    """

    folders: tuple[str, ...]
    bounds: NDArray[np.int64]
    buffer: bytes
    ends: NDArray[np.unsignedinteger]

    @classmethod
    def of(cls, groups: Iterable[tuple[str, bytes]]) -> Self:
        """The names of several folders, in order.

        Args:
            groups: the folder with its slash, and the file names in it as `packed` returns them.
        """
        folders, parts = zip(*groups, strict=True) if (groups := list(groups)) else ((), ())
        buffer = b"".join(parts)
        bounds = np.cumsum([part.count(SEPARATOR) for part in parts], dtype=np.int64)
        return cls.restored(folders, bounds, buffer)

    @classmethod
    def restored(cls, folders: Sequence[str], bounds: NDArray[np.int64], buffer: bytes) -> Self:
        """The names with given folders, bounds and buffer."""
        ends = np.flatnonzero(np.frombuffer(buffer, np.uint8) == SEPARATOR[0])
        kind = np.uint32 if len(buffer) < 2**32 else np.uint64
        return cls(tuple(folders), bounds, buffer, ends.astype(kind))

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> str:
        start = int(self.ends[index - 1]) + 1 if index else 0
        name = self.buffer[start : int(self.ends[index])].decode(ENCODING, ERRORS)
        return f"{self.folders[int(np.searchsorted(self.bounds, index, 'right'))]}{name}"

    def __iter__(self) -> Iterator[str]:
        return map(self.__getitem__, range(len(self)))


def packed(names: Iterable[str]) -> bytes:
    """Names as one string of bytes; the reverse of `unpacked`."""
    return b"".join(name.encode(ENCODING, ERRORS) + SEPARATOR for name in names)


def unpacked(content: bytes) -> list[str]:
    """The names that `packed` joined."""
    return content.decode(ENCODING, ERRORS).split("\0")[:-1]
