"""validate-lut: measure fresh networks, and compare them with a table's predictions."""

import io
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Unpack

from matplotlib.figure import Figure

from quadranas.errors import QuadranasError
from quadranas.files import stamp, write_atomically
from quadranas.latency.calibration import Agreement, NetworkLatency, agreement
from quadranas.latency.device import Device, DeviceSettings, load_device
from quadranas.latency.journal import Journal
from quadranas.latency.table import LatencyTable, argument_of, build_command
from quadranas.latency.table_files import PricedTable, find_priced
from quadranas.latency.transfer import network_pool
from quadranas.measurement.bench import network_job, open_bench, warn_of_drift, with_runtime
from quadranas.measurement.lut_entries import calibration_networks
from quadranas.measurement.plan import Plan
from quadranas.measurement.summary import Timings
from quadranas.measurement.timing import TIMINGS
from quadranas.measurement.verification import time_networks
from quadranas.reporter import Reporter
from quadranas.space.architecture import Architecture
from quadranas.space.sampling import random_architectures
from quadranas.space.search_space import SearchSpace
from quadranas.space.space_file import load_space
from quadranas.validation import CommandResult, check_seed

VALIDATION = ".validation"
"""Suffix of a table's name for the timings of its validation, and for its plot."""


class ValidateLutResult(CommandResult):
    """The result of `quadranas validate-lut`.

    Args:
        networks: number of networks that were measured.
        bias, mape: mean signed and mean absolute error of the predictions, relative to the
            measurements.
        within_5, within_10: share of networks with an error of at most 5 and 10 %.
        kendall_tau: rank correlation.
        table: the table's file, in which the result is recorded.
        plot: a plot of predicted against measured latency.
        summary: the numbers in one line.
    """

    networks: int
    bias: float
    mape: float
    within_5: float
    within_10: float
    kendall_tau: float
    table: Path
    plot: Path
    summary: str


def validate_lut(
    space: str | Path | SearchSpace = "quadranet-mobile",
    *,
    device: str | Path | Device,
    table: str | Path | None = None,
    networks: int = 30,
    seed: int = 0,
    rounds: int = Plan.num_rounds,
    repeats: int = Plan.repeats,
    reporter: Reporter | None = None,
    command: str = "",
    **settings: Unpack[DeviceSettings],
) -> ValidateLutResult:
    """Measure random networks that the calibration has not seen; the table records the result.

    An interrupted validation resumes when it is called again.

    Args:
        table: latency table to use instead of the default one.
        networks: number of networks.
        seed: seed of the random networks.
        rounds, repeats: number of rounds, and of calls of every network in each.
        command: the command line, recorded in the table.
        settings: values to use instead of those in the device's file.

    Raises:
        QuadranasError: no measured table, or it was measured on another device; or this machine
            is too busy, and the timings are kept.
    """
    building = build_command(argument_of(space), argument_of(device))
    space, opened = load_space(space), load_device(device, **settings)
    priced = _measured_table(space, opened, table, building)
    plan = Plan(num_rounds=rounds, repeats=repeats)
    check_seed(seed)
    fresh = fresh_networks(space, networks, seed, priced.table)
    reporter = reporter or Reporter(quiet=True)
    with open_bench(with_runtime(opened, priced.table.header)) as bench:
        bench.check_same(priced.table.header, priced.path)
        identity = bench.identity(f"validation of {networks} with seed {seed}", space)
        path = priced.path.with_name(f"{priced.path.name}{VALIDATION}{TIMINGS}")
        with Journal(path, identity) as journal:
            jobs = {network.name: network_job(network) for network in fresh}
            timings = time_networks(bench, jobs, reporter, plan, journal)
            warn_of_drift(priced.table.header, timings, reporter)
            found = _agreement(priced.table, fresh, timings, command)
            _record(priced, found)
            journal.remove()
    return _result(priced, found)


