"""report: write one self-contained HTML page about a run."""

from pathlib import Path

from quadranas.reports.run_report import write_report
from quadranas.validation import CommandResult


class ReportResult(CommandResult):
    """The result of `quadranas report`: the run folder and the page in it.

    Args:
        run: the run folder.
        report: the page in it.
    """

    run: Path
    report: Path


def report(run: str | Path) -> ReportResult:
    """Write the report of a run, finished or not.

    Args:
        run: the folder that a search or a training wrote.

    Raises:
        QuadranasError: not a run folder, or the page cannot be written.
    """
    return ReportResult(run=Path(run), report=write_report(Path(run)))
