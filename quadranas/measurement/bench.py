"""The bench: a device opened for timing; programs are compiled there and timed together."""

import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from quadranas.backends.interface import (
    Backend,
    ObservesHardware,
    Program,
    ProgramWithNotes,
    Provenance,
    Reconnects,
)
from quadranas.backends.registry import open_backend
from quadranas.errors import MissingExtraError, QuadranasError
from quadranas.latency.conditions import Conditions, in_words
from quadranas.latency.device import Device, target_text
from quadranas.latency.host import pinned
from quadranas.latency.journal import Identity, Journal
from quadranas.latency.runtimes import RUNTIMES
from quadranas.latency.table import Measurement, TableHeader, build_command
from quadranas.measurement.plan import Plan
from quadranas.measurement.plausibility import CheckedReference
from quadranas.measurement.probes import REFERENCE_OP, chain_probe, network_probe
from quadranas.measurement.summary import REFERENCE, Timings
from quadranas.measurement.timing import BUSY, time_programs
from quadranas.reporter import Reporter
from quadranas.space.architecture import Architecture
from quadranas.space.operation import OpSpec
from quadranas.space.sampling import random_architectures
from quadranas.space.search_space import SearchSpace

DRIFT = 0.03
"""Relative change of the reference operation's latency since the table was measured, above which a
warning is printed."""

DEFAULT_PLAN = Plan(round_s=0.25)
"""Plan to verify a few networks with. It takes at least ten seconds, however small they are."""

RECORDS = Path("latency_tables") / ".records"
"""Where the tuning records of runtimes are kept, by device."""


def default_plan(rounds: int | None = None) -> Plan:
    """`DEFAULT_PLAN`, with another number of rounds if one is given."""
    return DEFAULT_PLAN if rounds is None else replace(DEFAULT_PLAN, num_rounds=rounds)


@dataclass(frozen=True)
class Job:
    """A network to time, built when it is compiled, and the channels and size of its input."""

    make: Callable[[], nn.Module]
    channels: int
    resolution: int


def chain_job(specs: Sequence[OpSpec]) -> Job:
    """Operations one after another."""
    return Job(lambda: chain_probe(specs), specs[0].in_channels, specs[0].resolution)


def network_job(architecture: Architecture, network: nn.Module | None = None) -> Job:
    """A whole network; with random weights if only its architecture is given."""
    return Job(lambda: network or network_probe(architecture), 3, architecture.resolution)


class Bench:
    """A device opened for timing."""

    def __init__(self, device: Device, backend: Backend) -> None:
        self.device = device
        self.backend = backend
        self.provenance: Provenance = backend.provenance()
        if self.provenance.emulated:
            raise QuadranasError(
                f"device {device.name!r} is emulated ({self.provenance.hardware}); emulated times "
                "are not latencies",
                "Measure on a real device.",
            )

    @property
    def conditions(self) -> Conditions:
        """The conditions of the latencies measured on this device."""
        return self.device.conditions | self.provenance.conditions

    def identity(self, kind: str, space: SearchSpace) -> Identity:
        """The identity of a journal of timings taken on this device."""
        of_space = Conditions(space=space.name, space_digest=space.digest)
        return {"kind": kind, **(self.conditions | of_space).identity()}

    def check_same(self, header: TableHeader, path: Path) -> None:
        """Check that a table was measured under the conditions of this bench.

        Raises:
            QuadranasError: another runtime, version, hardware, target, precision, threads, batch
                size or setting; names all that differ, with both values.
        """
        found = header.conditions.differences(self.conditions)
        if found:
            raise QuadranasError(
                f"{path} was measured under other conditions than this device has now: "
                f"{in_words(found)}",
                f"Measure here with: {build_command(header.space, header.device)}",
            )

    def time(
        self,
        jobs: Mapping[str, Job | Program],
        reporter: Reporter,
        plan: Plan | None = None,
        journal: Journal | None = None,
        companions: Collection[str] = (),
    ) -> Timings:
        """Time networks together with the reference operation, in shuffled rounds.

        Args:
            companions: see `time_programs`.
            jobs: networks to compile, or compiled programs.
            plan: how often to time. Default: `DEFAULT_PLAN`.
            journal: stores the timings, so that an interrupted measurement resumes. Default: in
                memory.
        """
        plan, journal = plan or DEFAULT_PLAN, journal or Journal(None, {})
        if isinstance(self.backend, Reconnects):
            self.backend.warn = reporter.warning
        everything = {REFERENCE: self._reference(), **jobs}
        programs = _Programs(everything, self._compile)
        programs.prepare(_unfinished(everything, journal, plan), reporter)
        return time_programs(
            *(programs, journal, reporter, plan),
            max_parallel=self.backend.max_parallel,
            companions=companions,
        )

    def _reference(self) -> Job | Program:
        job = chain_job([REFERENCE_OP])
        if self.device.runtime in RUNTIMES and RUNTIMES[self.device.runtime].reports_times:
            return CheckedReference(self._compile(job), self.device)
        return job

    def _compile(self, job: Job | Program) -> Program:
        if not isinstance(job, Job):
            return job
        shape = (self.device.batch_size, job.channels, job.resolution, job.resolution)
        return self.backend.compile(job.make(), shape)

    def describe(self, timings: Timings, plan: Plan) -> Measurement:
        """The description of a measurement in a table's header."""
        backend = self.backend
        observed = backend.observations() if isinstance(backend, ObservesHardware) else {}
        return describe_measurement(self.provenance, self.device, timings, plan, **observed)


