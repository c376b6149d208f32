"""The contract: what counts as missing a budget."""

import pytest

from quadranas.latency.contract import missed_budget


@pytest.mark.parametrize(
    ("predicted_ms", "measured_ms", "message"),
    [
        (9.0, 10.4, ""),
        (9.0, 10.5, ""),  # the tolerance itself is allowed
        (
            *(9.0, 10.51),
            "measured 10.51 ms, over the budget of 10 ms by more than the tolerance of 5%",
        ),
        (11.0, 9.0, ""),  # the measurement decides
        (10.0, None, ""),
        (10.01, None, "predicted 10.01 ms, over the budget of 10 ms"),
        (None, 9.0, ""),
        (
            *(None, None),
            "cannot check the budget of 10 ms: the latency was neither measured nor predicted",
        ),
    ],
)
def test_a_measurement_has_a_tolerance_and_a_prediction_has_none(
    predicted_ms: float | None, measured_ms: float | None, message: str
) -> None:
    found = missed_budget(10.0, 0.05, predicted_ms=predicted_ms, measured_ms=measured_ms)
    assert found == message
