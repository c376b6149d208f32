"""Tables by hand: the networks of a table as files, and the times that came back."""

import hashlib
import itertools
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from quadranas.backends.command import command_of, conversion_for, open_writer
from quadranas.backends.interface import Provenance
from quadranas.errors import QuadranasError, some
from quadranas.latency.conditions import Conditions
from quadranas.latency.device import Device
from quadranas.latency.journal import Journal
from quadranas.latency.runtimes import files_of
from quadranas.latency.table import LatencyTable, Measurement
from quadranas.measurement.bench import Job, chain_job, describe_measurement
from quadranas.measurement.hand_times import read_times, write_empty_times
from quadranas.measurement.lut_entries import (
    MeasuredEntries,
    baseline_network,
    calibration_networks,
    entry_jobs,
    measure_entries,
    shared_programs,
)
from quadranas.measurement.plan import Plan
from quadranas.measurement.plausibility import check_reference
from quadranas.measurement.probes import REFERENCE_OP
from quadranas.measurement.summary import REFERENCE, Timings, summarise
from quadranas.reporter import Reporter
from quadranas.space.architecture import Architecture
from quadranas.space.operation import OpSpec
from quadranas.space.search_space import SearchSpace

MIN_TIMES = 2
"""Number of times that every file needs: from one alone the noise is not known."""

README = """Networks to time on {title}

{num_files} files ({file_format}, {precision}, batch {batch}{threads}) for the latency table of
device {device} and search space {space}.

1. Time every file, on an idle device: the time of one call, after a few calls that do not count.
   The input is one float32 tensor of the shape in the file; any numbers will do.
2. Write the time into times.csv, in the row of the file. A column is one pass over all files, and
   further columns are repetitions: at least {min_times}, better five or more. Time all files once
   before you repeat, so that a slow minute does not affect one file only.
3. The heads of the columns say the unit: time_1_ms. Rename them if your times are in another one:
   time_1_us, time_1_ns or time_1_s. Columns can be added and removed.
4. Send times.csv back. What is missing can follow in another file with the same columns.

    {command} --times times.csv
"""


@dataclass(frozen=True)
class HandFiles:
    """Programs for one device as files that a person times.

    Args:
        jobs: by the name of the program.
        names: the name of each program's file.
    """

    device: Device
    space: SearchSpace
    jobs: Mapping[str, Job]
    names: Mapping[str, str]

    @classmethod
    def of(cls, device: Device, space: SearchSpace, jobs: Mapping[str, Job]) -> "HandFiles":
        """The files of programs.

        Raises:
            QuadranasError: the device has no section 'command', which names format and tool.
        """
        suffix = files_of(command_of(device).format).suffix
        ordered = {REFERENCE: chain_job([REFERENCE_OP]), **jobs}
        files = {
            name: f"{number:04d}-{_digest(name, device, space)}{suffix}"
            for number, name in enumerate(ordered)
        }
        return cls(device, space, ordered, files)

    def only(self, names: Collection[str]) -> "HandFiles":
        """The files of some programs, and of the reference."""
        kept = {REFERENCE, *names}
        jobs = {name: job for name, job in self.jobs.items() if name in kept}
        return replace(self, jobs=jobs, names={name: self.names[name] for name in jobs})

    def write(self, folder: Path, write_file: Callable[[Job, Path], None], command: str) -> None:
        """Write the files, an empty `times.csv` and a README into a folder.

        Args:
            write_file: writes the network of a job.
            command: the command that reads the times.
        """
        for name, job in self.jobs.items():
            write_file(job, folder / self.names[name])
        write_empty_times(folder, {self.names[name]: name for name in self.jobs})
        device = self.device
        threads = f", {device.threads} threads" if device.threads else ""
        text = README.format(
            title=device.title,
            num_files=len(self.jobs),
            file_format=command_of(device).format,
            precision=device.precision,
            batch=device.batch_size,
            threads=threads,
            device=device.name,
            space=self.space.name,
            min_times=MIN_TIMES,
            command=command,
        )
        (folder / "README.txt").write_text(text, encoding="utf-8")

    def read_times(
        self, paths: Sequence[Path], needed: Collection[str] | None = None
    ) -> dict[str, list[float]]:
        """The times of programs in milliseconds.

        Args:
            needed: programs that need times. Default: all.

        Raises:
            QuadranasError: a file is faulty or of other probes, times are missing or implausible.
        """
        programs = {file: name for name, file in self.names.items()}
        what = f"space {self.space.name} on device {self.device.name}"
        times = read_times(paths, programs, what)
        needed = {*(self.names if needed is None else needed), *times}
        missing = [
            file
            for file, name in programs.items()
            if name in needed and len(times.get(name, ())) < MIN_TIMES
        ]
        if missing:
            one = [file for file in missing if len(times.get(programs[file], ())) == 1]
            alone = f" ({len(one)} have one time, but need {MIN_TIMES})" if one else ""
            raise QuadranasError(
                f"times are missing for {len(missing)} of {len(needed)} files{alone}: "
                f"{some(missing, 10)}",
                "Fill them in, or name another file with these rows too: --times can be repeated.",
            )
        check_reference(self.device, times[REFERENCE])
        return times