def describe_measurement(
    provenance: Provenance,
    device: Device,
    timings: Timings,
    plan: Plan,
    **observed: float,
) -> Measurement:
    """The description of a measurement in a table's header.

    Args:
        observed: see `ObservesHardware`.
    """
    return Measurement(
        hardware=provenance.hardware,
        target=target_text(device.target),
        versions=dict(provenance.versions),
        settings=dict(provenance.settings),
        num_rounds=timings.num_rounds,
        repeats=plan.repeats,
        num_disturbed=timings.num_disturbed,
        num_throttled=timings.num_throttled,
        noise=timings.noise,
        noise_p95=timings.noise_p95,
        dropped="unknown" if timings.dropped is None else timings.dropped,
        reference_ms=timings.reference_ms,
        **observed,
    )


class _Programs(Mapping[str, Program]):
    """Programs by name; each is compiled when it is first needed."""

    def __init__(
        self,
        jobs: Mapping[str, Job | Program],
        compile_job: Callable[[Job | Program], Program],
    ) -> None:
        self.jobs = jobs
        self.compile_job = compile_job
        self.compiled: dict[str, Program] = {}
        self.lock = threading.Lock()

    def __getitem__(self, name: str) -> Program:
        with self.lock:
            if name not in self.compiled:
                self.compiled[name] = self.compile_job(self.jobs[name])
            return self.compiled[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.jobs)

    def __len__(self) -> int:
        return len(self.jobs)

    def prepare(self, names: list[str], reporter: Reporter) -> None:
        """Compile the programs of the planned rounds before any is timed."""
        num_jobs = sum(isinstance(self.jobs[name], Job) for name in names)
        if num_jobs > 2:
            reporter.message(f"compiling {num_jobs} programs")
        phase = reporter.phase("compiling", len(names), 0)
        notes: list[str] = []
        for done, name in enumerate(names, start=1):
            program = self[name]
            notes += program.notes if isinstance(program, ProgramWithNotes) else ()
            reporter.advance(phase, done)
        if notes:
            reporter.message(f"{len(notes)} of {len(names)} networks, first: {notes[0]}")


def _unfinished(jobs: Iterable[str], journal: Journal, plan: Plan) -> list[str]:
    """The programs whose planned rounds are not complete."""
    found = [name for name in jobs if not journal.has_rounds(name, plan.num_rounds)]
    return found if found != [REFERENCE] else []


@contextmanager
def open_device(device: Device, records: Path | None = None) -> Iterator[Backend]:
    """Open a device, and pin this process to as many cores as the device has threads.

    Args:
        records: folder for tuning records. Default: `RECORDS / device.name`.

    Raises:
        QuadranasError: the device cannot be reached.
    """
    with (
        nullcontext() if device.is_remote else pinned(device.threads),
        closing(open_backend(device, records or RECORDS / device.name)) as backend,
    ):
        yield backend


@contextmanager
def open_bench(device: Device) -> Iterator[Bench]:
    """Open a device for timing.

    Raises:
        QuadranasError: the device cannot be reached, or is emulated.
    """
    with open_device(device) as backend:
        yield Bench(device, backend)


def with_runtime(device: Device, header: TableHeader) -> Device:
    """The device with the runtime of one of its tables, if the device leaves it open."""
    return device if device.runtime in RUNTIMES else device.configured(runtime=header.backend)


def warn_of_drift(header: TableHeader, timings: Timings, reporter: Reporter) -> None:
    """Warn if the device is slower or faster than when a table was measured.

    Nothing is said if the machine was busy in either measurement: its neighbours slow down
    undisturbed calls too, by the caches and clocks that they share.
    """
    assert header.measurement is not None
    shares = (header.measurement.dropped, timings.dropped)
    if any(isinstance(share, float) and share > BUSY for share in shares):
        return
    drift = timings.reference_ms / header.measurement.reference_ms - 1
    if abs(drift) > DRIFT:
        reporter.warning(
            f"{header.device} is {abs(drift):.0%} {'slower' if drift > 0 else 'faster'} now than "
            "when its table was measured; possible causes: other processes, or another clock speed"
        )


def host_runtimes() -> tuple[str, ...]:
    """The runtimes that `fastest` chooses from; those that need tuning are excluded."""
    return tuple(name for name, runtime in RUNTIMES.items() if runtime.for_host)


def fastest_runtime(device: Device, space: SearchSpace, reporter: Reporter) -> Device:
    """This machine with the fastest runtime for a large network of the space.

    Raises:
        MissingExtraError: no runtime is installed.
    """
    architecture = random_architectures(space, 3, "runtime")[-1]
    job = network_job(architecture)
    latencies: dict[str, float] = {}
    for runtime in host_runtimes():
        candidate = device.configured(runtime=runtime)
        reporter.message(f"timing a network in {RUNTIMES[runtime].title}")
        try:
            with open_bench(candidate) as bench:
                quiet, plan = Reporter(quiet=True), Plan(num_rounds=3)
                timings = bench.time({architecture.name: job}, quiet, plan)
        except MissingExtraError:
            continue
        latencies[runtime] = timings.programs[architecture.name].latency_ms
    if not latencies:
        raise MissingExtraError(
            f"no runtime to measure this machine is installed; looked for "
            f"{' and '.join(host_runtimes())}",
            "Install one with: pip install "
            + " or ".join(f"'quadranas[{RUNTIMES[name].extra}]'" for name in host_runtimes()),
        )
    fastest = min(latencies, key=lambda runtime: latencies[runtime])
    reporter.message(
        "runtime "
        + fastest
        + ", the fastest installed: "
        + ", ".join(f"{runtime} {ms:.3g} ms" for runtime, ms in latencies.items())
    )
    return device.configured(runtime=fastest)
