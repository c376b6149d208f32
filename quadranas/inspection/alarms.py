"""Alarms for second-order gradients that vanish or explode.

Source of the problem: QuadraLib, Xu et al., MLSys 2022 (arXiv:2204.01701): the gradient of one
factor is multiplied by the other factor's output, so products that shrink or grow feed themselves.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from quadranas.inspection.records import Alarm, Distribution, LayerRecord, StepRecord

EXPLODING_RATIO = 64.0
"""Norm of a factor's gradient over that of the linear branch, above which it explodes.

`c` receives the output's gradient g, `a` receives g b(x): the ratio is about the size of b(x). If
both factors are of size 64, peaks of four times that multiply to 2^16, and float16 ends at 65504.
"""

VANISHING_RATIO = 2.0**-10
"""The same ratio, below which it vanishes.

The unit initialisation begins at 1/4 (`forms.QUADRATIC_SHARE`). At a 250th of that, a step
of the factors is a thousandth of the linear branch's: the layer trains as a linear one.
"""

HISTORY_FACTOR = 100.0
"""How far outside of what it has been so far a value may lie.

Gradients of single batches of one training differ by factors of ten without anything wrong.
"""

MIN_HISTORY = 3
"""Records before a history says anything."""

NONFINITE = "nonfinite"
EXPLODING = "exploding"
VANISHING = "vanishing"


class GradientWatch:
    """Judges step after step; it remembers the smallest and the largest values of each part.

    A part's gradient norm is compared with the linear branch's, or with the rest of the network's
    where the form has no such branch, so that a training that converges raises no alarm.
    """

    def __init__(self) -> None:
        self._ranges: dict[str, list[float]] = {}
        self._current: set[str] = set()

    def judge(self, record: StepRecord) -> tuple[Alarm, ...]:
        """What is wrong in a step."""
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
        """Those alarms that were not already raised by the step before."""
        before, self._current = self._current, {_key(alarm) for alarm in alarms}
        return [alarm for alarm in alarms if _key(alarm) not in before]

    def state(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
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
        """What is wrong with a gradient and by which threshold; empty if nothing is."""
        count, lowest, highest = self._ranges.get(key, [0, math.inf, 0.0])
        self._ranges[key] = [count + 1, min(lowest, ratio), max(highest, norm)]
        if linear and ratio > EXPLODING_RATIO:
            return EXPLODING, f"above {EXPLODING_RATIO:g}"
        if linear and ratio < VANISHING_RATIO:
            return VANISHING, f"below {VANISHING_RATIO:.2g}"
        if count >= MIN_HISTORY and norm > HISTORY_FACTOR * highest:
            return EXPLODING, f"and it never was above {highest:.2g} before"
        if count >= MIN_HISTORY and ratio < lowest / HISTORY_FACTOR:
            return VANISHING, f"and that never was below {lowest:.2g} before"
        return "", ""


ADVICE = {
    EXPLODING: "lower the learning rate of the factors, or bound their product "
    "(quadranas.training.quadratic_optimization.SecondOrderControl)",
    VANISHING: "raise the learning rate of the factors (quadranas.training.quadratic_optimization."
    "quadratic_parameter_groups) or begin with larger ones",
}


def _key(alarm: Alarm) -> str:
    return f"{alarm.layer} {alarm.part} {alarm.kind}"


def _rest_norms(layers: Mapping[str, LayerRecord]) -> dict[str, float]:
    """Norm of the gradients of all layers but one, for each."""
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
                f"{what} are not finite; begin again with a lower learning rate",
            )
