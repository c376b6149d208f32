"""The plan of a measurement, and when it is trusted.

It is a module of its own so that help texts need not import the timing.
"""

from dataclasses import dataclass

MAX_RESIDUAL = 0.10
"""Residual of the calibration above which a table is not saved. Tables that were measured on an
idle machine have 1 to 3 %."""

DEFAULT_NETWORKS, MIN_NETWORKS = 10, 4
"""Numbers of whole networks to calibrate another device's table with: fewer say nothing about the
error."""


@dataclass(frozen=True)
class Plan:
    """The number of rounds and calls of a measurement.

    Args:
        num_rounds: number of rounds.
        repeats: number of calls of a program in each round, after one that is discarded.
        round_s: minimum duration of a round. The speed of a shared machine changes by several per
            cent within ten seconds, so a short measurement has to wait between its rounds.
    """

    num_rounds: int = 40
    repeats: int = 5
    seed: int = 0
    round_s: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Trust:
    """When a table is trusted.

    Args:
        only_suspect: measure the suspects again.
        max_residual: limit on the residual of the calibration.
    """

    only_suspect: bool = False
    max_residual: float = MAX_RESIDUAL
