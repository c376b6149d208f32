"""The records of an inspection: distributions of a network in training, one JSON line per step."""

import math
import sys
from collections.abc import Mapping
from pathlib import Path

from pydantic import Field, FiniteFloat, ValidationError

from quadranas.files import parse_json, read_text
from quadranas.validation import Frozen

RECORDS_FILE = "inspection.jsonl"
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
NUM_BINS = 40


class Distribution(Frozen):
    """The distribution of a tensor's finite values; all statistics are 0 if there are none.

    Args:
        num_values: number of values, including those that are not finite.
        num_nonfinite: number of values that are infinite or NaN.
        mean: mean of the values.
        std: standard deviation of the values, without Bessel's correction.
        max_abs: largest magnitude.
        quantiles: the quantiles at 0.01, 0.05, 0.25, 0.5, 0.75, 0.95 and 0.99.
        low, high: bounds of the histogram: minimum and maximum of the values.
        counts: histogram: the number of values in each of 40 bins of equal width from `low` to
            `high`.
    """

    num_values: int
    num_nonfinite: int
    mean: FiniteFloat
    std: FiniteFloat
    max_abs: FiniteFloat
    quantiles: tuple[FiniteFloat, ...]
    low: FiniteFloat
    high: FiniteFloat
    counts: tuple[int, ...]

    @property
    def mean_square(self) -> float:
        """The energy: mean of the squares."""
        return min(self.mean * self.mean + self.std * self.std, sys.float_info.max)

    @property
    def norm(self) -> float:
        """Euclidean norm."""
        return math.sqrt(self.num_values - self.num_nonfinite) * math.hypot(self.mean, self.std)


class LayerRecord(Frozen):
    """One layer in one step.

    Args:
        kind: the form of a quadratic layer, or the class of another layer.
        activation: distribution of the output.
        first_order_energy, second_order_energy: mean squares of the terms of a quadratic layer's
            output; None for a term that the form does not have.
        weights, gradients: distributions by branch, `matrix`, or `weight`; without biases.
    """

    kind: str
    activation: Distribution | None = None
    first_order_energy: FiniteFloat | None = None
    second_order_energy: FiniteFloat | None = None
    weights: dict[str, Distribution] = Field(default_factory=dict)
    gradients: dict[str, Distribution] = Field(default_factory=dict)

    @property
    def second_order_share(self) -> float | None:
        """See `energy_share`."""
        return energy_share(self.first_order_energy, self.second_order_energy)

    def second_order_gradients(self) -> Mapping[str, Distribution]:
        """The gradients of a quadratic layer's factors and matrix; empty for other layers."""
        return {name: g for name, g in self.gradients.items() if name in ("a", "b", "matrix")}


class LayerTerms(Frozen):
    """The terms of a quadratic layer on one image.

    Args:
        layer: path of the layer.
        form: form of the layer, such as `hadamard`.
        first_order_energy, second_order_energy: mean squares of the terms; None for a term that
            the form does not have.
        second_order_share: share of the second-order term in the energy of both terms; None if
            there is only one.
    """

    layer: str
    form: str
    first_order_energy: float | None
    second_order_energy: float | None
    second_order_share: float | None


def energy_share(first_order: float | None, second_order: float | None) -> float | None:
    """The second-order term's share of the energy of both terms; None if there is only one."""
    if first_order is None or second_order is None:
        return None
    total = first_order + second_order
    return second_order / total if total else 0.0


class Alarm(Frozen):
    """A problem with a layer, described in one sentence.

    Args:
        layer: path of the layer.
        part: the part of the layer: `activation`, a branch, or `matrix`.
        kind: `nonfinite`, `exploding` or `vanishing`.
        text: the sentence.
    """

    layer: str
    part: str
    kind: str
    text: str


class StepRecord(Frozen):
    """All inspected layers in one training step, by their paths in the network.

    Args:
        step: number of the training step.
        layers: the inspected layers, by their paths.
        alarms: the alarms of this step.
    """

    step: int
    layers: dict[str, LayerRecord]
    alarms: tuple[Alarm, ...] = ()


def read_records(run: Path) -> tuple[StepRecord, ...]:
    """The records of a run; empty if it was not inspected. Invalid lines are skipped.

    Raises:
        QuadranasError: the file exists and cannot be read.
    """
    path = run / RECORDS_FILE
    if not path.is_file():
        return ()
    records = []
    for line in read_text(path, "inspection").splitlines():
        try:
            records.append(StepRecord.model_validate(parse_json(line)))
        except (ValueError, ValidationError):  # a killed run leaves half a line
            continue
    return tuple(records)
