"""The networks that a weight step trains: a random one, or several by the sandwich rule.

Source: BigNAS, Yu et al., ECCV 2020 (arXiv:2003.11142), Sec. 3.1: the largest, the smallest and
some random networks are trained together on the same images.
"""

from collections.abc import Sequence

import torch

from quadranas.runs.config import SupernetConfig
from quadranas.space.cost import count_macs
from quadranas.supernet.expected_latency import ExpectedLatency
from quadranas.supernet.gates import Sample
from quadranas.supernet.supernet import Supernet

MAX_DRAWS = 100
"""Number of random networks among which one near the budget is looked for."""


class PathSampler:
    """Draws the networks of weight steps from the gates.

    Args:
        expected: prices the networks.
        budget_ms: networks are drawn near it, if the configuration says so.
    """

    def __init__(
        self,
        supernet: Supernet,
        config: SupernetConfig,
        expected: ExpectedLatency,
        budget_ms: float,
    ) -> None:
        self.gates, self.config = supernet.gates, config
        self.expected, self.budget_ms = expected, budget_ms
        space = supernet.space
        self.extremes = [
            self.gates.sample_of(space.choices_of(space.extreme(count_macs, largest=largest)))
            for largest in (True, False)
        ]

    def draw(self, generator: torch.Generator) -> Sequence[Sample]:
        """The networks of one step; with the sandwich rule, the largest comes first."""
        if self.config.sandwich == 0:
            return (self._random(generator),)
        drawn = (self._random(generator) for _ in range(self.config.sandwich))
        return (*self.extremes, *drawn)

    def _random(self, generator: torch.Generator) -> Sample:
        """A random network: the first near the budget, or the nearest of many."""
        share = self.config.near_budget
        sample = self.gates.sample_path(generator)
        if share == 0:
            return sample
        nearest, smallest = sample, self._distance(sample)
        for _ in range(MAX_DRAWS - 1):
            if smallest <= share:
                break
            sample = self.gates.sample_path(generator)
            distance = self._distance(sample)
            if distance < smallest:
                nearest, smallest = sample, distance
        return nearest

    def _distance(self, sample: Sample) -> float:
        """Distance of a network's latency from the budget, as a share of the budget."""
        latency_ms = float(self.expected(sample.involved.to(self.gates.alpha.dtype)))
        return abs(latency_ms / self.budget_ms - 1)
