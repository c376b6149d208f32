"""calibrate: make a device's latency table of another's, by measuring a few whole networks."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

from pydantic import Field

from quadranas.errors import PromiseMissedError, QuadranasError
from quadranas.latency.conditions import Conditions
from quadranas.latency.device import Device, DeviceSettings, load_device
from quadranas.latency.journal import Journal
from quadranas.latency.table import (
    CALIBRATED,
    LatencyTable,
    Measurement,
    argument_of,
    build_command,
)
from quadranas.latency.table_files import PricedTable, find_priced, load_complete, load_table
from quadranas.latency.transfer import network_pool, telling_networks, transferred
from quadranas.measurement.bench import Job, network_job, open_bench
from quadranas.measurement.by_hand import HandBench, HandFiles, write_files
from quadranas.measurement.hand_times import TIMES, as_paths
from quadranas.measurement.lut_entries import NULL
from quadranas.measurement.plan import DEFAULT_NETWORKS, MAX_RESIDUAL, MIN_NETWORKS, Plan
from quadranas.measurement.probes import null_probe
from quadranas.measurement.summary import REFERENCE, STATISTIC, Timings
from quadranas.measurement.table_request import TableRequest, table_request
from quadranas.measurement.verification import time_networks
from quadranas.reporter import Reporter
from quadranas.runs.whole_folder import whole_folder
from quadranas.space.architecture import Architecture
from quadranas.space.search_space import SearchSpace
from quadranas.space.space_file import load_space
from quadranas.validation import CommandResult


class CalibrateResult(CommandResult):
    """The result of `quadranas calibrate`.

    Args:
        path: the table's file; `None` if files were written to be timed by hand.
        times: the file to fill in by hand; `None` if a table was made.
        device, space: name of the device and of the space.
        source: the other table.
        networks: number of networks that are or were measured.
        mape: mean absolute error of networks that were left out of the fit, relative to the
            measurements; `None` without times.
        factors: what the entries of each kind of operation were multiplied by.
        summary: the source of the table's numbers, in one line.
    """

    path: Path | None = None
    times: Path | None = None
    device: str
    space: str
    source: Path
    networks: int
    mape: float | None = None
    factors: dict[str, float] = Field(default_factory=dict)
    summary: str = ""

    def table(self) -> LatencyTable:
        """Load the table.

        Raises:
            QuadranasError: no table was made.
        """
        if self.path is None:
            raise QuadranasError(
                "no table was made: the networks were written to be timed by hand"
            )
        return load_table(self.path)


def calibrate(
    space: str | Path | SearchSpace = "quadranet-mobile",
    *,
    device: str | Path | Device,
    source: str | Path,
    networks: int = DEFAULT_NETWORKS,
    times: str | Path | Sequence[str | Path] = (),
    probes: str | Path | None = None,
    output: str | Path | None = None,
    max_residual: float = MAX_RESIDUAL,
    num_classes: Sequence[int] = (),
    rounds: int = Plan.num_rounds,
    repeats: int = Plan.repeats,
    reporter: Reporter | None = None,
    command: str = "",
    **settings: Unpack[DeviceSettings],
) -> CalibrateResult:
    """Make a latency table for a device of the table of a similar one.

    A few whole networks are measured on the device, those that tell most; every kind of operation
    gets a factor. An interrupted measurement resumes when it is called again.

    Args:
        source: the other table: its file, or a device with a table for the space.
        networks: number of networks to measure.
        times: CSV files with times of the networks that were taken by hand.
        probes: a new folder for the networks as files and an empty `times.csv`; nothing else is
            done.
        output: file of the table; default: `latency_tables/<space>/<device>.json`.
        max_residual: limit on the standard deviation of the error, a fraction of the latency.
        num_classes: numbers of classes to add head entries for, besides 10, 100 and 1000.
        rounds, repeats: number of rounds, and of calls of every network in each.
        command: the command line, recorded in the table.
        settings: values to use instead of those in the device's file.

    Raises:
        QuadranasError: an unsuitable device, source, existing table or file; too few networks; or
            the machine is too busy, and the timings are kept.
        PromiseMissedError: the residual is above its limit. The timings are kept.
    """
    space, opened = load_space(space), load_device(device, **settings)
    request = table_request(space, opened, output, False, num_classes, command)
    priced = _source(space, source)
    work = _Work(request, priced, max_residual, reporter or Reporter(quiet=True))
    if probes is not None:
        rebuild = f"{build_command(argument_of(space), argument_of(device), 'calibrate')} --from "
        return work.write(Path(probes), networks, rebuild + shlex.quote(str(source)))
    if paths := as_paths(times):
        return work.by_hand(paths)
    return work.measured(networks, Plan(num_rounds=rounds, repeats=repeats))


def _source(space: SearchSpace, source: str | Path) -> PricedTable:
    if Path(source).suffix == ".json":
        return load_complete(Path(source), space)
    return find_priced(space, source)


@dataclass(frozen=True)
class _Work:
    """A table to be made of another one."""

    request: TableRequest
    source: PricedTable
    max_residual: float
    reporter: Reporter

    def _telling(self, number: int) -> list[Architecture]:
        networks = telling_networks(self.request.space, self.source.table, number)
        if len(networks) < MIN_NETWORKS:
            raise QuadranasError(
                f"{len(networks)} networks are too few to calibrate a table; expected at least "
                f"{MIN_NETWORKS}",
                "Measure more of them, or build the table by measuring its operations: "
                + build_command(self.request.space.name, self.request.device.name),
            )
        return networks

    def write(self, folder: Path, number: int, command: str) -> CalibrateResult:
        """Write the networks as files that a person times."""
        networks = self._telling(number)
        files = self._files().only(_jobs(networks))
        with whole_folder(folder) as target:
            write_files(files, target.path, command, self.reporter)
        return self._result(networks=len(networks), times=folder / TIMES)

    def by_hand(self, paths: Sequence[Path]) -> CalibrateResult:
        """The table of times that a person has taken, of any of the networks."""
        times = self._files().read_times(paths, needed=(REFERENCE, NULL))
        bench = HandBench(self.request.device, times)
        conditions = self._conditions(bench.conditions)
        networks = [n for n in network_pool(self.request.space) if n.name in times]
        if len(networks) < MIN_NETWORKS:
            raise QuadranasError(
                f"{len(networks)} networks have times; a table needs at least {MIN_NETWORKS}",
                "Time more of the files.",
            )
        timings = bench.time(_jobs(networks), self.reporter)
        return self._save(conditions, networks, timings, bench.describe(timings, bench.plan))

    def _files(self) -> HandFiles:
        """Files of all networks that may be chosen, so that a name stays with its network."""
        request = self.request
        return HandFiles.of(request.device, request.space, _jobs(network_pool(request.space)))

    def measured(self, number: int, plan: Plan) -> CalibrateResult:
        """The table of networks that are measured now."""
        request = self.request
        if request.device.runtime is None:
            raise QuadranasError(
                f"device {request.device.name!r} names no runtime to measure with",
                "Add the key 'runtime' to its YAML file.",
            )
        networks = self._telling(number)
        device = request.device_to_measure(request.device.runtime, self.reporter)
        with open_bench(device) as bench:
            conditions = self._conditions(bench.conditions)
            identity = bench.identity("calibrate", request.space)
            with Journal(request.timings, identity) as journal:
                jobs = _jobs(networks)
                timings = time_networks(bench, jobs, self.reporter, plan, journal)
                described = bench.describe(timings, plan)
                result = self._save(conditions, networks, timings, described)
                journal.remove()
        return result

    def _conditions(self, measured: Conditions) -> Conditions:
        conditions = measured | Conditions(space=self.request.space.name, method=CALIBRATED)
        self.request.check(conditions)
        return conditions

    def _save(
        self,
        conditions: Conditions,
        networks: Sequence[Architecture],
        timings: Timings,
        measurement: Measurement,
    ) -> CalibrateResult:
        """Fit, and save the table if it is good enough."""
        programs = timings.programs
        measured = [(network, programs[network.name].latency_ms) for network in networks]
        null_ms = programs[NULL].latency_ms
        found = transferred(self.source.table, self.request.specs, measured, null_ms)
        residual, number = found.calibration.residual, len(networks)
        error = (
            f"{residual:.1%} standard deviation and {found.mape:.1%} MAPE on {number} networks, "
            "each predicted from the others"
        )
        if residual > self.max_residual:
            raise PromiseMissedError(
                f"the table would have an error of {error}, above --max-residual "
                f"{self.max_residual:.0%}; it is not saved",
                "Measure more networks, start from the table of a more similar device, or accept "
                "the error with --max-residual.",
            )
        header = self.request.header(
            conditions,
            statistic=STATISTIC,
            expected_error=error,
            null_ms=null_ms,
            measurement=measurement,
            calibration=found.calibration,
            transfer=found.transfer,
        )
        table = self.request.save(header, found.entries)
        return self._result(
            networks=number,
            path=self.request.target,
            mape=found.mape,
            factors=found.transfer.factors,
            summary=table.header.summary(),
        )

    def _result(self, **made: Any) -> CalibrateResult:
        request = self.request
        known = {"device": request.device.name, "space": request.space.name}
        return CalibrateResult(**known, source=self.source.path, **made)


def _jobs(networks: Sequence[Architecture]) -> Mapping[str, Job]:
    """The programs to time, with the null call that every network contains."""
    jobs = {NULL: Job(null_probe, 1, 1)}
    return jobs | {network.name: network_job(network) for network in networks}
