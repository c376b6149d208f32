"""Conditions: what two latencies must have in common to be comparable."""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple, Self

from pydantic import Field

from quadranas.validation import Frozen


class Difference(NamedTuple):
    """A condition in which two latencies differ, and its two values."""

    key: str
    first: Any
    second: Any


MISSING = "none"
"""How a value that only the other conditions have is shown."""


NOT_IN_JOURNALS = ("target", "tuning_trials", "model")
"""Conditions that the identity of a journal lacks: a runtime's name and settings contain the
first two, and an analytic model has no timings."""


class Conditions(Frozen):
    """The conditions that latencies were or will be measured under.

    Devices, runtimes and table headers each define some of them. Conditions that were not set are
    unknown and not compared. `None` is a value, for example for a device without a thread count.

    Args:
        device, space, space_digest: names of the device and the space, identity of the space.
        method: `analytic`, `emulated` or `measured`.
        backend, runtime: name of the runtime, and its name with its version.
        hardware, target: the hardware's own name, and its name in the runtime.
        settings: other settings that affect the speed: tuning, clocks, driver.
        tuning_trials: number of schedules that the runtime tries per kernel.
        model: the numbers of the analytic model; `None` for a device without one.
        statistic: the statistic of the timings that gives the latency.
    """

    device: str = ""
    space: str = ""
    space_digest: str = ""
    precision: str = ""
    threads: int | None = None
    batch_size: int = 1
    method: str = ""
    backend: str | None = None
    runtime: str = ""
    hardware: str = ""
    target: str = ""
    settings: dict[str, str] = Field(default_factory=dict)
    tuning_trials: int | None = None
    model: dict[str, Any] | None = None
    statistic: str = ""

    def __or__(self, other: Self) -> Self:
        """The union of both conditions; where both have a value, the other's."""
        return type(self).model_validate(self.known() | other.known())

    def known(self) -> dict[str, Any]:
        """The conditions that were set, by name."""
        return self.model_dump(include=self.model_fields_set)

    def difference(self, other: Self) -> Difference | None:
        """The first condition known in both that differs; `None` if all are equal."""
        first, second = self.known(), other.known()
        for key in type(self).model_fields:
            if key in first and key in second and first[key] != second[key]:
                return Difference(key, first[key], second[key])
        return None

    def differences(self, other: Self) -> list[Difference]:
        """All conditions known in both that differ, those inside `settings` and `model` by name.

        The first is that of `difference`, or a part of it.
        """
        first, second = self.known(), other.known()
        return [
            found
            for key in type(self).model_fields
            if key in first and key in second
            for found in _differences(key, first[key], second[key])
        ]

    def identity(self) -> dict[str, str | int | None]:
        """The conditions as a flat mapping, for the first line of a journal of timings."""
        known = {key: v for key, v in self.known().items() if key not in NOT_IN_JOURNALS}
        if "settings" in known:
            known["settings"] = json.dumps(known["settings"], sort_keys=True)
        return known


def in_words(differences: list[Difference]) -> str:
    """Differences as a list: `precision fp32, not fp16; threads 1, not 4`."""
    return "; ".join(f"{key} {first}, not {second}" for key, first, second in differences)


def _differences(key: str, first: Any, second: Any) -> list[Difference]:
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        return [
            found
            for part in dict.fromkeys((*first, *second))
            for found in _differences(
                f"{key}.{part}", first.get(part, MISSING), second.get(part, MISSING)
            )
        ]
    return [] if first == second else [Difference(key, first, second)]
