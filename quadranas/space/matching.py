"""Which blocks of a search space correspond to the blocks of a network."""

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from quadranas.errors import QuadranasError
from quadranas.space.architecture import Architecture, Block
from quadranas.space.operation import DEPTHWISE, EXPANDING, OpSpec
from quadranas.space.search_space import SearchSpace, SpaceBlock


@dataclass(frozen=True)
class StageMatch:
    """A stage of a space, and the stage of a network in the same place.

    Args:
        name: the stage's name in the space.
        pairs: the blocks of the space in order, each with its counterpart in the network, or None
            for blocks beyond the depth of the network.
        extra: the network's blocks beyond the depth of the space.
    """

    name: str
    pairs: tuple[tuple[SpaceBlock, Block | None], ...]
    extra: tuple[Block, ...] = ()


class _Named(Protocol):
    @property
    def name(self) -> str: ...


Named = TypeVar("Named", bound=_Named)


def stage_of(block: str) -> str:
    """The stage of a block by its name, such as `stage1` of `stage1_block2` and `stage1_entry`."""
    return block.partition("_block")[0].removesuffix("_entry")


def by_stage(blocks: Iterable[Named]) -> dict[str, list[Named]]:
    """Blocks by the names of their stages, in order."""
    stages: dict[str, list[Named]] = {}
    for block in blocks:
        stages.setdefault(stage_of(block.name), []).append(block)
    return stages


def stage_widths(blocks: Iterable[Block | SpaceBlock]) -> list[int]:
    """The number of channels after every stage, without the head."""
    widths = {stage_of(block.name): _ops_of(block)[-1] for block in blocks}
    return [op.out_channels for op in widths.values() if not op.is_head]


def match_stages(
    space: SearchSpace, architecture: Architecture, source: str
) -> tuple[StageMatch, ...]:
    """The stages of a space with their counterparts in a network, the head last.

    Stages and blocks correspond by their order. Resolutions and numbers of classes may differ.

    Args:
        source: where the network comes from, for messages.

    Raises:
        QuadranasError: widths, strides or kinds of operations differ; names both and the command
            that writes a space which fits.
    """
    hint = fitting_space(source)
    here, there = stage_widths(space.blocks), stage_widths(architecture.blocks)
    kinds = [_kinds(blocks) for blocks in (space.blocks, architecture.blocks)]
    if kinds[0] != kinds[1]:
        names = [", ".join(sorted(found)) for found in kinds]
        raise QuadranasError(
            f"{source} does not fit space {space.name}: it consists of {names[1]}, the space of "
            f"{names[0]}",
            hint,
        )
    if here != there:
        raise QuadranasError(
            f"{source} does not fit space {space.name}: its stages have the widths "
            f"{', '.join(map(str, there))}; those of the space have {', '.join(map(str, here))}",
            hint,
        )
    stages = zip(
        by_stage(space.blocks).items(), by_stage(architecture.blocks).values(), strict=True
    )
    matches = []
    for (name, own), other in stages:
        fault = _fault(own, other)
        if fault:
            raise QuadranasError(
                f"{source} does not fit space {space.name}: {name}: {fault}", hint
            )
        matches.append(_matched(name, own, other))
    return tuple(matches)


def fitting_space(source: str) -> str:
    """The hint that says how to get a space which fits a network."""
    name = shlex.quote(source)
    return (
        f"Write a space that fits with: quadranas space-from {name} --output NAME.yaml; make its "
        "table with: quadranas build-lut --device DEVICE --space NAME.yaml; then search with "
        "--space NAME.yaml."
    )


def _matched(name: str, own: Sequence[SpaceBlock], other: Sequence[Block]) -> StageMatch:
    missing = [None] * max(0, len(own) - len(other))
    pairs = tuple(zip(own, [*other, *missing], strict=False))
    return StageMatch(name, pairs, tuple(other[len(own) :]))


def _kinds(blocks: Iterable[Block | SpaceBlock]) -> set[str]:
    return {op.kind for block in blocks for op in _ops_of(block)}


def _ops_of(block: Block | SpaceBlock) -> tuple[OpSpec, ...]:
    """The operations of a block; of a space, the first candidate of every slot."""
    if isinstance(block, Block):
        return block.ops
    return tuple(slot.candidates[0] for slot in block.slots)


def _fault(own: Sequence[SpaceBlock], other: Sequence[Block]) -> str:
    """How the blocks of a network differ from those of a space; empty if they fit."""
    if own[0].name.endswith("_entry") != other[0].name.endswith("_entry"):
        return "only one of them begins with an operation that changes the width"
    for block, counterpart in zip(own, other, strict=False):
        here, there = _ops_of(block), counterpart.ops
        kinds = [", ".join(op.kind for op in ops) for ops in (there, here)]
        if kinds[0] != kinds[1]:
            return f"{counterpart.name} has the operations {kinds[0]}; the space has {kinds[1]}"
        for op, wanted in zip(there, here, strict=True):
            for field in _fixed_fields(op):
                values = getattr(op, field), getattr(wanted, field)
                if values[0] != values[1]:
                    return (
                        f"{counterpart.name} has the {field} {values[0]}; the space has "
                        f"{values[1]}"
                    )
    return ""


def _fixed_fields(op: OpSpec) -> list[str]:
    """The fields that an operation and its counterpart have in common."""
    fields = ["stride", "num_quadratic"]
    fields += ["kernel_size"] if op.kind not in DEPTHWISE else []
    return fields + (["expand_ratio"] if op.kind not in EXPANDING else [])
