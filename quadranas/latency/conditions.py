"""Conditions: what two latencies must have in common to be comparable."""

import json
from typing import Any, NamedTuple, Self

from pydantic import Field

from quadranas.validation import Frozen


class Difference(NamedTuple):
    """The first of the conditions in which two latencies differ, and both of its values."""

    key: str
    first: Any
    second: Any


class Conditions(Frozen):
    """The conditions that latencies were or will be measured under.

    Devices, runtimes and table headers each know some of them. A condition that was not set is
    unknown, and is not compared; `None` is a value, such as that of a device without a thread
    count.

    Args:
        device, space, space_digest: names of the device and the space, identity of the space.
        method: `analytic`, `emulated` or `measured`.
        backend, runtime: name of the runtime, and its name with its version.
        hardware, target: the hardware as it names itself, and in the runtime's terms.
        settings: what else decides the speed: tuning, clocks, driver.
        statistic: which statistic of the timings a latency is.
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
        """These conditions and others; the others' value where both have one."""
        return type(self).model_validate(self.known() | other.known())

    def known(self) -> dict[str, Any]:
        """The conditions that were set, by name."""
        return self.model_dump(include=self.model_fields_set)

    def difference(self, other: Self) -> Difference | None:
        """The first condition that both know and that differs; `None` if there is none."""
        first, second = self.known(), other.known()
        for key in type(self).model_fields:
            if key in first and key in second and first[key] != second[key]:
                return Difference(key, first[key], second[key])
        return None

    def identity(self) -> dict[str, str | int | None]:
        """The same on one level, as the first line of a journal of timings holds it."""
        known = self.known()
        if "settings" in known:
            known["settings"] = json.dumps(known["settings"], sort_keys=True)
        return known
