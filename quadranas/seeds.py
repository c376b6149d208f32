"""Random seeds. All random draws are stateless: seeded by run seed, purpose and step."""

import hashlib

import torch

from quadranas.errors import QuadranasError

MOST = 2**31
"""Random seeds are below this, as in configurations; samplers take no larger ones."""


def check_seed(seed: int) -> None:
    """Check a random seed.

    Raises:
        QuadranasError: it is negative or too large.
    """
    if not 0 <= seed < MOST:
        raise QuadranasError(f"the seed must be from 0 to {MOST - 1}, got {seed}")


def derived_seed(seed: int, *purpose: str | int) -> int:
    """The seed for one purpose at one step, independent of all others."""
    text = "/".join(map(str, (seed, *purpose)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7])


def generator_for(seed: int, *purpose: str | int) -> torch.Generator:
    """A generator for one purpose at one step, seeded by `derived_seed`."""
    return torch.Generator().manual_seed(derived_seed(seed, *purpose))
