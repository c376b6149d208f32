"""build-lut: make a device's latency table for a space, by its analytic model or by measuring."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Unpack

from quadranas.errors import PromiseMissedError, QuadranasError, some, unknown
from quadranas.latency.analytic import op_latency_ms
from quadranas.latency.conditions import Conditions
from quadranas.latency.device import (
    ANALYTIC,
    AnalyticModel,
    Device,
    DeviceSettings,
    load_device,
)
from quadranas.latency.journal import Journal
from quadranas.latency.runtimes import FASTEST, RUNTIMES
from quadranas.latency.table import LatencyTable, TableEntry
from quadranas.latency.table_files import load_table
from quadranas.measurement.bench import open_bench
from quadranas.measurement.by_hand import HandBench, HandProbes
from quadranas.measurement.hand_times import as_paths
from quadranas.measurement.lut_entries import (
    MeasuredEntries,
    baseline_network,
    calibration_networks,
    measure_entries,
)
from quadranas.measurement.own_entries import own_latencies_ms
from quadranas.measurement.plan import MAX_RESIDUAL, Plan, Trust
from quadranas.measurement.suspects import (
    MAX_NAMED,
    find_suspects,
    measure_trusted,
    residual_text,
)
from quadranas.measurement.table_request import TableRequest, table_request
from quadranas.reporter import Reporter
from quadranas.space.operation import OpSpec
from quadranas.space.search_space import SearchSpace
from quadranas.space.space_file import load_space
from quadranas.validation import CommandResult


class BuildLutResult(CommandResult):
    """The result of `quadranas build-lut`.

    Args:
        path: the table's file.
        device, space: name of the device and of the space.
        entries: number of operations in the table.
        method: `analytic` or `measured`.
        summary: the source of the table's numbers, in one line.
        quality: noise and share of dropped calls of the measurement; empty for an analytic table.
    """

    path: Path
    device: str
    space: str
    entries: int
    method: str
    summary: str
    quality: str = ""

    def table(self) -> LatencyTable:
        """Load the table."""
        return load_table(self.path)


def build_lut(
    space: str | Path | SearchSpace = "quadranet-mobile",
    *,
    device: str | Path | Device,
    backend: str | None = None,
    output: str | Path | None = None,
    only_missing: bool = False,
    only_suspect: bool = False,
    max_residual: float = MAX_RESIDUAL,
    num_classes: Sequence[int] = (),
    rounds: int = Plan.num_rounds,
    repeats: int = Plan.repeats,
    times: str | Path | Sequence[str | Path] = (),
    reporter: Reporter | None = None,
    command: str = "",
    **settings: Unpack[DeviceSettings],
) -> BuildLutResult:
    """Make a latency table, or complete one, and save it.

    An interrupted measurement resumes when it is called again, from the timings beside the table.

    Args:
        backend: `analytic`, `fastest`, or the runtime to measure with; see `default_backend`.
        output: file of the table; default: `latency_tables/<space>/<device>.json`.
        only_missing: keep the entries of the existing table.
        only_suspect: measure the suspect entries of a measurement again that ended with an error.
        max_residual: limit on the calibration's residual, a fraction of the latency.
        num_classes: numbers of classes to add head entries for, besides 10, 100 and 1000.
        rounds, repeats: number of rounds, and of calls of every program in each.
        times: CSV files with times that were taken by hand, see `write_probes`.
        command: the command line, recorded in the table.
        settings: values to use instead of those in the device's file.

    Raises:
        QuadranasError: an unsuitable backend, device, existing table or file; or the machine was
            too busy, or nothing is suspect. The timings are kept.
        PromiseMissedError: the residual is above its limit. The timings are kept.
    """
    about = (load_device(device, **settings), output, only_missing, num_classes, command)
    request, reporter = table_request(load_space(space), *about), reporter or Reporter(quiet=True)
    trust = Trust(only_suspect=only_suspect, max_residual=max_residual)
    if paths := as_paths(times):
        return _by_hand(request, paths, backend, trust)
    backend = _known_backend(backend or request.default_backend)
    if backend == ANALYTIC:
        return _analytic(request, reporter, only_suspect=only_suspect)
    return _measured(request, backend, reporter, Plan(rounds, repeats), trust)


def _known_backend(name: str) -> str:
    if name not in (ANALYTIC, FASTEST, *RUNTIMES):
        raise unknown("backend", name, (ANALYTIC, FASTEST, *RUNTIMES))
    return name


def _analytic(request: TableRequest, reporter: Reporter, *, only_suspect: bool) -> BuildLutResult:
    if only_suspect:
        raise _nothing_suspect(request)
    device, model = request.device, request.device.analytic
    if model is None:
        raise QuadranasError(
            f"device {device.name!r} has no analytic model",
            f"Add the section 'analytic' to its YAML file, or measure it: --backend "
            f"{' or '.join(RUNTIMES)}.",
        )
    conditions = device.modelled_conditions | Conditions(space=request.space.name)
    request.check(conditions)
    kept = request.existing.header if request.existing else None
    if request.existing is not None:
        _check_entries(request, model)
    if kept is not None and not request.missing:  # a table of version 0.1.0 gets its model
        kept = kept.model_copy(update={"model": model.numbers})
        return _result(request, request.save(kept, ()))
    header = request.header(
        conditions,
        statistic="model",
        fitted_to=model.fitted_to,
        expected_error=model.expected_error,
        scale=kept.scale if kept else 1.0,
        null_ms=kept.null_ms if kept else 0.0,
    )
    own = {}
    if request.space.model is not None:
        own = own_latencies_ms(request.space, device, model, reporter)
    entries = [
        TableEntry(op=s, latency_ms=own[s] if own else _modelled_ms(s, device, model))
        for s in request.missing
    ]
    return _result(request, request.save(header, entries))


def _modelled_ms(spec: OpSpec, device: Device, model: AnalyticModel) -> float:
    return op_latency_ms(spec, model, device.precision, device.batch_size)


def _check_entries(request: TableRequest, model: AnalyticModel) -> None:
    """Check that the entries of a table that names no model were made by this one.

    Raises:
        QuadranasError: an entry differs.
    """
    assert request.existing is not None
    if request.existing.header.model is not None:
        return
    for spec, ms in request.existing.latencies_ms.items():
        expected = _modelled_ms(spec, request.device, model)
        if not math.isclose(ms, expected, rel_tol=1e-9):
            raise QuadranasError(
                f"{request.target} was made by another analytic model than that of device "
                f"{request.device.name!r}: {ms:.6g} ms, not {expected:.6g} ms, for {spec}",
                "Omit --only-missing to make the whole table again, or choose another --output.",
            )


def _measured(
    request: TableRequest, backend: str, reporter: Reporter, plan: Plan, trust: Trust
) -> BuildLutResult:
    """Measure, save the table, and only then delete the timings."""
    if trust.only_suspect and not request.timings.is_file():
        raise _nothing_suspect(request)
    request = replace(request, device=request.device_to_measure(backend, reporter))
    space, existing = request.space, request.existing
    with open_bench(request.device) as bench:
        conditions = bench.conditions | Conditions(space=space.name, method="measured")
        request.check(conditions)
        with Journal(request.timings, bench.identity("build-lut", space)) as journal:
            if journal.num_timings:
                reporter.message(
                    f"continuing with {journal.num_timings} timings from {journal.path}"
                )

            def measure() -> MeasuredEntries:
                return measure_entries(
                    request.missing,
                    baseline_network(space),
                    [] if existing else calibration_networks(space),
                    *(bench, journal, reporter, plan),
                )

            measured = measure_trusted(
                measure, journal, reporter, trust, request.suspect_command()
            )
            table = request.save_measured(conditions, measured)
            journal.remove()
    return _result(request, table)


def _by_hand(
    request: TableRequest, paths: Sequence[Path], backend: str | None, trust: Trust
) -> BuildLutResult:
    """The table of times that were taken by hand.

    Raises:
        QuadranasError: an option that is for measuring, a faulty file, or times are missing.
        PromiseMissedError: the residual is above its limit.
    """
    if trust.only_suspect or backend not in (None, request.device.runtime):
        raise QuadranasError(
            "times taken by hand are neither measured again nor in another runtime",
            "Omit --only-suspect and --backend, or --times.",
        )
    probes = HandProbes.of(request.device, request.space, request.missing, request.existing)
    bench = HandBench(request.device, probes.files.read_times(paths))
    conditions = bench.conditions | Conditions(space=request.space.name, method="measured")
    request.check(conditions)
    measured = probes.entries(bench)
    suspects = find_suspects(measured, trust.max_residual)
    if suspects.programs:
        raise PromiseMissedError(
            f"{residual_text(measured, trust.max_residual)}; the table is not saved; suspect "
            f"entries: {suspects.text()}",
            "Time these files again, on an idle device: "
            f"{some([probes.files.names[name] for name in suspects.programs], MAX_NAMED)}",
        )
    return _result(request, request.save_measured(conditions, measured))


def _result(request: TableRequest, table: LatencyTable) -> BuildLutResult:
    header = table.header
    return BuildLutResult(
        path=request.target,
        device=header.device,
        space=header.space,
        entries=len(table.entries),
        method=header.method,
        summary=header.summary(),
        quality=header.measurement.quality() if header.measurement else "",
    )


def _nothing_suspect(request: TableRequest) -> QuadranasError:
    return QuadranasError(
        f"there is nothing suspect to measure again: {request.timings} does not exist",
        "Omit --only-suspect. It is for a measurement that ended with an error about suspect "
        "entries.",
    )
