"""The end of the promise: the emitted network, measured on the device that it was made for."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from quadranas.errors import QuadranasError
from quadranas.latency.device import Device
from quadranas.latency.journal import Journal
from quadranas.latency.table_files import PricedTable
from quadranas.measurement.bench import as_measured, network_job, open_bench, warn_of_drift
from quadranas.measurement.timing import Plan
from quadranas.reporter import Reporter
from quadranas.space.architecture import Architecture

PLAN = Plan(round_s=0.25)
"""Ten seconds at least, however small the network."""


def measure_network(
    architecture: Architecture,
    network: nn.Module,
    device: Device,
    priced: PricedTable,
    reporter: Reporter,
) -> float | None:
    """The latency of a network where its table was measured; none where that device is not here.

    The same runtime, settings and statistic as the table's, in milliseconds.
    """
    header = priced.table.header
    if header.measurement is None:
        return None
    job = network_job(architecture, network)
    try:
        with open_bench(as_measured(device, header)) as bench, Journal(None, {}) as journal:
            bench.check_same(header, priced.path)
            timings = bench.time({architecture.name: job}, journal, reporter, PLAN)
    except QuadranasError as error:
        reporter.warning(f"the network is not measured: {error.message}")
        return None
    warn_of_drift(header, timings, reporter)
    return timings.programs[architecture.name].latency_ms


def missed_promise(result: Mapping[str, Any]) -> str:
    """What a result misses of its budget, in words; empty where it is kept or was not measured."""
    measured_ms, budget_ms = result.get("measured_ms"), result["budget_ms"]
    tolerance = result.get("tolerance", 0.0)
    if measured_ms is None or measured_ms <= budget_ms * (1 + tolerance):
        return ""
    return (
        f"measured {measured_ms:.4g} ms, over the budget of {budget_ms:.4g} ms by more than the "
        f"tolerance of {tolerance:.0%}"
    )
