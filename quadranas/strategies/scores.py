"""Gate scores: the log-probability of every candidate, as plain data."""

from itertools import chain
from pathlib import Path

from quadranas.errors import QuadranasError
from quadranas.files import read_json, write_json
from quadranas.space.search_space import SKIPPED, Choices, SearchSpace
from quadranas.validation import Frozen, validate

MAX_SCORE = 1e30
"""Limit on the magnitude of a log-probability; sums and scaled sums within it are finite."""


class BlockScores(Frozen):
    """Log-probabilities of one block's gates.

    Args:
        keep, skip: those of the depth gate; 0 and None for a block that is never skipped.
        slots: per slot, those of the candidates.
    """

    keep: float = 0.0
    skip: float | None = None
    slots: tuple[tuple[float, ...], ...]

    @property
    def preference(self) -> float:
        """The log-probability of what the depth gate prefers."""
        return self.keep if self.skip is None else max(self.keep, self.skip)


class GateScores(Frozen):
    """Log-probabilities of all gates of a trained supernet, and the search space they are for.

    Args:
        space, space_digest: name of the space, and the identity of its blocks.
        blocks: the gates of each block, by its name.
    """

    space: str
    space_digest: str
    blocks: dict[str, BlockScores]

    def save(self, path: Path) -> None:
        """Write the scores as JSON."""
        write_json(path, self.model_dump(mode="json"))

    def score(self, choices: Choices) -> float:
        """How much less probable an architecture's choices are than those its gates prefer.

        It is the sum of log-probabilities, each relative to that of the gate's preferred
        candidate: 0 if every gate has its preference, otherwise negative. Inner gates of a skipped
        block decide nothing and count 0, as do undecided inner gates of a kept block: a block is
        not charged for having more gates.
        """
        total = 0.0
        for name, block in self.blocks.items():
            choice = choices[name]
            if choice is SKIPPED:
                assert block.skip is not None, name
                total += block.skip - block.preference
            else:
                picked = zip(block.slots, choice, strict=True)
                total += block.keep - block.preference
                total += sum(scores[index] - max(scores) for scores, index in picked)
        return total

    def preferred(self, space: SearchSpace) -> dict[str, tuple[int, ...] | None]:
        """What every gate prefers; of equal candidates, the first."""
        choices: dict[str, tuple[int, ...] | None] = {}
        for block in space.blocks:
            gates = self.blocks.get(block.name)
            if gates is None:
                choices[block.name] = (0,) * len(block.slots)
            elif gates.skip is not None and gates.skip > gates.keep:
                choices[block.name] = SKIPPED
            else:
                choices[block.name] = tuple(slot.index(max(slot)) for slot in gates.slots)
        return choices

    def log_probability(self, choices: Choices) -> float:
        """Log-probability with which the gates draw an architecture."""
        total = 0.0
        for name, block in self.blocks.items():
            choice = choices[name]
            if choice is SKIPPED:
                assert block.skip is not None, name
                total += block.skip
            else:
                picked = zip(block.slots, choice, strict=True)
                total += block.keep + sum(scores[index] for scores, index in picked)
        return total


def load_scores(path: Path, space: SearchSpace) -> GateScores:
    """Read gate scores.

    Raises:
        QuadranasError: the file is unreadable, for another space, or lacks a finite number for a
            gate.
    """
    scores = validate(GateScores, read_json(path, "gate scores"), path)
    if scores.space_digest != space.digest:
        raise QuadranasError(
            f"{path} is for space {scores.space!r}, not for {space.name!r} in its present form"
        )
    for name, block in scores.blocks.items():
        for number in (block.keep, block.skip or 0.0, *chain(*block.slots)):
            if not abs(number) <= MAX_SCORE:  # NaN included
                raise QuadranasError(
                    f"{path}: blocks.{name}: log-probabilities must be between {-MAX_SCORE:g} and "
                    f"{MAX_SCORE:g}, got {number:g}"
                )
    for name in dict.fromkeys([*(block.name for block in space.blocks), *scores.blocks]):
        if not _fits(scores.blocks.get(name), space, name):
            raise QuadranasError(f"{path}: blocks.{name}: does not match the gates of that block")
    return scores


def _fits(scores: BlockScores | None, space: SearchSpace, name: str) -> bool:
    """Whether scores have a number for every gate of a block, if it has gates."""
    block = next((block for block in space.blocks if block.name == name), None)
    if block is None or scores is None:
        return block is not None and block.is_fixed
    return [len(slot) for slot in scores.slots] == [
        len(slot.candidates) for slot in block.slots
    ] and (scores.skip is not None or not block.optional)
