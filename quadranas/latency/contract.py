"""The contract between a budget and the network that is found for it."""

from dataclasses import dataclass

from quadranas.errors import QuadranasError
from quadranas.latency.table import LatencyTable, build_command

DEFAULT_TOLERANCE = 0.05
"""How far a measured latency may be over the budget before the promise counts as missed: what
95 % of a good table's predictions are within."""


@dataclass(frozen=True, kw_only=True)
class Contract:
    """The budget as its user means it.

    Args:
        confidence: of a network keeping the budget when it is measured; none: the prediction keeps
            it.
        tolerance: relative excess of the measured latency that is not yet a missed promise.

    Raises:
        QuadranasError: a confidence that is none, or that no budget is tight enough for; a
            tolerance that is none.
    """

    budget_ms: float
    confidence: float | None = None
    tolerance: float = DEFAULT_TOLERANCE

    def __post_init__(self) -> None:
        if self.confidence is not None and not 0.5 <= self.confidence < 1:
            raise QuadranasError(
                f"the confidence must be at least 0.5 and less than 1, got {self.confidence}",
                "Write a probability such as 0.95.",
            )
        if not 0 <= self.tolerance <= 1:
            raise QuadranasError(
                f"the tolerance must be from 0 to 1, got {self.tolerance}",
                "Write a share of the budget such as 0.05.",
            )

    def decoding_ms(self, table: LatencyTable) -> float:
        """The budget for predictions: `budget / (1 + z * residual)` for a confidence.

        The residual is that of the table's validation, which was another session and so knows how
        far the device drifts between two; of its calibration where it was not validated.

        Raises:
            QuadranasError: the table has no residual, since it was not calibrated by measuring.
        """
        if self.confidence is None:
            return self.budget_ms
        known = table.header.validation or table.header.calibration
        if known is None:
            raise QuadranasError(
                f"a confidence needs a measured table; that of device {table.header.device!r} is "
                f"{table.header.method} and says only: expected error "
                f"{table.header.expected_error}",
                f"Leave out --confidence, or measure: "
                f"{build_command(table.header.space, table.header.device)} --backend RUNTIME",
            )
        return self.budget_ms / known.safety_factor(self.confidence)
