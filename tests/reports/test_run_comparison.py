"""The page that puts runs side by side: complete, safe, and whatever the folders lack."""

import shutil
from pathlib import Path

import pytest

import quadranas
from quadranas.errors import QuadranasError
from quadranas.reports.figures import latency_parts
from quadranas.reports.run_comparison import comparison_page
from quadranas.reports.run_report import write_comparison
from quadranas.reports.run_view import fixed_ms, read_run
from tests.command_line import call
from tests.contracts.test_names import NAME, check_page


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished_run: Path) -> list[Path]:
    """A search, and a network that was derived from it for another device."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished_run, "run")
    derived = quadranas.derive("run", device="gpu", budget="1ms").run
    return [Path("run"), derived]


def test_runs_are_put_side_by_side(runs: list[Path]) -> None:
    run, derived = runs
    outcome = call("report", run, "--compare", derived)
    assert outcome.code == 0, outcome.err
    assert outcome.out == "run/report.html\nrun/comparison.html\n"
    page = Path("run/comparison.html").read_text("utf-8")
    for section in ("Runs", "Accuracy against latency", "Latency by part", "Training"):
        assert f"<h2>{section}</h2>" in page
    for folder in runs:
        read = read_run(folder)
        assert read.predicted_ms is not None
        assert str(folder) in page
        assert sum(latency_parts(read).values()) == pytest.approx(read.predicted_ms)
        assert fixed_ms(read.predicted_ms, read.predicted_ms) in page
    assert page.count('class="drawing"') == 2
    assert not (derived / "comparison.html").exists()


def test_what_a_folder_lacks_is_named(runs: list[Path]) -> None:
    run, derived = runs
    for name in ("architecture.json", "result.json", "table.json"):
        (derived / name).unlink()
    page = write_comparison(run, [derived]).read_text("utf-8")
    assert f"{derived} is not finished: there is no result.json." in page
    assert "Not shown: there is no architecture.json." in page
    assert page.count('class="drawing"') == 1


@pytest.mark.usefixtures("rendered")
def test_hostile_names(runs: list[Path]) -> None:
    check_page(comparison_page({NAME: read_run(runs[0]), f"{NAME}2": read_run(runs[1])}))


def test_folders_that_cannot_be_compared(runs: list[Path]) -> None:
    run, _ = runs
    before = (run / "report.html").read_bytes()
    for other, message in (("run", "run is named twice"), ("nowhere", "nowhere does not exist")):
        with pytest.raises(QuadranasError, match=message):
            quadranas.report(run, compare=[other])
    assert not (run / "comparison.html").exists()
    assert (run / "report.html").read_bytes() == before
