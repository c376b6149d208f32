"""The members of tar files and where they are stored, with every kind of damage noticed.

`tarfile` itself ends silently at a damaged or missing header after the first one.
"""

import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from quadranas.data.left_out import LeftOut
from quadranas.errors import QuadranasError

END = bytes(tarfile.BLOCKSIZE)

COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7z": "xz", b"(\xb5/\xfd": "zstd"}
"""How compressed files begin, and their formats."""


class Place(NamedTuple):
    """Where an image is stored: the index of the shard, first byte and size in bytes."""

    shard: int
    start: int
    size: int


def is_plain_file(info: tarfile.TarInfo) -> bool:
    """Whether a member is a file that is stored in one piece."""
    return info.isreg() and not info.issparse()


def left_out_member(info: tarfile.TarInfo) -> LeftOut:
    """Why a member that is no plain file is left out."""
    return LeftOut("link" if info.issym() or info.islnk() else "special")


def members_of(path: Path, shard: int) -> Iterator[tuple[tarfile.TarInfo, Place, tarfile.TarFile]]:
    """The members of a shard with their places.

    Raises:
        QuadranasError: it is no tar file, compressed, damaged, or ends early.
    """
    with path.open("rb") as file:
        start, num_bytes = file.read(4), file.seek(0, 2)
        kind = next((k for magic, k in COMPRESSED.items() if start.startswith(magic)), None)
        if kind is not None:
            raise QuadranasError(
                f"shard {path} is compressed with {kind}; images are read from any place of a "
                "shard, so it must be an uncompressed tar file",
                "Unpack it to a plain .tar file. Images are compressed already.",
            )
        file.seek(0)
        try:
            with tarfile.open(fileobj=file, mode="r:") as archive:
                for info in archive:
                    place = Place(shard, info.offset_data, info.size)
                    if not 0 <= place.size <= num_bytes - place.start:
                        raise tarfile.ReadError("unexpected end of data")
                    yield info, place, archive
                    # Otherwise the members stay in memory, 1.5 GB for a million samples.
                    archive.members.clear()  # type: ignore[attr-defined]
                file.seek(archive.offset)
        except (tarfile.TarError, ValueError, OverflowError, RecursionError) as error:
            raise _damaged(path, str(error)) from error
        if (block := file.read(tarfile.BLOCKSIZE)) != END:
            what = "damaged" if len(block) == tarfile.BLOCKSIZE else "without the mark of its end"
            raise _damaged(path, f"{what} at byte {archive.offset} of {num_bytes}")


def _damaged(path: Path, reason: str) -> QuadranasError:
    return QuadranasError(
        f"shard {path} is no tar file, is damaged, or ends early: {reason}",
        "Download or pack it again.",
    )
