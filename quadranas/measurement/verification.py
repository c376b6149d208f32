"""Measuring whole networks on their target device."""

from collections.abc import Mapping

from torch import nn

from quadranas.errors import QuadranasError, some
from quadranas.latency.device import Device
from quadranas.latency.journal import Journal
from quadranas.latency.table_files import PricedTable
from quadranas.measurement.bench import (
    Bench,
    Job,
    network_job,
    open_bench,
    warn_of_drift,
    with_runtime,
)
from quadranas.measurement.plan import Plan
from quadranas.measurement.summary import Timing, Timings, busy_text
from quadranas.reporter import Reporter
from quadranas.space.architecture import Architecture


def measure_network(
    architecture: Architecture,
    network: nn.Module,
    device: Device,
    priced: PricedTable,
    reporter: Reporter,
    plan: Plan | None = None,
) -> Timing | str:
    """Measure a network on the device that its table was measured on.

    Nothing is measured under other conditions than the table's: runtime, precision, threads ...

    Args:
        plan: how often to time. Default: `DEFAULT_PLAN` of the bench.

    Returns: the latency of undisturbed calls; or the reason why it was not measured: the table was
        not measured, the device is not connected, or the machine is busy.
    """
    header = priced.table.header
    if header.measurement is None:
        return f"the table is {header.method}"
    job = network_job(architecture, network)
    try:
        with open_bench(with_runtime(device, header)) as bench:
            bench.check_same(header, priced.path)
            timings = bench.time({architecture.name: job}, reporter, plan)
    except QuadranasError as error:
        reporter.warning(f"the network is not measured: {error.message}")
        return error.message
    timing = timings.programs[architecture.name]
    # A busy machine says nothing about the budget, and its reference nothing about the device.
    if timing.is_busy:
        reporter.warning(f"the network is not measured: {busy_text(timing)}")
        return busy_text(timing)
    warn_of_drift(header, timings, reporter)
    return timing


def time_networks(
    bench: Bench, jobs: Mapping[str, Job], reporter: Reporter, plan: Plan, journal: Journal
) -> Timings:
    """The latencies of the networks; those that an earlier call could not measure, again.

    Raises:
        QuadranasError: the machine is too busy to measure all; the timings are kept.
    """
    is_repeated = all(journal.has_rounds(name, plan.num_rounds) for name in jobs)
    timings = bench.time(jobs, reporter, plan, journal)
    if timings.busy and is_repeated:
        reporter.message(f"measuring again: {some(timings.busy)}")
        journal.begin_again(timings.busy)
        timings = bench.time(jobs, reporter, plan, journal)
    if timings.busy:
        worst = timings.programs[timings.busy[0]]
        raise QuadranasError(
            f"{len(timings.busy)} of {len(jobs)} networks are not measured: {some(timings.busy)}: "
            f"{busy_text(worst)}; the timings are kept in {journal.path}",
            "The same command measures these networks again, and no other.",
        )
    return timings
