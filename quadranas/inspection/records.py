"""What an inspection records of a network in training: plain data, a line of JSON per step."""

import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path

from pydantic import Field, FiniteFloat, ValidationError

from quadranas.files import read_text
from quadranas.validation import Frozen

RECORDS_FILE = "inspection.jsonl"
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
NUM_BINS = 40


class Distribution(Frozen):
    """The finite values of a tensor; all numbers are 0 where there is none.

    Args:
        num_values: how many, those included that are not finite.
        std: of the values themselves, not an estimate for more of them.
        quantiles: at `QUANTILES`.
        counts: of values in `NUM_BINS` bins of equal width from `low` to `high`.
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
        kind: the form of a quadratic layer, or the class of another one.
        activation: of the output.
        first_order_energy, second_order_energy: mean squares of the terms of a quadratic layer's
            output; none for a term that it has not.
        weights, gradients: per branch, `matrix`, or `weight`; without biases.
    """

    kind: str
    activation: Distribution | None = None
    first_order_energy: FiniteFloat | None = None
    second_order_energy: FiniteFloat | None = None
    weights: dict[str, Distribution] = Field(default_factory=dict)
    gradients: dict[str, Distribution] = Field(default_factory=dict)

    @property
    def second_order_share(self) -> float | None:
        """Of the energy of both terms, the second-order one's; none without both."""
        if self.first_order_energy is None or self.second_order_energy is None:
            return None
        total = self.first_order_energy + self.second_order_energy
        return self.second_order_energy / total if total else 0.0

    def second_order_gradients(self) -> Mapping[str, Distribution]:
        """The gradients of a quadratic layer's factors and matrix; of another layer, none."""
        return {name: g for name, g in self.gradients.items() if name in ("a", "b", "matrix")}


class Alarm(Frozen):
    """Something wrong with a layer, in a sentence.

    Args:
        part: of the layer: `activation`, a branch, or `matrix`.
    """

    layer: str
    part: str
    kind: str
    text: str


class StepRecord(Frozen):
    """All inspected layers in one step of training, by their paths in the network."""

    step: int
    layers: dict[str, LayerRecord]
    alarms: tuple[Alarm, ...] = ()


def read_records(run: Path) -> tuple[StepRecord, ...]:
    """What a run recorded; nothing if it was not inspected. Lines that are no record are left out.

    Raises:
        QuadranasError: the file is there and cannot be read.
    """
    path = run / RECORDS_FILE
    if not path.is_file():
        return ()
    records = []
    for line in read_text(path, "inspection").splitlines():
        try:
            records.append(StepRecord.model_validate(json.loads(line)))
        except (ValueError, ValidationError):  # a killed run leaves half a line
            continue
    return tuple(records)
