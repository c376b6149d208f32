"""Budgets as people write them."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quadranas.errors import BudgetError
from quadranas.latency.budget import UNITS_MS, format_ms, parse_budget, parse_device_budget


@pytest.mark.parametrize(
    ("text", "budget_ms"),
    [
        ("30ms", 30.0),
        ("0.3s", 300.0),
        ("250us", 0.25),
        ("250\u00b5s", 0.25),  # the micro sign
        ("250\u03bcs", 0.25),  # the Greek letter
        (" 1.5 ms ", 1.5),
        ("2e1MS", 20.0),
        (".5s", 500.0),
        ("5.ms", 5.0),
        ("+4E-1 s", 400.0),
    ],
)
def test_numbers_with_units_are_read(text: str, budget_ms: float) -> None:
    assert parse_budget(text) == pytest.approx(budget_ms)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("30", "has no unit"),
        ("30min", "unknown unit 'min'"),
        ("-3ms", "must be positive and finite"),
        ("0ms", "must be positive and finite"),
        ("nanms", "must be positive and finite"),
        ("nan ms", "must be positive and finite"),
        ("inf ms", "must be positive and finite"),
        ("infms", "must be positive and finite"),
        ("-Infinityms", "must be positive and finite"),
        ("1e-999ms", "must be positive and finite"),
        ("30 m s", "cannot read"),
        ("ms", "cannot read"),
        ("1_000ms", "unknown unit '_000ms'"),
        ("1e999ms", "must be positive and finite"),
        ("1e300ms", r"must be from 1e-40 to 1e\+40 ms, got '1e300ms'"),
        ("1e-300s", r"must be from 1e-40 to 1e\+40 ms"),
        ("", "cannot read"),
        ("fast", "cannot read"),
        ("3,5ms", "unknown unit"),
    ],
)
def test_what_is_no_budget_is_refused(text: str, message: str) -> None:
    with pytest.raises(BudgetError, match=message) as caught:
        parse_budget(text)
    assert "30ms" in caught.value.hint


@given(st.floats(1e-6, 1e6), st.sampled_from(sorted(UNITS_MS)))
def test_any_number_and_unit_round_trips(number: float, unit: str) -> None:
    assert parse_budget(f"{number!r}{unit}") == pytest.approx(number * UNITS_MS[unit])


NEARLY_BUDGETS = st.text(alphabet="0123456789.eE+- \tmsunaify\u00b5\u0660", max_size=12)


@given(st.text() | NEARLY_BUDGETS)
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        budget_ms = parse_budget(text)
    except BudgetError:
        return
    assert math.isfinite(budget_ms)
    assert budget_ms > 0


def test_a_long_text_is_refused_at_once() -> None:
    """Backtracking over every split of the digits would take hours."""
    with pytest.raises(BudgetError, match="cannot read"):
        parse_budget("1" * 20_000 + " a b")


@given(st.floats(1e-4, 1e7))
def test_what_is_printed_is_near_what_was_meant(latency_ms: float) -> None:
    assert parse_budget(format_ms(latency_ms)) == pytest.approx(latency_ms, rel=0.006)


def test_units_suit_the_size() -> None:
    shown = [format_ms(value) for value in (0.2, 29.94, 136.2, 12_345.0)]
    assert shown == ["200 us", "29.9 ms", "136 ms", "12.3 s"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("vpu=30ms", ("vpu", 30.0)),
        (" boards/pi.yaml = 0.3 s", ("boards/pi.yaml", 300.0)),
        ("a=b.yaml=5us", ("a=b.yaml", 0.005)),
    ],
)
def test_a_budget_on_a_device(text: str, expected: tuple[str, float]) -> None:
    assert parse_device_budget(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("30ms", "cannot read the budget on a further device '30ms'"),
        ("=30ms", "cannot read the budget on a further device"),
        ("vpu=", "cannot read the budget ''"),
        ("vpu=30", "has no unit"),
    ],
)
def test_other_budgets_on_devices_are_refused(text: str, message: str) -> None:
    with pytest.raises(BudgetError, match=message):
        parse_device_budget(text)
