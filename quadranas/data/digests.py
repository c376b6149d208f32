"""Digests of image files, whole or sampled."""

import os
from hashlib import blake2b
from pathlib import Path

BLOCK_BYTES = 16 * 2**10
NUM_BLOCKS = 4
"""Number of blocks that are digested of a large file, evenly spaced from its start to its end."""


def digest_of(path: Path, *, whole: bool) -> str:
    """The digest of a file.

    Args:
        whole: digest all of it; otherwise four blocks of 16 KiB of a file that is larger.

    Raises:
        OSError: the file cannot be read.
    """
    digest = blake2b(digest_size=8)
    with path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        if whole or size <= NUM_BLOCKS * BLOCK_BYTES:
            while block := file.read(2**20):
                digest.update(block)
        else:
            for number in range(NUM_BLOCKS):
                file.seek((size - BLOCK_BYTES) * number // (NUM_BLOCKS - 1))
                digest.update(file.read(BLOCK_BYTES))
    return digest.hexdigest()
