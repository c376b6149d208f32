"""Strategies that need no other package: the gates, chance, evolution, and REINFORCE."""

import math
from random import Random
from typing import final

import numpy as np
import numpy.typing as npt

from quadranas.errors import QuadranasError
from quadranas.space.search_space import SKIPPED, SpaceBlock
from quadranas.strategies.exact import decode_best
from quadranas.strategies.interface import Problem, Report, Trial, ranked

Choice = tuple[int, ...] | None
Vector = npt.NDArray[np.float64]


@final
class Gates:
    """The networks that the gates of the supernet prefer most (`decode_best`), in that order."""

    def explore(self, problem: Problem, *, trials: int, seed: int, report: Report) -> None:
        """See `Strategy.explore`; the seed has no effect."""
        if problem.scores is None:
            raise QuadranasError(
                "the strategy gates needs the gates of a supernet",
                "Choose another strategy, such as evolution.",
            )
        space, scores, table = problem.space, problem.scores, problem.table
        for decoded in decode_best(space, scores, table, problem.limits, trials):
            report(problem.trial(decoded.choices))


@final
class Chance:
    """Random networks, repaired to be within the limits."""

    def explore(self, problem: Problem, *, trials: int, seed: int, report: Report) -> None:
        """See `Strategy.explore`."""
        random = Random(seed)
        for _ in range(trials):
            report(problem.trial(problem.random(random)))


@final
class Evolution:
    """Evolution of a population by mutation and crossover.

    Source: once-for-all, Cai et al., ICLR 2020 (arXiv:1908.09791), Sec. 4. Departure: a child that
    exceeds a limit is repaired instead of drawn again.
    """

    POPULATION, PARENTS, MUTANTS = 50, 0.25, 0.5
    """Number of networks in a generation; the shares of it that are parents, and that mutate."""

    MUTATION = 0.1
    """Probability that a block of a mutant is drawn again; at least one changes."""

    def explore(self, problem: Problem, *, trials: int, seed: int, report: Report) -> None:
        """See `Strategy.explore`."""
        random = Random(seed)
        size = min(self.POPULATION, max(4, trials // 5))
        judged = [problem.trial(problem.random(random)) for _ in range(min(size, trials))]
        for trial in judged:
            report(trial)
        population = ranked(judged)
        done = len(judged)
        while done < trials:
            parents = population[: max(2, round(self.PARENTS * size))]
            children: list[Trial] = []
            for number in range(min(size - len(parents), trials - done) or 1):
                is_mutant = number < self.MUTANTS * size
                child = (
                    self._mutant(problem, random.choice(parents), random)
                    if is_mutant
                    else self._crossed(random.choice(parents), random.choice(parents), random)
                )
                children.append(problem.trial(problem.repaired(child, random)))
                report(children[-1])
            done += len(children)
            population = ranked(parents + children)

    def _mutant(self, problem: Problem, parent: Trial, random: Random) -> dict[str, Choice]:
        fresh = problem.random(random)
        changed = random.choice([n for n, c in parent.choices.items() if c != fresh[n]] or [""])
        return {
            name: fresh[name] if name == changed or random.random() < self.MUTATION else choice
            for name, choice in parent.choices.items()
        }

    @staticmethod
    def _crossed(one: Trial, other: Trial, random: Random) -> dict[str, Choice]:
        return {
            name: choice if random.random() < 0.5 else other.choices[name]
            for name, choice in one.choices.items()
        }


@final
class Reinforce:
    """A probability per candidate that follows the accuracy of the networks drawn from it.

    Source: ProxylessNAS, Cai et al., ICLR 2019 (arXiv:1812.00332), Sec. 3.3.2, REINFORCE with a
    moving average as baseline. Departure: latency is no part of the reward; a network that exceeds
    a limit is repaired, and the gradient is that of the repaired one.
    """

    RATE, MEMORY = 1.0, 0.9
    """Learning rate, relative to the spread of the accuracies; weight of the old baseline."""

    def explore(self, problem: Problem, *, trials: int, seed: int, report: Report) -> None:
        """See `Strategy.explore`."""
        random = Random(seed)
        blocks = {block.name: block for block in problem.space.blocks}
        logits = {name: _zeros(block) for name, block in blocks.items()}
        baseline, spread = 0.0, 0.0
        for number in range(trials):
            drawn = {name: _drawn(blocks[name], logits[name], random) for name in blocks}
            trial = problem.trial(problem.repaired(drawn, random))
            report(trial)
            if number == 0:
                baseline = trial.accuracy
            advantage = trial.accuracy - baseline
            spread = self.MEMORY * spread + (1 - self.MEMORY) * abs(advantage)
            step = self.RATE * advantage / spread if spread > 0 else 0.0
            for name, choice in trial.choices.items():
                _reinforce(blocks[name], logits[name], choice, max(-1.0, min(1.0, step)))
            baseline = self.MEMORY * baseline + (1 - self.MEMORY) * trial.accuracy


def _zeros(block: SpaceBlock) -> list[Vector]:
    """Logits of whether a block is kept, and of the candidates of each slot."""
    return [np.zeros(2), *(np.zeros(len(slot.candidates)) for slot in block.slots)]


def _probabilities(logits: Vector) -> Vector:
    powers = np.exp(logits - logits.max())
    return np.asarray(powers / powers.sum())


def _drawn(block: SpaceBlock, logits: list[Vector], random: Random) -> Choice:
    kept, *slots = (_probabilities(values) for values in logits)
    if block.optional and random.random() >= kept[0]:
        return SKIPPED
    return tuple(random.choices(range(len(p)), p.tolist())[0] for p in slots)


def _reinforce(block: SpaceBlock, logits: list[Vector], choice: Choice, step: float) -> None:
    """Raise the log-probability of a choice by a gradient step; a negative step lowers it."""
    kept, *slots = logits
    if block.optional:
        kept += step * (np.eye(2)[int(choice is SKIPPED)] - _probabilities(kept))
    for values, index in zip(slots, choice or (), strict=choice is not SKIPPED):
        values += step * (np.eye(len(values))[index] - _probabilities(values))
    assert all(math.isfinite(value) for values in logits for value in values.tolist())
