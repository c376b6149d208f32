"""Verification: measuring a derived network on its target device."""

from torch import nn

from quadranas.errors import QuadranasError
from quadranas.latency.device import Device
from quadranas.latency.table_files import PricedTable
from quadranas.measurement.bench import network_job, open_bench, warn_of_drift, with_runtime
from quadranas.measurement.plan import Plan
from quadranas.reporter import Reporter
from quadranas.space.architecture import Architecture


def measure_network(
    architecture: Architecture,
    network: nn.Module,
    device: Device,
    priced: PricedTable,
    reporter: Reporter,
    plan: Plan | None = None,
) -> float | None:
    """Measure a network on the device that its table was measured on, in milliseconds.

    Nothing is measured under other conditions than the table's: runtime, precision, threads ...

    Args:
        plan: how often to time. Default: `DEFAULT_PLAN` of the bench.

    Returns: the latency; `None` if the table was not measured, or the device is not connected.
    """
    header = priced.table.header
    if header.measurement is None:
        return None
    job = network_job(architecture, network)
    try:
        with open_bench(with_runtime(device, header)) as bench:
            bench.check_same(header, priced.path)
            timings = bench.time({architecture.name: job}, reporter, plan)
    except QuadranasError as error:
        reporter.warning(f"the network is not measured: {error.message}")
        return None
    warn_of_drift(header, timings, reporter)
    return timings.programs[architecture.name].latency_ms
