"""A table header and gate scores that were made up."""

import itertools
import math

from quadranas.latency.table import TableHeader
from quadranas.space.search_space import SKIPPED, SearchSpace
from quadranas.strategies.scores import BlockScores, GateScores


def header(space: SearchSpace) -> TableHeader:
    return TableHeader(
        device="test",
        title="a device that was made up",
        space=space.name,
        space_digest=space.digest,
        resolution=space.resolution,
        method="analytic",
        backend="analytic",
        runtime="none",
        precision="fp32",
        statistic="model",
        expected_error="none",
        scale=1.25,
        null_ms=0.001,
        quadranas="0",
        command="",
        date="2026-01-01",
        commit="",
    )


def equal_scores(space: SearchSpace) -> GateScores:
    blocks = {
        block.name: BlockScores(
            keep=math.log(0.5) if block.optional else 0.0,
            skip=math.log(0.5) if block.optional else None,
            slots=tuple(
                (-math.log(len(slot.candidates)),) * len(slot.candidates) for slot in block.slots
            ),
        )
        for block in space.blocks
        if not block.is_fixed
    }
    return GateScores(space=space.name, space_digest=space.digest, blocks=blocks)


def all_choices(space: SearchSpace) -> list[dict[str, tuple[int, ...] | None]]:
    """Every configuration of the gates."""
    options: list[list[tuple[int, ...] | None]] = []
    for block in space.blocks:
        kept: list[tuple[int, ...] | None] = list(
            itertools.product(*(range(len(slot.candidates)) for slot in block.slots))
        )
        options.append([*kept, SKIPPED] if block.optional else kept)
    names = [block.name for block in space.blocks]
    return [dict(zip(names, picked, strict=True)) for picked in itertools.product(*options)]
