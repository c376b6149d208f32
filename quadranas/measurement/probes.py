"""Probes: small networks whose timings give an operation's latency, and random whole ones."""

from collections.abc import Sequence
from random import Random

import torch
from torch import nn

from quadranas.layers import build_op
from quadranas.network.skeleton import build_subnet
from quadranas.space.architecture import Architecture, OpSpec
from quadranas.space.search_space import SKIPPED, SearchSpace

REFERENCE_OP = OpSpec(
    kind="conv_bn", in_channels=32, out_channels=32, kernel_size=3, resolution=56
)


def keeps_shape(spec: OpSpec) -> bool:
    """Whether the operation's output fits its input, so that it can follow itself."""
    return not spec.is_head and spec.stride == 1 and spec.in_channels == spec.out_channels


def chain_probe(specs: Sequence[OpSpec]) -> nn.Sequential:
    """Operations one after another, in evaluation mode."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(*map(build_op, specs)).eval()


def null_probe() -> nn.Module:
    """Next to nothing: what remains is the cost of a call."""
    return nn.ReLU().eval()


def network_probe(architecture: Architecture) -> nn.Module:
    """A whole network, in evaluation mode."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build_subnet(architecture).eval()


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
