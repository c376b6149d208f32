"""The suspect entries of a measured table: those to measure again before it can be trusted."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from quadranas.errors import PromiseMissedError, QuadranasError, some
from quadranas.latency.calibration import Calibration
from quadranas.latency.journal import Journal
from quadranas.latency.table import TableEntry
from quadranas.measurement.lut_entries import MeasuredEntries, programs_of, shared_programs
from quadranas.measurement.plan import Trust
from quadranas.measurement.summary import MIN_UNDISTURBED
from quadranas.reporter import Reporter

SUSPECT_NOISE = 0.05
"""An entry whose latencies by odd and by even rounds differ by more than this is suspect in a
table with a large residual."""

FEWEST = 0.1
"""Share of the entries that are suspect in such a table if none is noisy: the noisiest."""

MAX_NAMED = 10


@dataclass(frozen=True)
class Suspects:
    """What to measure again.

    Args:
        entries: the operations, with the reason.
        networks: the whole networks of the calibration.
        programs: the programs to time again.
    """

    entries: dict[str, str]
    networks: tuple[str, ...]
    programs: tuple[str, ...]

    def text(self) -> str:
        """The suspect entries and networks, with the reasons."""
        parts = [f"{name} ({reason})" for name, reason in self.entries.items()]
        names = [*parts, *(f"network {name}" for name in self.networks)]
        return some(names, MAX_NAMED)


def find_suspects(measured: MeasuredEntries, max_residual: float) -> Suspects:
    """The suspects of a measurement; none if its table can be trusted."""
    busy = set(measured.timings.busy)
    if busy.intersection(shared_programs()):
        reasons = {str(entry.op): "the baseline was disturbed" for entry in measured.entries}
        every = tuple(measured.timings.programs)
        return Suspects(reasons, _networks(measured, every), every)
    found = {
        entry: f"{_dropped(measured, entry)} of its calls disturbed"
        for entry in measured.entries
        if busy.intersection(programs_of(entry.op))
    }
    networks = _networks(measured, busy)
    if not found and not networks and has_large_residual(measured, max_residual):
        found = {entry: f"noise {entry.noise:.1%}" for entry in _noisiest(measured.entries)}
        networks = _worst(measured.calibration, max_residual)
    programs = dict.fromkeys(name for entry in found for name in programs_of(entry.op))
    return Suspects(
        entries={str(entry.op): reason for entry, reason in found.items()},
        networks=networks,
        programs=(*programs, *networks),
    )


def has_large_residual(measured: MeasuredEntries, max_residual: float) -> bool:
    """Whether the calibration's residual is above a limit."""
    return measured.calibration is not None and measured.calibration.residual > max_residual


def measure_trusted(
    measure: Callable[[], MeasuredEntries],
    journal: Journal,
    reporter: Reporter,
    trust: Trust,
    command: str,
) -> MeasuredEntries:
    """Measure entries, the suspects again if asked to, and check that they can be trusted.

    Args:
        measure: measures into the journal what it lacks.
        command: the command that measures the suspects again.

    Raises:
        QuadranasError: the machine was too busy to measure some programs.
        PromiseMissedError: the entries do not add up to the latencies of the calibration networks.
    """
    measured = measure()
    suspects = find_suspects(measured, trust.max_residual)
    if trust.only_suspect and suspects.programs:
        reporter.message(f"measuring again: {suspects.text()}")
        journal.begin_again(suspects.programs)
        measured = measure()
    _check(measured, trust.max_residual, journal.path, command)
    return measured


def _check(
    measured: MeasuredEntries, max_residual: float, timings: Path | None, command: str
) -> None:
    suspects = find_suspects(measured, max_residual)
    if not suspects.programs:
        return
    suspect = f"suspect entries: {suspects.text()}" if suspects.entries else suspects.text()
    kept = f"the table is not saved, the timings are kept in {timings}"
    again = f"measure the suspect entries again with: {command}"
    if measured.timings.busy:
        raise QuadranasError(
            f"the machine was busy: {len(measured.timings.busy)} of "
            f"{len(measured.timings.programs)} programs had undisturbed calls in fewer than "
            f"{MIN_UNDISTURBED} rounds; {kept}; {suspect}",
            f"Stop the programs that use the processor, then {again}",
        )
    raise PromiseMissedError(
        f"{residual_text(measured, max_residual)}; {kept}; {suspect}",
        f"On an idle machine, {again}",
    )


def residual_text(measured: MeasuredEntries, max_residual: float) -> str:
    """The residual of a calibration, which is above a limit."""
    assert measured.calibration is not None
    return (
        f"the table's residual is {measured.calibration.residual:.1%} on the "
        f"{len(measured.calibration.networks)} networks of the calibration; accepted: "
        f"{max_residual:.1%}"
    )


def _networks(measured: MeasuredEntries, programs: Iterable[str]) -> tuple[str, ...]:
    """Those of the programs that are whole networks of the calibration."""
    known = measured.calibration.networks if measured.calibration is not None else ()
    wanted = set(programs)
    return tuple(network.name for network in known if network.name in wanted)


def _dropped(measured: MeasuredEntries, entry: TableEntry) -> str:
    shares = [measured.timings.programs[name].dropped for name in programs_of(entry.op)]
    return f"{max((share or 0.0 for share in shares), default=0.0):.0%}"


def _noisiest(entries: Iterable[TableEntry]) -> list[TableEntry]:
    ordered = sorted(entries, key=lambda entry: -(entry.noise or 0.0))
    noisy = sum((entry.noise or 0.0) > SUSPECT_NOISE for entry in ordered)
    return ordered[: max(noisy, round(FEWEST * len(ordered)), 1)]


def _worst(calibration: Calibration | None, max_residual: float) -> tuple[str, ...]:
    """The whole networks whose own error is above the limit."""
    assert calibration is not None
    return tuple(n.name for n in calibration.networks if abs(n.error) > max_residual)
