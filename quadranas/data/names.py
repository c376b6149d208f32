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
        folders: the folders, each once.
        folder_of: the index of the folder, for every path; (N,).
        ends: where the file name ends in `buffer`, in bytes, for every path; (N,).
        buffer: the file names.
    """

    folders: tuple[str, ...]
    folder_of: NDArray[np.uint32]
    ends: NDArray[np.int64]
    buffer: bytes

    @classmethod
    def of(cls, paths: Iterable[Sequence[str]]) -> Self:
        """The paths of several lists, in order; lists may be made when they are needed."""
        folders: dict[str, int] = {}
        folder_of: list[NDArray[np.uint32]] = []
        lengths: list[NDArray[np.int64]] = []
        buffers: list[bytes] = []
        for part in paths:
            splits = [path.rpartition("/") for path in part]
            found = [folders.setdefault(f"{f}{slash}", len(folders)) for f, slash, _ in splits]
            names = [name.encode(ENCODING, ERRORS) for _, _, name in splits]
            folder_of.append(np.array(found, dtype=np.uint32))
            lengths.append(np.fromiter(map(len, names), np.int64, len(names)))
            buffers.append(b"".join(names))
        return cls(
            tuple(folders),
            np.concatenate([np.empty(0, np.uint32), *folder_of]),
            np.cumsum(np.concatenate([np.empty(0, np.int64), *lengths])),
            b"".join(buffers),
        )

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> str:
        start = int(self.ends[index - 1]) if index else 0
        name = self.buffer[start : int(self.ends[index])].decode(ENCODING, ERRORS)
        return f"{self.folders[int(self.folder_of[index])]}{name}"

    def __iter__(self) -> Iterator[str]:
        return map(self.__getitem__, range(len(self)))


def pack(paths: Iterable[str]) -> bytes:
    """Paths in alphabetical order as one string of bytes; the reverse of `unpack`."""
    return SEPARATOR.join(path.encode(ENCODING, ERRORS) for path in sorted(paths))


def unpack(packed: bytes) -> list[str]:
    """The paths that `pack` joined."""
    return packed.decode(ENCODING, ERRORS).split("\0") if packed else []
