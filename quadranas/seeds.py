"""Random seeds. All random draws are stateless: seeded by run seed, purpose and step."""

import hashlib

import torch


def derived_seed(seed: int, *purpose: str | int) -> int:
    """The seed for one purpose at one step, independent of all others."""
    text = "/".join(map(str, (seed, *purpose)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7])


def generator_for(seed: int, *purpose: str | int) -> torch.Generator:
    """A generator for one purpose at one step, seeded by `derived_seed`."""
    return torch.Generator().manual_seed(derived_seed(seed, *purpose))
