"""Digests of image files, whole or sampled."""

import os
from hashlib import blake2b
from pathlib import Path

BLOCK_BYTES = 16 * 2**10
NUM_BLOCKS = 4
"""Number of blocks that are digested of a large file, evenly spaced from its start to its end."""


def digest_of(path: Path, *, whole: bool, start: int = 0, size: int | None = None) -> str:
    """The digest of a file, or of a part of it.

    Args:
        whole: digest all of it; otherwise four blocks of 16 KiB of what is larger.
        start, size: the part, in bytes; by default the whole file.

    Raises:
        OSError: the file cannot be read.
    """
    digest = blake2b(digest_size=8)
    with path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size - start if size is None else size
        blocks = [(0, size)]
        if not whole and size > NUM_BLOCKS * BLOCK_BYTES:
            places = ((size - BLOCK_BYTES) * n // (NUM_BLOCKS - 1) for n in range(NUM_BLOCKS))
            blocks = [(place, BLOCK_BYTES) for place in places]
        for place, length in blocks:
            file.seek(start + place)
            while length and (block := file.read(min(length, 2**20))):
                digest.update(block)
                length -= len(block)
    return digest.hexdigest()
