"""What a strategy gets and gives: a problem in, judged networks out.

A strategy chooses networks of a space by judging some of them. It knows nothing of PyTorch; what
judges a network may be a supernet, a table, or a whole training.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Protocol

from quadranas.latency.table import LatencyTable
from quadranas.space.cost import count_macs, count_params
from quadranas.space.operation import OpSpec
from quadranas.space.search_space import SKIPPED, Choices, SearchSpace
from quadranas.strategies.limits import Limits
from quadranas.strategies.scores import GateScores

Judge = Callable[[Choices], float]
"""The accuracy of a network, from 0 to 1."""

Measures = tuple[float, float, float]
"""Latency in milliseconds, number of parameters, multiply-accumulates."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A network that was judged.

    Args:
        accuracy: from 0 to 1.
        latency_ms: its predicted latency.
    """

    choices: dict[str, tuple[int, ...] | None]
    accuracy: float
    latency_ms: float


Report = Callable[[Trial], None]


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Which networks to choose among, and how to judge one.

    Some network of the space has to be within the limits (`check_limits`).

    Args:
        judge: is called once per network; networks that differ only in which blocks of a stage
            are skipped are the same.
        scores: what the gates of a supernet prefer; None without gates.
    """

    space: SearchSpace
    table: LatencyTable
    limits: Limits
    judge: Judge
    scores: GateScores | None = None
    _judged: dict[tuple[OpSpec, ...], float] = field(default_factory=dict)

    def trial(self, choices: Choices) -> Trial:
        """Judge a network within the limits; one that was judged before is not judged again."""
        assert self.excess(choices) is None, "a strategy has left the limits"
        network = self.space.architecture(choices)
        key = tuple(network.ops())
        if key not in self._judged:
            self._judged[key] = self.judge(choices)
        return Trial(
            choices=dict(choices),
            accuracy=self._judged[key],
            latency_ms=self.table.predict_ms(network),
        )

    def excess(self, choices: Choices) -> int | None:
        """The first measure that exceeds its limit, as an index into `Measures`; None if none."""
        network = self.space.architecture(choices)
        limits = self.limits
        if self.table.predict_ms(network) > limits.budget_ms:
            return 0
        if limits.max_params is not None and count_params(network) > limits.max_params:
            return 1
        if limits.max_macs is not None and count_macs(network) > limits.max_macs:
            return 2
        return None

    def measures(self, spec: OpSpec) -> Measures:
        """What an operation adds to the measures of a network."""
        return self.table.op_ms(spec), count_params(spec), count_macs(spec)

    def random(self, random: Random) -> dict[str, tuple[int, ...] | None]:
        """A network within the limits: every choice is uniform, then repaired."""
        choices: dict[str, tuple[int, ...] | None] = {}
        for block in self.space.blocks:
            picked = tuple(random.randrange(len(slot.candidates)) for slot in block.slots)
            is_skipped = block.optional and random.random() < 0.5
            choices[block.name] = SKIPPED if is_skipped else picked
        return self.repaired(choices, random)

    def repaired(self, choices: Choices, random: Random) -> dict[str, tuple[int, ...] | None]:
        """The nearest network within the limits that random reductions lead to.

        As long as a limit is exceeded, one random block is skipped, or one random slot takes a
        random candidate that adds less to the exceeded measure. A network within the limits stays
        as it is.
        """
        repaired = dict(choices)
        while (measure := self.excess(repaired)) is not None:
            repaired |= random.choice(self._reductions(repaired, measure))
        return repaired

    def _reductions(
        self, choices: Choices, measure: int
    ) -> list[dict[str, tuple[int, ...] | None]]:
        """Changes of one block that reduce a measure; at the minimum of all there is none."""
        found: list[dict[str, tuple[int, ...] | None]] = []
        for block in self.space.blocks:
            choice = choices[block.name]
            if choice is SKIPPED:
                continue
            if block.optional:
                found.append({block.name: SKIPPED})
            for number, slot in enumerate(block.slots):
                now = self.measures(slot.candidates[choice[number]])[measure]
                for index, candidate in enumerate(slot.candidates):
                    if self.measures(candidate)[measure] < now:
                        changed = (*choice[:number], index, *choice[number + 1 :])
                        found.append({block.name: changed})
        return found


class Strategy(Protocol):
    """A way of choosing networks.

    `explore` judges networks of a problem with `Problem.trial`, which accepts only networks within
    the limits, and reports each as soon as it is judged. It depends on nothing but the problem and
    the seed.
    """

    def explore(self, problem: Problem, *, trials: int, seed: int, report: Report) -> None:
        """Judge networks.

        Args:
            trials: how many to judge at most; the same network may be judged several times.
            report: receives every trial.

        Raises:
            QuadranasError: the problem lacks what the strategy needs.
        """


def ranked(trials: list[Trial]) -> list[Trial]:
    """Trials from the best to the worst; of equal accuracy, the faster network comes first."""
    return sorted(trials, key=lambda trial: (-trial.accuracy, trial.latency_ms))
