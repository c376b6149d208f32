"""report: write one self-contained HTML page about a run, or about several side by side."""

from collections.abc import Sequence
from pathlib import Path

from quadranas.reports.run_report import write_comparison, write_report
from quadranas.validation import CommandResult


class ReportResult(CommandResult):
    """The result of `quadranas report`: the run folder and the pages in it.

    Args:
        run: the run folder.
        report: the page about the run.
        comparison: the page that compares it with other runs; `None` if none were named.
    """

    run: Path
    report: Path
    comparison: Path | None = None


def report(run: str | Path, *, compare: Sequence[str | Path] = ()) -> ReportResult:
    """Write the report of a run, finished or not.

    Args:
        run: the folder that a search or a training wrote.
        compare: other runs; a second page puts them beside this one.

    Raises:
        QuadranasError: not a run folder, or a page cannot be written.
    """
    others = [Path(other) for other in compare]
    comparison = write_comparison(Path(run), others) if others else None
    return ReportResult(run=Path(run), report=write_report(Path(run)), comparison=comparison)
