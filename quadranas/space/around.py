"""A search space around one network: its widths, and smaller depths, kernels and expansions."""

from collections.abc import Iterable, Sequence
from typing import Any

from quadranas.errors import QuadranasError
from quadranas.space.architecture import Architecture, Block
from quadranas.space.matching import by_stage, stage_widths
from quadranas.space.operation import DEPTHWISE, EXPANDING, OpSpec
from quadranas.space.space_file import SpaceFile
from quadranas.validation import validate

SMALLEST_KERNEL = 3
SHARES = (0.5, 0.75)
"""Fractions of an expansion that the space offers besides it, where they are whole numbers."""


def space_around(architecture: Architecture, name: str, source: str) -> SpaceFile:
    """The space whose largest network is the given one.

    Stages with depthwise convolutions may lose up to half of their blocks. Kernels are searched
    from 3 pixels up to that of the network, expansions from half of it.

    Args:
        name: of the space.
        source: where the network comes from, recorded in the file.

    Raises:
        QuadranasError: spaces cannot hold the network; names the stage.
    """
    *body, head = by_stage(architecture.blocks).items()
    content = {
        "name": name,
        "source": source,
        "resolution": architecture.resolution,
        "num_classes": architecture.num_classes,
        "widths": stage_widths(architecture.blocks),
        "stages": [
            _stage(label, blocks, number) for number, (label, blocks) in enumerate(body, 1)
        ],
        "head": head[1][-1].ops[-1].kind,
    }
    return validate(SpaceFile, content, f"the space around {source}")


def _stage(label: str, blocks: Sequence[Block], number: int) -> dict[str, Any]:
    entries = [block for block in blocks if block.name.endswith("_entry")]
    rest = [block for block in blocks if block not in entries]
    if not rest:
        raise QuadranasError(
            f"stage {label} of the network has no blocks, and a stage of a space needs some",
            "Write the file of the space by hand.",
        )
    kinds = [op.kind for op in rest[0].ops]
    if any([op.kind for op in block.ops] != kinds for block in rest):
        raise QuadranasError(
            f"stage {label} of the network mixes blocks of several kinds",
            "Write the file of the space by hand.",
        )
    fewest = len(rest)
    if any(kind in DEPTHWISE for kind in kinds):
        fewest = (len(rest) + 1) // 2
    stage: dict[str, Any] = {"name": "" if label == f"stage{number}" else label}
    if entries:
        (entry,) = entries[0].ops
        size = {"kernel_size": entry.kernel_size, "stride": entry.stride}
        stage["entry"] = {"kind": entry.kind, **size}
    else:
        stage["stride"] = rest[0].ops[0].stride
    slots = [_slot([block.ops[place] for block in rest]) for place in range(len(kinds))]
    return stage | {"depth": [fewest, len(rest)], "slots": slots}


def _slot(ops: Sequence[OpSpec]) -> dict[str, Any]:
    """The slot for the operations in the same place of all blocks of a stage."""
    if any(op.num_quadratic for op in ops):
        raise QuadranasError(
            f"the network has quadratic linear layers ({ops[0]}), which no space has",
            "Use a network whose feed-forward parts are first-order.",
        )
    kind, kernels = ops[0].kind, {op.kernel_size for op in ops}
    if kind in DEPTHWISE:
        kernels |= set(range(SMALLEST_KERNEL, max(kernels), 2))
    expansions = {op.expand_ratio for op in ops}
    if kind in EXPANDING:
        expansions |= _smaller(expansions)
    return {
        "kind": kind,
        "kernel_size": sorted(kernels),
        "expand_ratio": sorted(expansions),
    }


def _smaller(expansions: Iterable[int | float]) -> set[int | float]:
    """Whole numbers above 1 that are fractions of expansions."""
    found = {share * ratio for ratio in expansions for share in SHARES}
    return {int(ratio) for ratio in found if ratio == int(ratio) and ratio > 1}
