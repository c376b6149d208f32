"""What a strategy gets and gives: a problem in, judged networks out.

A strategy chooses networks of a space by judging some of them. It knows nothing of PyTorch; what
judges a network may be a supernet, a table, or a whole training.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from random import Random
from typing import Protocol

from quadranas.latency.table import LatencyTable
from quadranas.space.architecture import Architecture
from quadranas.space.operation import OpSpec
from quadranas.space.search_space import SKIPPED, Choices, SearchSpace
from quadranas.strategies.limits import Bound, Limits
from quadranas.strategies.programme import Programme
from quadranas.strategies.scores import GateScores

Judge = Callable[[Choices], float]
"""The accuracy of a network, from 0 to 1."""

JudgeAll = Callable[[Sequence[Choices]], Sequence[float]]
"""The accuracy of each of several networks, from 0 to 1."""

MAX_REDUCTIONS = 1000
"""Number of random reductions after which a network is repaired exactly."""


@dataclass(frozen=True)
class RememberingJudge:
    """Judges every network once; networks that differ only in which blocks are skipped are one."""

    space: SearchSpace
    judge_all: JudgeAll
    known: dict[tuple[OpSpec, ...], float] = field(default_factory=dict)

    def __call__(self, choices: Choices) -> float:
        """The accuracy of a network, from 0 to 1."""
        return self.all([choices])[0]

    def all(self, many: Sequence[Choices]) -> list[float]:
        """The accuracy of each of several networks, from 0 to 1."""
        keys = [tuple(self.space.architecture(choices).ops()) for choices in many]
        new: dict[tuple[OpSpec, ...], Choices] = {}
        for key, choices in zip(keys, many, strict=True):
            if key not in self.known:
                new.setdefault(key, choices)
        if new:
            self.known.update(zip(new, self.judge_all(list(new.values())), strict=True))
        return [self.known[key] for key in keys]


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

    def trial(self, choices: Choices) -> Trial:
        """Judge a network within the limits; one that was judged before is not judged again."""
        network = self.space.architecture(choices)
        assert self._exceeded(network) is None, "a strategy has left the limits"
        return Trial(
            choices=dict(choices),
            accuracy=self._remembering(choices),
            latency_ms=self.table.predict_ms(network),
        )

    @cached_property
    def _remembering(self) -> RememberingJudge:
        return RememberingJudge(self.space, lambda many: [self.judge(one) for one in many])

    @cached_property
    def bounds(self) -> tuple[Bound, ...]:
        """The limits, that on the latency first."""
        return self.limits.bounds(self.table)

    def excess(self, choices: Choices) -> Bound | None:
        """The first limit that a network exceeds; None if it is within all."""
        return self._exceeded(self.space.architecture(choices))

    def _exceeded(self, network: Architecture) -> Bound | None:
        return next((bound for bound in self.bounds if not bound.holds(network)), None)

    def random(self, random: Random) -> dict[str, tuple[int, ...] | None]:
        """A network within the limits: every choice is uniform, then repaired."""
        choices: dict[str, tuple[int, ...] | None] = {}
        for block in self.space.blocks:
            picked = tuple(random.randrange(len(slot.candidates)) for slot in block.slots)
            is_skipped = block.optional and random.random() < 0.5
            choices[block.name] = SKIPPED if is_skipped else picked
        return self.repaired(choices, random)

    def repaired(self, choices: Choices, random: Random) -> dict[str, tuple[int, ...] | None]:
        """A network within the limits that random reductions lead to.

        As long as a limit is exceeded, one random block is skipped, or one random slot takes a
        random candidate that adds less to the exceeded measure. A network within the limits stays
        as it is. Reductions of one measure can raise another; after `MAX_REDUCTIONS` the network
        is the one within the limits that has the most of the choices.
        """
        repaired = dict(choices)
        for _ in range(MAX_REDUCTIONS):
            exceeded = self.excess(repaired)
            if exceeded is None:
                return repaired
            repaired |= random.choice(self._reductions(repaired, exceeded))
        return self._nearest(choices)

    def _nearest(self, choices: Choices) -> dict[str, tuple[int, ...] | None]:
        """The network within the limits that has the most of some choices."""
        programme = Programme(self.space, self.bounds)
        found = programme.solve(programme.agreement(choices)) or programme.smallest()
        assert found is not None, "no network is within the limits"
        return found.choices

    def _reductions(
        self, choices: Choices, exceeded: Bound
    ) -> list[dict[str, tuple[int, ...] | None]]:
        """Changes of one block that reduce a measure; at the minimum of all there is none."""
        found: list[dict[str, tuple[int, ...] | None]] = []
        for block in self.space.blocks:
            choice = choices[block.name]
            if choice is SKIPPED:
                continue
            values = [
                exceeded.of_op(s.candidates[i]) for s, i in zip(block.slots, choice, strict=True)
            ]
            if exceeded.is_peak and max(values) <= exceeded.most:
                continue
            if block.optional:
                found.append({block.name: SKIPPED})
            for number, (slot, now) in enumerate(zip(block.slots, values, strict=True)):
                for index, candidate in enumerate(slot.candidates):
                    if exceeded.of_op(candidate) < now:
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
