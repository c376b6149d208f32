"""From trained gates to an architecture within limits."""

from collections.abc import Callable, Mapping, Sequence

from quadranas.latency.budget import format_ms
from quadranas.latency.contract import Contract
from quadranas.latency.table import LatencyTable
from quadranas.space.architecture import Architecture
from quadranas.space.search_space import Choices, SearchSpace
from quadranas.strategies.exact import Decoded, decode
from quadranas.strategies.limits import MIN_USE, Limits, check_budget
from quadranas.strategies.scores import BlockScores, GateScores

Provenance = str | int | float | bool | None
Judge = Callable[[Choices], float]

CONFIDENT_USE = 0.97
"""The minimum use of a budget that a confidence has tightened; it includes the margin already."""


def decoding_limits(
    contract: Contract,
    table: LatencyTable,
    *,
    max_params: int | None = None,
    max_macs: int | None = None,
) -> Limits:
    """The limits for predictions with which a contract is kept.

    Raises:
        QuadranasError: the table cannot give the confidence that is asked for.
    """
    return Limits(
        budget_ms=contract.decoding_ms(table),
        max_params=max_params,
        max_macs=max_macs,
        min_use=MIN_USE if contract.confidence is None else CONFIDENT_USE,
    )


def check_limits(space: SearchSpace, table: LatencyTable, limits: Limits) -> None:
    """Refuse limits that exclude every network of the space.

    Raises:
        BudgetError: says what is reachable.
    """
    check_budget(space, table, limits.budget_ms)
    if limits.max_params is None and limits.max_macs is None:
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
    decode(space, scores, table, limits)


def derive_architecture(
    space: SearchSpace,
    scores: GateScores,
    table: LatencyTable,
    contract: Contract,
    preferred: Sequence[Decoded],
    judge: Judge | None = None,
) -> Architecture:
    """One of the architectures that the gates prefer, with its provenance.

    Args:
        preferred: from `decode_best`, the best one first.
        judge: the accuracy of a network's choices, from 0 to 1; the best network is chosen, and of
            equal ones the one that the gates prefer. None: the gates choose.
    """
    accuracies = [judge(decoded.choices) for decoded in preferred] if judge else [0.0]
    best = accuracies.index(max(accuracies))
    decoded = preferred[best]
    made: dict[str, Provenance] = {
        "score": decoded.score,
        "log_probability": scores.log_probability(decoded.choices),
        "optimality_gap": decoded.gap,
    }
    if judge:
        made |= {
            "candidates": len(preferred),
            "preference": best + 1,
            "inherited_accuracy": accuracies[best],
        }
    return named_architecture(space, table, contract, decoded.choices, made)


def named_architecture(
    space: SearchSpace,
    table: LatencyTable,
    contract: Contract,
    choices: Choices,
    made: Mapping[str, Provenance],
) -> Architecture:
    """The architecture of choices, named after device and budget, with its provenance.

    Args:
        made: how it was chosen, for the provenance.
    """
    header = table.header
    name = f"{space.name}-{header.device}-{format_ms(contract.budget_ms).replace(' ', '')}"
    architecture = space.architecture(choices, name)
    provenance: dict[str, Provenance] = {
        "device": header.device,
        "budget_ms": contract.budget_ms,
        "confidence": contract.confidence,
        "predicted_ms": table.predict_ms(architecture),
        **made,
        "table": header.summary(),
    }
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
