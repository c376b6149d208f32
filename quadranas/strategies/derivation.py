"""From trained gates to an architecture within limits."""

from quadranas.latency.budget import format_ms
from quadranas.latency.contract import Contract
from quadranas.latency.table import LatencyTable
from quadranas.space.architecture import Architecture
from quadranas.space.search_space import SearchSpace
from quadranas.strategies.exact import decode
from quadranas.strategies.limits import MIN_USE, Limits, check_budget
from quadranas.strategies.scores import BlockScores, GateScores

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
    space: SearchSpace, scores: GateScores, table: LatencyTable, limits: Limits, contract: Contract
) -> Architecture:
    """The architecture within the limits that the gates prefer, with its provenance.

    Args:
        limits: with the budget for predictions, `contract.decoding_ms`.

    Raises:
        BudgetError: no network of the space is within the limits.
    """
    decoded = decode(space, scores, table, limits)
    header = table.header
    name = f"{space.name}-{header.device}-{format_ms(contract.budget_ms).replace(' ', '')}"
    architecture = space.architecture(decoded.choices, name)
    provenance: dict[str, str | int | float | bool | None] = {
        "device": header.device,
        "budget_ms": contract.budget_ms,
        "confidence": contract.confidence,
        "predicted_ms": decoded.latency_ms,
        "score": decoded.score,
        "log_probability": scores.log_probability(decoded.choices),
        "optimality_gap": decoded.gap,
        "table": header.summary(),
    }
    return architecture.model_copy(update={"provenance": provenance})
