"""The scale, the agreement and the safety of a table, against references written out plainly."""

import math
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quadranas.errors import QuadranasError
from quadranas.latency.calibration import (
    Agreement,
    Calibration,
    NetworkLatency,
    agreement,
    calibrate,
    fit_scale,
)
from quadranas.latency.contract import DEFAULT_TOLERANCE, Contract
from quadranas.latency.table import LatencyTable
from quadranas.latency.table_files import find_table
from quadranas.space.space_file import load_space
from tests.command_line import call

milliseconds = st.floats(0.01, 1000)
pairs = st.lists(st.tuples(milliseconds, milliseconds), min_size=2, max_size=9)


def networks(pairs_ms: Sequence[tuple[float, float]]) -> list[NetworkLatency]:
    return [
        NetworkLatency(name=f"n{index}", predicted_ms=predicted, measured_ms=measured)
        for index, (predicted, measured) in enumerate(pairs_ms)
    ]


def agreed(pairs_ms: Sequence[tuple[float, float]]) -> Agreement:
    return agreement(networks(pairs_ms), command="c", date="d", commit="e")


@given(
    sums=st.lists(milliseconds, min_size=1, max_size=9),
    scale=st.floats(0.1, 10),
    null_ms=st.floats(0, 1),
)
def test_an_exact_scale_is_found(sums: list[float], scale: float, null_ms: float) -> None:
    measured = [scale * total + null_ms for total in sums]
    assert fit_scale(sums, measured, null_ms) == pytest.approx(scale, rel=1e-9)


@given(found=pairs, null_ms=st.floats(0, 0.005))
def test_no_other_scale_has_a_smaller_error(
    found: list[tuple[float, float]], null_ms: float
) -> None:
    def error(scale: float) -> float:
        return math.fsum(((scale * s + null_ms) / measured - 1) ** 2 for s, measured in found)

    sums, measured = zip(*found, strict=True)
    best = fit_scale(sums, measured, null_ms)
    for other in (0.9 * best, 0.999 * best, 1.001 * best, 1.1 * best):
        assert error(best) <= error(other) * (1 + 1e-12)


def test_a_scale_known_by_hand() -> None:
    """Errors of scale * 1 / 1 and scale * 2 / 1: (s - 1)^2 + (2 s - 1)^2 is least at 3 / 5."""
    assert fit_scale([1.0, 2.0], [1.0, 1.0], 0.0) == pytest.approx(0.6)


def test_a_residual_known_by_hand() -> None:
    """Errors of +10 %, -20 % and 0 over two freedoms: sqrt(0.05 / 2)."""
    found = calibrate(networks([(10, 11), (10, 8), (5, 5)]))
    assert found.residual == pytest.approx(math.sqrt(0.05 / 2))
    assert calibrate(networks([(1, 1), (2, 2)])).residual == 0


@given(found=pairs)
def test_agreement_is_that_of_a_plain_reference(found: list[tuple[float, float]]) -> None:
    result = agreed(found)
    errors = [predicted / measured - 1 for predicted, measured in found]
    count = len(found)
    assert result.bias == pytest.approx(math.fsum(errors) / count, rel=1e-9, abs=1e-12)
    assert result.mape == pytest.approx(math.fsum(map(abs, errors)) / count, rel=1e-9, abs=1e-12)
    assert result.within_5 == sum(abs(error) <= 0.05 for error in errors) / count
    assert result.within_10 == sum(abs(error) <= 0.10 for error in errors) / count
    assert result.kendall_tau == pytest.approx(kendall_tau(found), abs=1e-9)


def kendall_tau(found: Sequence[tuple[float, float]]) -> float:
    """Tau-b by its definition: concordant less discordant pairs; ties count in neither root."""
    both = first = second = 0

    def sign(difference: float) -> int:
        return (difference > 0) - (difference < 0)

    for (p1, m1), (p2, m2) in combinations(found, 2):
        a, b = sign(p1 - p2), sign(m1 - m2)
        both, first, second = both + a * b, first + abs(a), second + abs(b)
    return both / math.sqrt(first * second) if first and second else 0.0


