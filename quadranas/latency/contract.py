"""The contract of a latency budget: its confidence, and the tolerance before it is missed."""

from dataclasses import dataclass

from quadranas.errors import QuadranasError
from quadranas.latency.table import LatencyTable, build_command

DEFAULT_TOLERANCE = 0.05
"""Allowed overshoot of a measured latency, as a fraction of the budget: 95 % of the predictions
of a good table are closer to the measurement than that."""


@dataclass(frozen=True, kw_only=True)
class Contract:
    """A latency budget with its confidence and tolerance.

    Args:
        confidence: probability that the measured latency is within the budget; `None`: only the
            predicted latency is kept within it.
        tolerance: allowed overshoot of the measured latency, as a fraction of the budget.

    Raises:
        QuadranasError: confidence outside [0.5, 1), or tolerance outside [0, 1].
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
                "Write a fraction of the budget such as 0.05.",
            )

    def decoding_ms(self, table: LatencyTable) -> float:
        """The budget for predictions: `budget / (1 + z * residual)` for a confidence.

        The residual is that of the table's validation, a separate session that includes the drift
        of the device between two sessions; without a validation, that of its calibration.

        Raises:
            QuadranasError: the table was not calibrated by measuring, so it has no residual.
        """
        if self.confidence is None:
            return self.budget_ms
        known = table.header.validation or table.header.calibration
        if known is None:
            raise QuadranasError(
                f"a confidence needs a measured table; that of device {table.header.device!r} is "
                f"{table.header.method} and states only an expected error of "
                f"{table.header.expected_error}",
                f"Omit --confidence, or measure: "
                f"{build_command(table.header.space, table.header.device)} --backend RUNTIME",
            )
        return self.budget_ms / known.safety_factor(self.confidence)


def missed_budget(
    budget_ms: float,
    tolerance: float,
    *,
    predicted_ms: float | None,
    measured_ms: float | None,
) -> str:
    """Describe how a latency misses its budget; empty if the budget is kept.

    The measured latency is checked if there is one, otherwise the predicted latency.

    Args:
        tolerance: allowed overshoot of the measured latency, as a fraction of the budget. A
            predicted latency has no tolerance.
    """
    if measured_ms is not None:
        if measured_ms <= budget_ms * (1 + tolerance):
            return ""
        return (
            f"measured {measured_ms:.4g} ms, over the budget of {budget_ms:.4g} ms by more than "
            f"the tolerance of {tolerance:.0%}"
        )
    if predicted_ms is not None:
        if predicted_ms <= budget_ms:
            return ""
        return f"predicted {predicted_ms:.4g} ms, over the budget of {budget_ms:.4g} ms"
    return (
        f"cannot check the budget of {budget_ms:.4g} ms: the latency was neither measured nor "
        "predicted"
    )