def write_files(files: HandFiles, folder: Path, command: str, reporter: Reporter) -> None:
    """Write programs into a folder, for someone to time.

    Args:
        command: the command that reads the times.

    Raises:
        MissingExtraError: the package that writes the files is not installed.
    """
    device = files.device
    reporter.message(f"writing {len(files.jobs)} files")
    phase, numbers = reporter.phase("writing", len(files.jobs), 0), itertools.count(1)
    with (
        tempfile.TemporaryDirectory() as records,
        closing(open_writer(device, Path(records))) as writer,
    ):

        def write_file(job: Job, path: Path) -> None:
            shape = (device.batch_size, job.channels, job.resolution, job.resolution)
            writer.convert(job.make(), conversion_for(device, shape), path)
            reporter.advance(phase, next(numbers))

        files.write(folder, write_file, command)


@dataclass(frozen=True)
class HandProbes:
    """The programs of a table for one device, and their files.

    Args:
        specs: operations to add to the table.
        networks: the networks to calibrate with; none for a table that is completed.
    """

    specs: tuple[OpSpec, ...]
    networks: tuple[Architecture, ...]
    files: HandFiles

    @classmethod
    def of(
        cls,
        device: Device,
        space: SearchSpace,
        specs: Sequence[OpSpec],
        existing: LatencyTable | None = None,
    ) -> "HandProbes":
        """The programs of a table.

        Args:
            existing: the table to be completed.

        Raises:
            QuadranasError: see `HandFiles.of`.
        """
        networks = () if existing else tuple(calibration_networks(space))
        jobs = entry_jobs(specs, baseline_network(space), networks)
        # What everything else is computed with comes first.
        first = (*shared_programs(), *(network.name for network in networks))
        files = HandFiles.of(device, space, {**{name: jobs[name] for name in first}, **jobs})
        return cls(tuple(specs), networks, files)

    def entries(self, bench: "HandBench") -> MeasuredEntries:
        """The entries of the table."""
        journal, silent = Journal(None, {}), Reporter(quiet=True)
        baseline = baseline_network(self.files.space)
        return measure_entries(
            self.specs, baseline, self.networks, bench, journal, silent, bench.plan
        )


class HandBench:
    """The times of a device that a person has measured, in place of a bench.

    Args:
        times: milliseconds by the name of the program.
    """

    def __init__(self, device: Device, times: Mapping[str, Sequence[float]]) -> None:
        self.device, self.times = device, times
        self.plan = Plan(num_rounds=min(map(len, times.values())), repeats=1)

    @property
    def provenance(self) -> Provenance:
        """What is known about the measurement from the device's file."""
        command = command_of(self.device)
        return Provenance(
            runtime=command.tool,
            hardware=self.device.title,
            versions={"torch": torch.__version__},
            settings=command.settings | {"timed": "by hand"},
        )

    @property
    def conditions(self) -> Conditions:
        """The conditions of the times."""
        return self.device.conditions | self.provenance.conditions

    def time(
        self,
        jobs: Mapping[str, Job],
        reporter: Reporter,
        plan: Plan | None = None,
        journal: Journal | None = None,
        companions: Collection[str] = (),
    ) -> Timings:
        """See `Bench`: the times of the jobs, each column as a round."""
        plan, journal = plan or self.plan, journal or Journal(None, {})
        for name in (REFERENCE, *jobs):
            key = f"{REFERENCE} 0" if name == REFERENCE else name
            for number, ms in enumerate(self.times[name]):
                journal.add(key, number, [ms])
        return summarise({0: list(jobs)}, companions, journal, plan)

    def describe(self, timings: Timings, plan: Plan) -> Measurement:
        """See `Bench`."""
        return describe_measurement(self.provenance, self.device, timings, plan)


def _digest(name: str, device: Device, space: SearchSpace) -> str:
    """Tells the probes of one table from those of another."""
    text = f"{space.digest} {space.resolution} {device.batch_size} {name}"
    return hashlib.sha256(text.encode()).hexdigest()[:8]
