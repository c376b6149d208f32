"""Alarms for second-order gradients that vanish or explode.

Source of the problem: QuadraLib, Xu et al., MLSys 2022 (arXiv:2204.01701): the gradient of one
factor is multiplied by the output of the other, so shrinking or growing products reinforce
themselves.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from quadranas.inspection.records import Alarm, Distribution, LayerRecord, StepRecord

EXPLODING_RATIO = 64.0
"""Norm of a factor's gradient over that of the linear branch, above which it is exploding.

`c` receives the output's gradient g, `a` receives g b(x), so the ratio is about the size of b(x).
If both factors are of size 64, peaks of four times that multiply to 2^16, and the largest float16
is 65504.
"""

VANISHING_RATIO = 2.0**-10
"""The same ratio, below which it is vanishing.

The unit initialisation starts at 1/4 (`forms.QUADRATIC_SHARE`). At a 250th of that, a step of the
factors is a thousandth of the linear branch's, and the layer trains like a linear one.
"""

HISTORY_FACTOR = 100.0
"""Factor by which a value may exceed its previous range.

Gradients of single batches in a healthy training differ by factors of ten.
"""

MIN_HISTORY = 3
"""Number of records before history-based thresholds apply."""

NONFINITE = "nonfinite"
EXPLODING = "exploding"
VANISHING = "vanishing"


class GradientWatch:
    """Checks step after step; it stores the smallest and the largest values of each part.

    The gradient norm of a part is compared with that of the linear branch or, if the form has no
    such branch, with that of the rest of the network. So the shrinking gradients of a
    converging training raise no alarm.
    """

    def __init__(self) -> None:
        self._ranges: dict[str, list[float]] = {}
        self._current: set[str] = set()

    def judge(self, record: StepRecord) -> tuple[Alarm, ...]:
        """The alarms of a step."""
        rest = _rest_norms(record.layers)
        return tuple(
            alarm
            for name, layer in record.layers.items()
            for alarm in (
                *_nonfinite(name, layer, record.step),
                *self._second_order(name, layer, record.step, rest[name]),
            )
        )

    def new(self, alarms: tuple[Alarm, ...]) -> list[Alarm]:
        """The alarms that were not raised in the previous step."""
        before, self._current = self._current, {_key(alarm) for alarm in alarms}
        return [alarm for alarm in alarms if _key(alarm) not in before]

    def state(self) -> dict[str, Any]:
        """The state as plain values, for a checkpoint."""
        return {
            "ranges": {key: list(values) for key, values in self._ranges.items()},
            "current": sorted(self._current),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """The reverse of `state`."""
        self._ranges = {key: list(values) for key, values in state["ranges"].items()}
        self._current = set(state["current"])

    def _second_order(
        self, name: str, layer: LayerRecord, step: int, rest: float
    ) -> Iterator[Alarm]:
        linear = layer.gradients.get("c")
        against, norm = ("c", linear.norm) if linear else ("the rest of the network", rest)
        for part, gradient in layer.second_order_gradients().items():
            if gradient.num_nonfinite or not norm:
                continue
            ratio = gradient.norm / norm
            kind, why = self._verdict(f"{name}.{part}", gradient.norm, ratio, linear is not None)
            if kind:
                yield Alarm(
                    layer=name,
                    part=part,
                    kind=kind,
                    text=f"layer {name}, step {step}: the second-order gradient is {kind}: the "
                    f"norm of {part}'s is {gradient.norm:.2g}, {ratio:.2g} times that of "
                    f"{against}, {why}; {ADVICE[kind]}",
                )

    def _verdict(self, key: str, norm: float, ratio: float, linear: bool) -> tuple[str, str]:
        """The kind of alarm for a gradient and the threshold it crosses; empty for no alarm."""
        count, lowest, highest = self._ranges.get(key, [0, math.inf, 0.0])
        self._ranges[key] = [count + 1, min(lowest, ratio), max(highest, norm)]
        if linear and ratio > EXPLODING_RATIO:
            return EXPLODING, f"above {EXPLODING_RATIO:g}"
        if linear and ratio < VANISHING_RATIO:
            return VANISHING, f"below {VANISHING_RATIO:.2g}"
        if count >= MIN_HISTORY and norm > HISTORY_FACTOR * highest:
            return EXPLODING, f"and it was never above {highest:.2g} before"
        if count >= MIN_HISTORY and ratio < lowest / HISTORY_FACTOR:
            return VANISHING, f"and the ratio was never below {lowest:.2g} before"
        return "", ""


ADVICE = {
    EXPLODING: "lower the learning rate of the factors, or bound their product "
    "(quadranas.training.quadratic_optimization.SecondOrderControl)",
    VANISHING: "raise the learning rate of the factors (quadranas.training.quadratic_optimization."
    "quadratic_parameter_groups) or start with larger factors",
}


def _key(alarm: Alarm) -> str:
    return f"{alarm.layer} {alarm.part} {alarm.kind}"


def _rest_norms(layers: Mapping[str, LayerRecord]) -> dict[str, float]:
    """For each layer, the norm of the gradients of all other layers."""
    squares = {
        name: math.fsum(g.norm**2 for g in layer.gradients.values())
        for name, layer in layers.items()
    }
    return {
        name: math.sqrt(math.fsum(s for other, s in squares.items() if other != name))
        for name in squares
    }


def _nonfinite(name: str, layer: LayerRecord, step: int) -> Iterator[Alarm]:
    parts: dict[str, tuple[str, Distribution]] = {
        f"weights of {part}": (part, found) for part, found in layer.weights.items()
    } | {f"gradients of {part}": (part, found) for part, found in layer.gradients.items()}
    if layer.activation is not None:
        parts["activations"] = ("activation", layer.activation)
    for what, (part, found) in parts.items():
        if found.num_nonfinite:
            yield Alarm(
                layer=name,
                part=part,
                kind=NONFINITE,
                text=f"layer {name}, step {step}: {found.num_nonfinite} of {found.num_values} "
                f"{what} are not finite; restart with a lower learning rate",
            )
