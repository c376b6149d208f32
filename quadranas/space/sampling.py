"""Random networks of a space."""

from random import Random

from quadranas.space.architecture import Architecture
from quadranas.space.operation import OpSpec
from quadranas.space.search_space import SKIPPED, SearchSpace


def random_architectures(space: SearchSpace, number: int, purpose: str) -> list[Architecture]:
    """Random networks from small to large.

    Drawn uniformly, networks of many blocks are all of a middling size. So each has its own
    inclination to keep blocks and to choose large candidates; the inclinations are spread evenly.

    Args:
        purpose: networks for different purposes are different ones.
    """
    random = Random(f"{purpose} {space.digest}")
    found: dict[tuple[OpSpec, ...], Architecture] = {}
    attempts = 0
    while len(found) < number and attempts < 100 * number:
        inclination = (len(found) + random.random()) / number
        architecture = _random_architecture(space, random, inclination, f"{purpose}-{len(found)}")
        found.setdefault(tuple(architecture.ops()), architecture)
        attempts += 1
    return list(found.values())


def _random_architecture(
    space: SearchSpace, random: Random, inclination: float, name: str
) -> Architecture:
    def lucky() -> bool:
        return random.random() < inclination

    choices: dict[str, tuple[int, ...] | None] = {}
    for block in space.blocks:
        if block.optional and not lucky():
            choices[block.name] = SKIPPED
        else:
            choices[block.name] = tuple(
                sum(lucky() for _ in slot.candidates[1:])
                if random.random() < 0.5
                else random.randrange(len(slot.candidates))
                for slot in block.slots
            )
    return space.architecture(choices, name)