def _measured_table(
    space: SearchSpace, device: Device, path: str | Path | None, command: str
) -> PricedTable:
    """The table to validate.

    Raises:
        QuadranasError: it was not measured.
    """
    priced = find_priced(space, device, None if path is None else Path(path), command=command)
    header = priced.table.header
    if header.measurement is None:
        raise QuadranasError(
            f"{priced.path} is {header.method}; only a measured table can be validated",
            f"Measure one with: {command} --backend RUNTIME",
        )
    return priced


def _record(priced: PricedTable, found: Agreement) -> None:
    """Save the table with the result in its header."""
    update = {"validation": found, "expected_error": found.summary()}
    header = priced.table.header.model_copy(update=update)
    priced.table.model_copy(update={"header": header}).save(priced.path)


def _result(priced: PricedTable, found: Agreement) -> ValidateLutResult:
    """Draw the plot, and describe both."""
    header = priced.table.header
    plot = priced.path.with_name(f"{priced.path.stem}{VALIDATION}.png")
    draw_agreement(found, f"{header.title}, {header.runtime}, {header.space}", plot)
    return ValidateLutResult(
        networks=len(found.networks),
        bias=found.bias,
        mape=found.mape,
        within_5=found.within_5,
        within_10=found.within_10,
        kendall_tau=found.kendall_tau,
        table=priced.path,
        plot=plot,
        summary=found.summary(),
    )


def _agreement(
    table: LatencyTable, networks: Sequence[Architecture], timings: Timings, command: str
) -> Agreement:
    latencies = [
        NetworkLatency(
            name=network.name,
            predicted_ms=table.predict_ms(network),
            measured_ms=timings.programs[network.name].latency_ms,
        )
        for network in networks
    ]
    now = stamp()
    return agreement(latencies, command=command, date=now.date, commit=now.commit)


def fresh_networks(
    space: SearchSpace, number: int, seed: int, table: LatencyTable | None = None
) -> list[Architecture]:
    """Random networks of a space, without those of the calibration.

    Args:
        table: a table whose networks are no fresh ones either.

    Raises:
        QuadranasError: the space has too few networks.
    """
    calibrated = calibration_networks(space)
    if table is not None and table.header.transfer is not None and table.header.calibration:
        names = {network.name for network in table.header.calibration.networks}
        calibrated += [network for network in network_pool(space) if network.name in names]
    known = {tuple(network.ops()) for network in calibrated}
    drawn = random_architectures(space, number + len(known), f"validation-{seed}")
    fresh = [network for network in drawn if tuple(network.ops()) not in known]
    # The networks are drawn from small to large: every n-th one covers the whole range.
    step = len(fresh) / number
    if step < 1:
        raise QuadranasError(
            f"{number} fresh networks were asked for, but only {len(fresh)} of space "
            f"{space.name} were found besides those of the calibration",
            f"Validate with --networks {len(fresh)}."
            if len(fresh) > 1
            else "A space this small needs no validation: the calibration measured its networks.",
        )
    return [fresh[int(index * step)] for index in range(number)]


def draw_agreement(found: Agreement, title: str, path: Path) -> None:
    """Plot predicted against measured latency, with the bands of 5 % and 10 %."""
    figure = Figure(figsize=(5.2, 5), layout="constrained")
    axes = figure.subplots()
    predicted = [network.predicted_ms for network in found.networks]
    measured = [network.measured_ms for network in found.networks]
    ends = 0.9 * min(*predicted, *measured), 1.1 * max(*predicted, *measured)
    for error, color in ((0.10, "#eaeef2"), (0.05, "#d0d7de")):
        low, high = ([end * (1 + sign * error) for end in ends] for sign in (-1, 1))
        axes.fill_between(ends, low, high, color=color, lw=0, label=f"within {error:.0%}")
    axes.plot(ends, ends, color="#57606a", lw=0.8)
    axes.plot(measured, predicted, "o", color="#0969da", ms=4)
    axes.set(xlim=ends, ylim=ends, xlabel="measured [ms]", ylabel="predicted [ms]", aspect="equal")
    lines = textwrap.wrap(found.summary(), 64)
    axes.set_title("\n".join([title, *lines]), fontsize=8)
    axes.legend(loc="upper left", frameon=False)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=120)
    write_atomically(path, content.getvalue())
