"""The plan of a measurement, in its own module so that help texts need not import the timing."""

from dataclasses import dataclass


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
