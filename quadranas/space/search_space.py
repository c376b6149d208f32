"""SearchSpace: a sequence of blocks, each with slots that list their candidate operations."""

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from quadranas.errors import QuadranasError
from quadranas.space.architecture import (
    Architecture,
    Block,
    OwnModel,
    check_num_classes,
    check_own_classes,
)
from quadranas.space.operation import OpSpec

SKIPPED = None
"""The choice for a block that is not part of the network."""

OpCost = Callable[[OpSpec], float]
Choices = Mapping[str, tuple[int, ...] | None]
"""Per block name: the chosen candidate of each slot, or `SKIPPED`."""


@dataclass(frozen=True)
class Slot:
    """One decision: a block that is kept uses exactly one of the candidates."""

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
        """Whether the block leaves no choice to the search."""
        return not self.optional and all(len(slot.candidates) == 1 for slot in self.slots)


@dataclass(frozen=True)
class SearchSpace:
    """A search space with the channels and resolutions of all candidates resolved."""

    name: str
    resolution: int
    num_classes: int
    blocks: tuple[SpaceBlock, ...]
    model: OwnModel | None = None
    """The user's own model that all networks are made from, if there is one."""

    @cached_property
    def digest(self) -> str:
        """Identifier of the searched blocks, independent of the number of classes."""
        specs = [
            [block.name, block.optional, [list(map(str, slot.candidates)) for slot in block.slots]]
            for block in self.blocks[:-1]
        ]
        if self.model is not None:
            specs.append([self.model.digest, self.resolution])
        return hashlib.sha256(json.dumps(specs).encode()).hexdigest()[:16]

    @property
    def num_architectures(self) -> int:
        """The number of distinct networks.

        Blocks of a stage that are skipped are interchangeable: only their number counts.
        """
        total = 1
        for stage in dict.fromkeys(block.stage for block in self.blocks):
            depths = [1]  # per number of kept optional blocks, the number of networks
            for block in (b for b in self.blocks if b.stage == stage):
                options = math.prod(len(slot.candidates) for slot in block.slots)
                if block.optional:
                    depths.append(depths[-1] * options)
                else:
                    depths = [count * options for count in depths]
            total *= sum(depths)
        return total

    def specs(self) -> tuple[OpSpec, ...]:
        """The distinct operations of the space, in order."""
        candidates = (c for block in self.blocks for slot in block.slots for c in slot.candidates)
        return tuple(dict.fromkeys(candidates))

    def original_choices(self) -> dict[str, tuple[int, ...] | None]:
        """The choices that give a user's own model as it is.

        Raises:
            QuadranasError: a block has no candidate without changes.
        """
        choices: dict[str, tuple[int, ...] | None] = {}
        for block in self.blocks:
            (slot,) = block.slots
            whole = [i for i, c in enumerate(slot.candidates) if c.own and not c.own.changes]
            if not whole:
                raise QuadranasError(
                    f"block {block.name!r} of space {self.name} has no candidate without changes, "
                    "so the model itself is not in the space",
                    "Make the space again with: quadranas space-from MODEL.py:FUNCTION",
                )
            choices[block.name] = (whole[0],)
        return choices

    def with_num_classes(self, num_classes: int) -> "SearchSpace":
        """The same space with a classifier for another number of classes.

        Raises:
            QuadranasError: the number of classes is out of range.
        """
        check_num_classes(num_classes, f"space {self.name}")
        if self.model is not None:
            check_own_classes(self.num_classes, num_classes)
            return self
        *body, head = self.blocks
        slot = head.slots[0]
        spec = slot.candidates[0].model_copy(update={"out_channels": num_classes})
        new_head = replace(head, slots=(replace(slot, candidates=(spec,)),))
        return replace(self, num_classes=num_classes, blocks=(*body, new_head))

    def architecture(self, choices: Choices, name: str = "") -> Architecture:
        """The network for a choice per block; fixed blocks may be omitted."""
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
            model=self.model,
        )

    def choices_of(self, architecture: Architecture) -> dict[str, tuple[int, ...] | None]:
        """The choices that give an architecture: the inverse of `architecture`.

        Raises:
            QuadranasError: the architecture is not in this space; names the first difference.
        """
        if architecture.model != self.model:
            raise self._foreign(architecture, "it is made from another model")
        kept = {block.name: block for block in architecture.blocks}
        choices: dict[str, tuple[int, ...] | None] = {}
        for block in self.blocks:
            kept_block = kept.pop(block.name, None)
            if kept_block is None:
                if not block.optional:
                    raise self._foreign(architecture, f"block {block.name!r} is missing")
                choices[block.name] = SKIPPED
                continue
            if len(kept_block.ops) != len(block.slots):
                raise self._foreign(
                    architecture, f"block {block.name!r} has {len(kept_block.ops)} ops"
                )
            indices = []
            for slot, op in zip(block.slots, kept_block.ops, strict=True):
                if op not in slot.candidates:
                    raise self._foreign(architecture, f"{block.name}: {op} is not a candidate")
                indices.append(slot.candidates.index(op))
            choices[block.name] = tuple(indices)
        if kept:
            raise self._foreign(architecture, f"block {next(iter(kept))!r} is unknown")
        self._check_order(architecture, choices)
        return choices

    def _check_order(self, architecture: Architecture, choices: Choices) -> None:
        # The blocks were looked up by name, which says nothing about their order.
        order = [name for name, choice in choices.items() if choice is not SKIPPED]
        for block_in_order, name in zip(architecture.blocks, order, strict=True):
            if block_in_order.name != name:
                reason = f"block {block_in_order.name!r} is in the place of {name!r}"
                raise self._foreign(architecture, reason)

    def _foreign(self, architecture: Architecture, reason: str) -> QuadranasError:
        return QuadranasError(
            f"architecture {architecture.name!r} is not in space {self.name}: {reason}"
        )

    def extreme(self, cost: OpCost, *, largest: bool) -> Architecture:
        """The network of the space with the lowest or the highest cost.

        Args:
            cost: cost of one operation, at least 0.
        """
        pick = max if largest else min
        choices: dict[str, tuple[int, ...] | None] = {}
        for block in self.blocks:
            # A network's cost is the sum over its operations and no choice restricts another, so
            # each slot is decided by itself; a skipped block costs nothing.
            best = [
                pick(range(len(slot.candidates)), key=lambda i, s=slot: cost(s.candidates[i]))  # type: ignore[misc]
                for slot in block.slots
            ]
            choices[block.name] = SKIPPED if block.optional and not largest else tuple(best)
        return self.architecture(choices)
