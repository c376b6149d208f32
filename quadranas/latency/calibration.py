"""Calibration: one scale factor from entries to whole networks, and the error that remains."""

import math
from collections.abc import Sequence
from typing import Annotated

import numpy as np
from pydantic import Field, FiniteFloat, NonNegativeFloat
from scipy.special import stdtrit

from quadranas.latency.budget import MAX_MS, MIN_MS
from quadranas.validation import Frozen

Milliseconds = Annotated[float, Field(ge=MIN_MS, le=MAX_MS)]


class NetworkLatency(Frozen):
    """Predicted and measured latency of a whole network.

    Args:
        name: name of the network.
        predicted_ms: latency by the table.
        measured_ms: latency on the device.
    """

    name: str
    predicted_ms: Milliseconds
    measured_ms: Milliseconds

    @property
    def error(self) -> float:
        """Relative excess of the measurement over the prediction."""
        return self.measured_ms / self.predicted_ms - 1


class Calibration(Frozen):
    """The whole networks that a table's scale was fitted to.

    Args:
        networks: the networks, with the predictions of the scaled table.
        residual: standard deviation of the error after scaling, relative to the prediction.
    """

    networks: tuple[NetworkLatency, ...] = Field(min_length=2)
    residual: float = Field(ge=0, le=1e6)

    def safety_factor(self, confidence: float) -> float:
        """The divisor of a budget that a network should keep with this probability."""
        return _safety_factor(
            self.residual, len(self.networks), len(self.networks) - 1, confidence
        )


class Agreement(Frozen):
    """Agreement of predictions and measurements on fresh networks.

    Args:
        networks: the networks that were measured.
        bias: mean signed error of the predictions, relative to the measurements.
        mape: mean absolute error, relative to the measurements.
        within_5, within_10: share of networks with an absolute error of at most 5 and 10 %.
        kendall_tau: rank correlation.
        command, date, commit: command line, date and source revision of the comparison.
    """

    networks: tuple[NetworkLatency, ...] = Field(min_length=2)
    bias: FiniteFloat
    mape: NonNegativeFloat
    within_5: float = Field(ge=0, le=1)
    within_10: float = Field(ge=0, le=1)
    kendall_tau: float = Field(ge=-1, le=1)
    command: str
    date: str
    commit: str

    @property
    def residual(self) -> float:
        """Root mean square of the networks' errors, which includes the bias."""
        squares = sum(network.error**2 for network in self.networks)
        return math.sqrt(squares / len(self.networks))

    def safety_factor(self, confidence: float) -> float:
        """The divisor of a budget that a network should keep with this probability."""
        return _safety_factor(self.residual, len(self.networks), len(self.networks), confidence)

    def summary(self) -> str:
        """The agreement in one line."""
        return (
            f"{self.mape:.1%} MAPE, bias {self.bias:+.1%}, {self.within_5:.0%} within 5 %, "
            f"{self.within_10:.0%} within 10 %, Kendall tau {self.kendall_tau:.2f} "
            f"on {len(self.networks)} fresh networks"
        )


def _safety_factor(residual: float, size: int, freedom: int, confidence: float) -> float:
    """`1 + z * residual`, where z is the one-sided quantile for one further network.

    The distribution is Student's, since the residual is itself estimated from a few networks.
    """
    z = float(stdtrit(freedom, confidence)) * math.sqrt(1 + 1 / size)
    return 1 + z * residual


def fit_scale(sums_ms: Sequence[float], measured_ms: Sequence[float], null_ms: float) -> float:
    """The scale that minimises the squared relative error of `scale * sum + null`.

    Args:
        sums_ms: the sum of each network's entries, without null calls.
    """
    sums, measured = np.asarray(sums_ms), np.asarray(measured_ms)
    part, target = sums / measured, 1 - null_ms / measured
    return float(part @ target / (part @ part))


def calibrate(networks: Sequence[NetworkLatency]) -> Calibration:
    """The calibration by the networks of a fitted scale, which costs one degree of freedom."""
    squares = sum(network.error**2 for network in networks)
    return Calibration(networks=tuple(networks), residual=math.sqrt(squares / (len(networks) - 1)))


def agreement(
    networks: Sequence[NetworkLatency], *, command: str, date: str, commit: str
) -> Agreement:
    """Compare predictions and measurements of networks that the calibration has not seen."""
    predicted = np.array([network.predicted_ms for network in networks])
    measured = np.array([network.measured_ms for network in networks])
    errors = predicted / measured - 1
    from scipy import stats  # half a second to import, for few commands

    tau = float(stats.kendalltau(predicted, measured).statistic)
    return Agreement(
        networks=tuple(networks),
        bias=float(errors.mean()),
        mape=float(np.abs(errors).mean()),
        within_5=float((np.abs(errors) <= 0.05).mean()),
        within_10=float((np.abs(errors) <= 0.10).mean()),
        kendall_tau=tau if math.isfinite(tau) else 0.0,
        command=command,
        date=date,
        commit=commit,
    )
