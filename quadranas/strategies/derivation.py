"""From trained gates to an architecture within limits."""

from collections.abc import Mapping, Sequence

from quadranas.errors import QuadranasError
from quadranas.latency.budget import format_ms
from quadranas.latency.goal import Goal
from quadranas.latency.table import LatencyTable
from quadranas.space.architecture import Architecture
from quadranas.space.search_space import Choices, SearchSpace
from quadranas.strategies.exact import Decoded, decode_preferred
from quadranas.strategies.feasibility import check_alone
from quadranas.strategies.interface import JudgeAll
from quadranas.strategies.limits import MIN_USE, DeviceBudget, Limits
from quadranas.strategies.scores import BlockScores, GateScores

Provenance = str | int | float | bool | None

CONFIDENT_USE = 0.97
"""The minimum use of a budget that a confidence has tightened; it includes the margin already."""


def decoding_limits(goals: Sequence[Goal], **ceilings: int | None) -> Limits:
    """The limits for predictions with which the budgets on all devices are kept.

    Args:
        goals: that of the main device first.
        ceilings: `max_params` and the other upper bounds of `Limits`.

    Raises:
        QuadranasError: a table cannot give the confidence that is asked for.
    """
    main, *further = goals
    return Limits(
        budget_ms=main.decoding_ms,
        also=tuple(DeviceBudget(table=g.table, budget_ms=g.decoding_ms) for g in further),
        min_use=MIN_USE if main.contract.confidence is None else CONFIDENT_USE,
        **ceilings,
    )


def check_limits(
    space: SearchSpace, table: LatencyTable, limits: Limits, candidates: int = 1
) -> None:
    """Refuse limits that exclude every network of the space, or more candidates than networks.

    Args:
        candidates: number of networks that have to be within the limits.

    Raises:
        BudgetError: says what is reachable.
    """
    check_candidates(space, candidates)
    check_alone(space, table, limits)
    if candidates == 1 and len(limits.bounds(table)) == 1:
        return
    indifferent = {
        block.name: BlockScores(
            skip=0.0 if block.optional else None,
            slots=tuple((0.0,) * len(slot.candidates) for slot in block.slots),
        )
        for block in space.blocks
        if not block.is_fixed
    }
    scores = GateScores(space=space.name, space_digest=space.digest, blocks=indifferent)
    decode_candidates(space, scores, table, limits, candidates)


def check_candidates(space: SearchSpace, candidates: int) -> None:
    """Refuse more candidates than networks of the space.

    Raises:
        QuadranasError: names the number of networks.
    """
    if candidates > space.num_architectures:
        raise QuadranasError(
            f"{candidates} candidates are more than the {space.num_architectures} networks of "
            f"space {space.name!r}",
            f"Choose at most --candidates {space.num_architectures}.",
        )


def decode_candidates(
    space: SearchSpace, scores: GateScores, table: LatencyTable, limits: Limits, number: int
) -> list[Decoded]:
    """The networks that the gates prefer, exactly as many as are asked for.

    If other arrangements of the same networks fill the attempts of `decode_best`, there may be
    fewer.

    Raises:
        BudgetError: no network is within the limits.
        QuadranasError: fewer networks are within the limits.
    """
    found, are_all = decode_preferred(space, scores, table, limits, number)
    if are_all and len(found) < number:
        kept = f"{len(found)} network{'s' if len(found) > 1 else ''}"
        raise QuadranasError(
            f"{number} candidates are more than the {kept} of space {space.name!r} within the "
            f"limits that use{'s' if len(found) == 1 else ''} at least {limits.min_use:.0%} of "
            "the budget, or of what can be used",
            f"Choose at most --candidates {len(found)}, or higher limits.",
        )
    return found


def derive_architecture(
    space: SearchSpace,
    scores: GateScores,
    goals: Sequence[Goal],
    preferred: Sequence[Decoded],
    judge_all: JudgeAll | None = None,
) -> Architecture:
    """One of the architectures that the gates prefer, with its provenance.

    Args:
        preferred: from `decode_best`, the best one first.
        judge_all: the best network is chosen, and of equal ones the one that the gates prefer.
            None: the gates choose.
    """
    accuracies = judge_all([decoded.choices for decoded in preferred]) if judge_all else [0.0]
    best = list(accuracies).index(max(accuracies))
    decoded = preferred[best]
    made: dict[str, Provenance] = {
        "score": decoded.score,
        "log_probability": scores.log_probability(decoded.choices),
        "optimality_gap": decoded.gap,
    }
    if judge_all:
        made |= {
            "candidates": len(preferred),
            "preference": best + 1,
            "inherited_accuracy": accuracies[best],
        }
    return named_architecture(space, goals, decoded.choices, made)


def named_architecture(
    space: SearchSpace, goals: Sequence[Goal], choices: Choices, made: Mapping[str, Provenance]
) -> Architecture:
    """The architecture of choices, named after device and budget, with its provenance.

    Args:
        goals: that of the main device first, which gives the name; of the others the keys
            `budget_ms.DEVICE` and `predicted_ms.DEVICE` tell.
        made: how it was chosen, for the provenance.
    """
    main, *further = goals
    name = f"{space.name}-{main.name}-{format_ms(main.contract.budget_ms).replace(' ', '')}"
    architecture = space.architecture(choices, name)
    provenance: dict[str, Provenance] = {
        "device": main.name,
        "budget_ms": main.contract.budget_ms,
        "confidence": main.contract.confidence,
        "predicted_ms": main.table.predict_ms(architecture),
    }
    for goal in further:
        provenance[f"budget_ms.{goal.name}"] = goal.contract.budget_ms
        provenance[f"predicted_ms.{goal.name}"] = goal.table.predict_ms(architecture)
    provenance |= {**made, "table": main.table.header.summary()}
    return architecture.model_copy(update={"provenance": provenance})


def judgement(architecture: Architecture) -> str:
    """How an architecture was chosen among several, in words; empty if it was not."""
    made = architecture.provenance
    if not made.get("candidates"):
        return ""
    return (
        f"chose number {made['preference']} of the {made['candidates']} networks that the gates "
        f"prefer: {made['inherited_accuracy']:.1%} on held-out images with the supernet's weights"
    )
