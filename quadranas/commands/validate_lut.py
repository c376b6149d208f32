"""validate-lut: measure fresh networks and say how far a table's predictions are from them."""

import io
import textwrap
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from quadranas.errors import QuadranasError
from quadranas.files import source_commit, write_atomically
from quadranas.latency.calibration import Agreement, NetworkLatency, agreement
from quadranas.latency.device import Device
from quadranas.latency.journal import Journal
from quadranas.latency.table import LatencyTable, build_command
from quadranas.latency.table_files import find_table, locate_table
from quadranas.measurement.bench import as_measured, network_job, open_bench, warn_of_drift
from quadranas.measurement.lut_entries import calibration_networks
from quadranas.measurement.timing import TIMINGS, Plan, Timings
from quadranas.reporter import Reporter
from quadranas.space.architecture import Architecture
from quadranas.space.sampling import random_architectures
from quadranas.space.search_space import SearchSpace

VALIDATION = ".validation"
"""What is appended to a table's name for the timings of its validation, and for its plot."""


def validate_lut(
    space: SearchSpace,
    device: Device,
    reporter: Reporter,
    *,
    path: Path | None = None,
    num_networks: int = 30,
    seed: int = 0,
    plan: Plan | None = None,
    command: str = "",
) -> dict[str, Any]:
    """Measure random networks that the calibration has not seen; the result is kept in the table.

    Args:
        path: this very table instead of the usual one.
        seed: draws the networks.

    Returns: networks, bias, mape, within_5, within_10, kendall_tau, table, plot, summary.

    Raises:
        QuadranasError: no measured table, or the device is not the one it was measured on.
    """
    path = locate_table(space.name, device.name, path)
    table = find_table(space, device.name, path)
    header = table.header
    if header.measurement is None:
        raise QuadranasError(
            f"{path} is {header.method}: nothing was measured that could be validated",
            f"Measure one with: {build_command(header.space, device.name)} --backend RUNTIME",
        )
    plan = plan or Plan()
    networks = fresh_networks(space, num_networks, seed)
    with open_bench(as_measured(device, header)) as bench:
        bench.check_same(header, path)
        identity = bench.identity(f"validation of {num_networks} with seed {seed}", space)
        with Journal(path.with_name(f"{path.name}{VALIDATION}{TIMINGS}"), identity) as journal:
            jobs = {network.name: network_job(network) for network in networks}
            timings = bench.time(jobs, reporter, plan, journal)
            warn_of_drift(header, timings, reporter)
            found = _agreement(table, networks, timings, command)
            update = {"validation": found, "expected_error": found.summary()}
            validated = table.model_copy(update={"header": header.model_copy(update=update)})
            validated.save(path)
            journal.remove()
    plot = path.with_name(f"{path.stem}{VALIDATION}.png")
    draw_agreement(found, f"{header.title}, {header.runtime}, {header.space}", plot)
    numbers = found.model_dump(include={"bias", "mape", "within_5", "within_10", "kendall_tau"})
    return {
        "networks": len(networks),
        **numbers,
        "table": str(path),
        "plot": str(plot),
        "summary": found.summary(),
    }


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
    date = datetime.now(UTC).strftime("%Y-%m-%d")
    return agreement(latencies, command=command, date=date, commit=source_commit())


def fresh_networks(space: SearchSpace, number: int, seed: int) -> list[Architecture]:
    """Random networks of a space, none of them one of the calibration's.

    Raises:
        QuadranasError: the space has too few.
    """
    known = {tuple(network.ops()) for network in calibration_networks(space)}
    drawn = random_architectures(space, number + len(known), f"validation-{seed}")
    fresh = [network for network in drawn if tuple(network.ops()) not in known]
    # Spread over all that were drawn, from small to large, so that leaving some out keeps the
    # range.
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
    """Predicted against measured latency, with the lines of 5 % and 10 %."""
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
