"""Conditions: what two latencies must have in common to be comparable."""

import json
from typing import Any, NamedTuple, Self

from pydantic import Field

from quadranas.validation import Frozen


class Difference(NamedTuple):
    """The first condition in which two latencies differ, and its two values."""

    key: str
    first: Any
    second: Any


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

    def identity(self) -> dict[str, str | int | None]:
        """The conditions as a flat mapping, for the first line of a journal of timings."""
        known = self.known()
        if "settings" in known:
            known["settings"] = json.dumps(known["settings"], sort_keys=True)
        return known
