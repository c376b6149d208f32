"""Random networks of a space."""

from random import Random

from quadranas.space.architecture import Architecture
from quadranas.space.operation import OpSpec
from quadranas.space.search_space import SKIPPED, SearchSpace


def random_architectures(space: SearchSpace, number: int, purpose: str) -> list[Architecture]:
    """Draw distinct random networks whose sizes are spread from small to large.

    Uniform draws of many independent choices would all have a medium size. Each network therefore
    has its own probability of keeping blocks and of choosing large candidates; these
    probabilities are spread evenly over [0, 1].

    Args:
        number: the number of networks; a space that has fewer gives fewer.
        purpose: part of the seed and of the names; each purpose has its own networks.
    """
    random = Random(f"{purpose} {space.digest}")
    drawn: dict[tuple[OpSpec, ...], Architecture] = {}
    attempts = 0
    while len(drawn) < number and attempts < 100 * number:
        size = (len(drawn) + random.random()) / number
        architecture = _random_architecture(space, random, size, f"{purpose}-{len(drawn)}")
        drawn.setdefault(tuple(architecture.ops()), architecture)
        attempts += 1
    return list(drawn.values())


def _random_architecture(
    space: SearchSpace, random: Random, size: float, name: str
) -> Architecture:
    def enlarge() -> bool:
        return random.random() < size

    choices: dict[str, tuple[int, ...] | None] = {}
    for block in space.blocks:
        if block.optional and not enlarge():
            choices[block.name] = SKIPPED
        else:
            # Half of the slots take a binomial draw, as candidates are listed from small to
            # large; the other half a uniform one, so that every candidate occurs at every size.
            choices[block.name] = tuple(
                sum(enlarge() for _ in slot.candidates[1:])
                if random.random() < 0.5
                else random.randrange(len(slot.candidates))
                for slot in block.slots
            )
    return space.architecture(choices, name)
