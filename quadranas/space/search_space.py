"""SearchSpace: a sequence of blocks, each with slots that list their candidate operations.

A space is data: a YAML file of stages, each with a width, a depth range and the slots of its
blocks.
"""

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from quadranas.errors import QuadranasError
from quadranas.space.architecture import Architecture, Block, check_num_classes
from quadranas.space.operation import OpSpec

SKIPPED = None
"""The choice for a block that is not part of the network."""

OpCost = Callable[[OpSpec], float]
Choices = Mapping[str, tuple[int, ...] | None]
"""Per block name: the chosen candidate of each slot, or `SKIPPED`."""


@dataclass(frozen=True)
class Slot:
    """One decision: exactly one candidate is used when the block is kept."""

    name: str
    candidates: tuple[OpSpec, ...]


@dataclass(frozen=True)
class SpaceBlock:
    """A block of the supernet: its slots in order, and whether it may be skipped."""

    name: str
    stage: str
    slots: tuple[Slot, ...]
    optional: bool = False

    @property
    def is_fixed(self) -> bool:
        """Whether nothing about the block is searched."""
        return not self.optional and all(len(slot.candidates) == 1 for slot in self.slots)


@dataclass(frozen=True)
class SearchSpace:
    """A resolved search space: the skeleton of every network in it."""

    name: str
    resolution: int
    num_classes: int
    blocks: tuple[SpaceBlock, ...]

    @cached_property
    def digest(self) -> str:
        """Identifies the searched blocks, whatever the number of classes."""
        specs = [
            [block.name, block.optional, [list(map(str, slot.candidates)) for slot in block.slots]]
            for block in self.blocks[:-1]
        ]
        return hashlib.sha256(json.dumps(specs).encode()).hexdigest()[:16]

    @property
    def num_architectures(self) -> int:
        """Distinct networks: skipping one block or another of a stage gives the same network."""
        total = 1
        for stage in dict.fromkeys(block.stage for block in self.blocks):
            depths = [1]
            for block in (b for b in self.blocks if b.stage == stage):
                options = math.prod(len(slot.candidates) for slot in block.slots)
                if block.optional:
                    depths.append(depths[-1] * options)
                else:
                    depths = [count * options for count in depths]
            total *= sum(depths)
        return total

    def specs(self) -> tuple[OpSpec, ...]:
        """Every distinct operation of the space, in order."""
        candidates = (c for block in self.blocks for slot in block.slots for c in slot.candidates)
        return tuple(dict.fromkeys(candidates))

    def with_num_classes(self, num_classes: int) -> "SearchSpace":
        """The same space with another classifier.

        Raises:
            QuadranasError: there cannot be so many classes.
        """
        check_num_classes(num_classes, f"space {self.name}")
        *body, head = self.blocks
        slot = head.slots[0]
        spec = slot.candidates[0].model_copy(update={"out_channels": num_classes})
        new_head = replace(head, slots=(replace(slot, candidates=(spec,)),))
        return replace(self, num_classes=num_classes, blocks=(*body, new_head))

    def architecture(self, choices: Choices, name: str = "") -> Architecture:
        """The network that a choice per block describes; fixed blocks may be left out."""
        blocks = []
        for block in self.blocks:
            choice = choices.get(block.name, (0,) * len(block.slots))
            if choice is SKIPPED:
                assert block.optional, block.name
                continue
            ops = tuple(s.candidates[c] for s, c in zip(block.slots, choice, strict=True))
            blocks.append(Block(name=block.name, ops=ops))
        return Architecture(
            name=name or self.name,
            space=self.name,
            resolution=self.resolution,
            num_classes=self.num_classes,
            blocks=tuple(blocks),
        )

    def choices_of(self, architecture: Architecture) -> dict[str, tuple[int, ...] | None]:
        """The choices that give an architecture.

        Raises:
            QuadranasError: the architecture is not in this space; names the first misfit.
        """
        kept = {block.name: block for block in architecture.blocks}
        choices: dict[str, tuple[int, ...] | None] = {}
        for block in self.blocks:
            found = kept.pop(block.name, None)
            if found is None:
                if not block.optional:
                    raise self._foreign(architecture, f"block {block.name!r} is missing")
                choices[block.name] = SKIPPED
                continue
            if len(found.ops) != len(block.slots):
                raise self._foreign(architecture, f"block {block.name!r} has {len(found.ops)} ops")
            indices = []
            for slot, op in zip(block.slots, found.ops, strict=True):
                if op not in slot.candidates:
                    raise self._foreign(architecture, f"{block.name}: {op} is no candidate")
                indices.append(slot.candidates.index(op))
            choices[block.name] = tuple(indices)
        if kept:
            raise self._foreign(architecture, f"block {next(iter(kept))!r} is unknown")
        order = [name for name, choice in choices.items() if choice is not SKIPPED]
        for given, name in zip(architecture.blocks, order, strict=True):
            if given.name != name:
                raise self._foreign(architecture, f"{given.name!r} stands where {name!r} belongs")
        return choices

    def _foreign(self, architecture: Architecture, reason: str) -> QuadranasError:
        return QuadranasError(
            f"architecture {architecture.name!r} is not in space {self.name}: {reason}"
        )

    def extreme(self, cost: OpCost, *, largest: bool) -> Architecture:
        """The cheapest or the dearest network of the space under a cost per operation."""
        pick = max if largest else min
        choices: dict[str, tuple[int, ...] | None] = {}
        for block in self.blocks:
            best = [
                pick(range(len(slot.candidates)), key=lambda i, s=slot: cost(s.candidates[i]))  # type: ignore[misc]
                for slot in block.slots
            ]
            choices[block.name] = SKIPPED if block.optional and not largest else tuple(best)
        return self.architecture(choices)