def test_an_agreement_known_by_hand() -> None:
    result = agreed([(10.4, 10), (19.2, 20), (36.4, 40), (100, 80)])  # +4, -4, -9, +25 %
    assert result.bias == pytest.approx(0.04)
    assert result.mape == pytest.approx(0.105)
    assert (result.within_5, result.within_10) == (0.5, 0.75)
    assert result.kendall_tau == 1
    assert result.summary() == (
        "10.5% MAPE, bias +4.0%, 50% within 5 %, 75% within 10 %, Kendall tau 1.00 on 4 fresh "
        "networks"
    )


def test_the_rank_correlation_of_equal_networks_is_none() -> None:
    assert agreed([(1, 1), (1, 2)]).kendall_tau == 0
    assert agreed([(1, 2), (2, 1)]).kendall_tau == -1


T95 = {2: 6.314, 8: 1.895, 30: 1.699}
"""Student's quantile of 95 %, one-sided, with one freedom less than networks; from tables."""


@pytest.mark.parametrize("size", T95)
def test_the_safety_is_student_s_for_one_more_network(size: int) -> None:
    latencies = tuple(networks([(1, 1)] * size))
    found = Calibration(networks=latencies, residual=0.02)
    expected = 1 + T95[size] * math.sqrt(1 + 1 / size) * 0.02
    assert found.safety_factor(0.95) == pytest.approx(expected, rel=1e-4)
    assert found.safety_factor(0.5) == pytest.approx(1)
    factors = [found.safety_factor(p) for p in (0.6, 0.8, 0.9, 0.99)]
    assert factors == sorted(factors)


def test_a_table_without_residual_needs_no_safety() -> None:
    found = Calibration(networks=tuple(networks([(1, 1)] * 8)), residual=0)
    assert found.safety_factor(0.999) == 1


@pytest.fixture
def analytic() -> LatencyTable:
    return find_table(load_space("toy"), "vpu")


def test_a_confidence_tightens_the_budget(analytic: LatencyTable) -> None:
    found = Calibration(networks=tuple(networks([(1, 1)] * 8)), residual=0.05)
    header = analytic.header.model_copy(update={"calibration": found})
    table = analytic.model_copy(update={"header": header})
    assert Contract(budget_ms=30).decoding_ms(table) == 30
    sure = Contract(budget_ms=30, confidence=0.95).decoding_ms(table)
    assert sure == pytest.approx(30 / (1 + T95[8] * math.sqrt(9 / 8) * 0.05), rel=1e-4)
    surer = Contract(budget_ms=30, confidence=0.99).decoding_ms(table)
    assert surer < sure < 30
    assert Contract(budget_ms=1).tolerance == DEFAULT_TOLERANCE


def test_a_confidence_needs_a_measured_table(analytic: LatencyTable) -> None:
    assert Contract(budget_ms=30).decoding_ms(analytic) == 30
    with pytest.raises(QuadranasError, match="a confidence needs a measured table") as caught:
        Contract(budget_ms=30, confidence=0.9).decoding_ms(analytic)
    assert "that of device 'vpu' is analytic" in caught.value.message
    assert caught.value.hint == (
        "Omit --confidence, or measure: quadranas build-lut --device vpu --space toy "
        "--backend RUNTIME"
    )


@pytest.mark.parametrize("command", ["search", "derive"])
def test_the_command_line_refuses_it_before_anything_is_written(
    tmp_path: Path, finished_run: Path, command: str
) -> None:
    given = ("--device", "cpu", "--budget", "0.8ms", "--output", tmp_path / "new")
    stored = (finished_run,) if command == "derive" else ("--space", "toy")
    outcome = call(command, *stored, *given, "--confidence", "0.9", "--json")
    assert outcome.code == 2
    assert "a confidence needs a measured table" in outcome.json()["error"]
    assert outcome.json()["hint"].startswith("Omit --confidence, or measure: ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("confidence", ["0", "1", "1.5", "-0.1", "nan"])
@pytest.mark.parametrize("command", ["search", "derive"])
def test_an_impossible_confidence_is_refused(
    tmp_path: Path, finished_run: Path, command: str, confidence: str
) -> None:
    given = ("--device", "cpu", "--budget", "0.8ms", "--output", tmp_path / "new")
    stored = (finished_run,) if command == "derive" else ("--space", "toy")
    outcome = call(command, *stored, *given, f"--confidence={confidence}", "--json")
    assert outcome.code == 2
    assert "confidence" in outcome.json()["error"]
    assert "measured table" not in outcome.json()["error"]
    assert list(tmp_path.iterdir()) == []
