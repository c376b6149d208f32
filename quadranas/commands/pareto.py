"""pareto: fronts of accuracy against latency over a trained supernet, for several devices."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

from quadranas.errors import QuadranasError
from quadranas.latency.device import Device
from quadranas.latency.table import LatencyTable
from quadranas.reporter import Reporter
from quadranas.reports.run_report import write_report
from quadranas.runs.fronts import Fronts, fronts_of
from quadranas.runs.run_device import open_device_argument
from quadranas.strategies.interface import RememberingJudge
from quadranas.strategies.limits import Limits
from quadranas.strategies.pareto import (
    DEFAULT_POINTS,
    judged,
    plan_networks,
)
from quadranas.training.searched import Searched, open_searched
from quadranas.validation import CommandResult

Argument: TypeAlias = str | Path | Device

DEFAULT_CANDIDATES = 4
"""Number of networks to judge for every budget."""

MAX_POINTS = 100


class ParetoResult(CommandResult, Fronts):
    """The result of `quadranas pareto`.

    Args:
        run: the run folder.
        path: the file with the fronts in it.
        report: the report of the run, which shows them.
    """

    run: Path
    path: Path
    report: Path


def pareto(
    run: str | Path,
    *,
    device: Argument | Sequence[Argument] = (),
    points: int = DEFAULT_POINTS,
    candidates: int = DEFAULT_CANDIDATES,
    reporter: Reporter | None = None,
) -> ParetoResult:
    """Judge networks over the range of budgets of several devices, and write the fronts.

    For every budget the gates propose networks, which are judged with the weights of the supernet
    on training images that these were not trained on. Limits of the search on other measures than
    the latency hold for all of them.

    Args:
        run: the folder of a search whose supernet is trained; its `pareto.json` and its report are
            replaced.
        device: the devices, each as for `derive`; default: that of the search.
        points: number of budgets per device, from the fastest network to the slowest.
        candidates: number of networks to judge for every budget.
        reporter: receives messages and progress. Default: nothing is shown.

    Raises:
        QuadranasError: no trained supernet, missing images, a device without a table, or one that
            is named twice.
    """
    _check_number("points", points, 2, MAX_POINTS)
    _check_number("candidates", candidates, 1, MAX_POINTS)
    searched = open_searched(Path(run))
    tables = _tables(searched, device)
    searched.require_images()
    reporter = reporter or Reporter(quiet=True)
    evaluator = searched.evaluator(searched.supernet())
    space = searched.space
    limits = Limits(budget_ms=math.inf, also=(), min_use=0.0, **searched.config.ceilings)
    planned = plan_networks(
        *(space, searched.scores, tables, limits), points=points, candidates=candidates
    )
    judge = RememberingJudge(space, evaluator.accuracies)
    handle, found = reporter.phase("pareto", len(planned), 0), []
    for network in judged(space, tables, planned, judge):
        found.append(network)
        reporter.advance(handle, len(found))
    fronts = fronts_of(space, tables, found, points)
    path = fronts.save(searched.folder.path)
    report = write_report(searched.folder.path)
    return ParetoResult(run=searched.folder.path, path=path, report=report, **dict(fronts))


def _check_number(name: str, number: int, least: int, most: int) -> None:
    if not least <= number <= most:
        raise QuadranasError(f"{name} must be from {least} to {most}, got {number}")


def _tables(searched: Searched, device: Argument | Sequence[Argument]) -> list[LatencyTable]:
    """The tables of devices, by default that of the search."""
    arguments = [device] if isinstance(device, str | Path | Device) else device
    found: dict[str, LatencyTable] = {}
    for argument in arguments or [searched.folder.path]:
        opened = open_device_argument(argument)
        if opened.name in found:
            raise QuadranasError(
                f"device {opened.name!r} is named twice", "Name every device once."
            )
        found[opened.name] = searched.priced(opened, argument, searched.folder.path).table
    return list(found.values())
