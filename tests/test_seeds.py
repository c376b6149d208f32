"""Seeds: one for every purpose and step."""

import torch

from quadranas.seeds import derived_seed, generator_for


def test_a_seed_for_every_purpose_and_step() -> None:
    seeds = [
        derived_seed(seed, purpose, step)
        for seed in range(5)
        for purpose in ("path", "gates", "augment")
        for step in range(200)
    ]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derived_seed(0, "path", 1) == 9809698001800064  # the same in every process and version


def test_generators_of_different_purposes_are_independent() -> None:
    draws = [
        torch.rand(2000, generator=generator_for(0, *purpose))
        for purpose in (("path", 0), ("path", 1), ("gates", 0))
    ]
    again = torch.rand(2000, generator=generator_for(0, "path", 0))
    assert torch.equal(draws[0], again)
    correlations = torch.corrcoef(torch.stack(draws)) - torch.eye(3)
    assert correlations.abs().max() < 4 / 2000**0.5
