"""The budgets on further devices, which a network keeps besides that on its main device."""

from collections.abc import Callable, Iterator
from dataclasses import replace

from quadranas.errors import QuadranasError
from quadranas.latency.budget import parse_device_budget
from quadranas.latency.device import Device
from quadranas.latency.goal import Goal
from quadranas.latency.table_files import PricedTable
from quadranas.runs.config import LimitsConfig

Price = Callable[[Device, str], PricedTable]
"""Finds the table of a device, given also as on the command line."""


def all_goals(
    main: Goal, limits: LimitsConfig, open_device: Callable[[str], Device], price: Price
) -> tuple[Goal, ...]:
    """The goals on all devices, that of the main device first.

    Args:
        limits: names the further devices and their budgets; confidence and tolerance are those of
            the main device.

    Raises:
        QuadranasError: an unknown device, one without a table, or one that is named twice.
    """
    return (main, *_further(main, limits, open_device, price))


def _further(
    main: Goal, limits: LimitsConfig, open_device: Callable[[str], Device], price: Price
) -> Iterator[Goal]:
    seen = {main.name}
    for argument, budget_ms in map(parse_device_budget, limits.also):
        device = open_device(argument)
        if device.name in seen:
            raise QuadranasError(
                f"device {device.name!r} has two budgets",
                "Give one budget per device: --budget for the main device, --also for each other.",
            )
        seen.add(device.name)
        contract = replace(main.contract, budget_ms=budget_ms)
        yield Goal(device, price(device, argument), contract)
