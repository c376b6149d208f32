import pytest
from torch import full

from quadranas.inspection.alarms import (
    EXPLODING_RATIO,
    HISTORY_FACTOR,
    MIN_HISTORY,
    VANISHING_RATIO,
    GradientWatch,
)
from quadranas.inspection.records import Alarm, LayerRecord, StepRecord
from quadranas.inspection.terms import describe


def record(step: int, **norms: float) -> StepRecord:
    """A layer `x` with gradients of these norms, and a plain layer with one of norm 1."""
    gradients = {part: describe(full((1,), norm)) for part, norm in norms.items()}
    rest = LayerRecord(kind="Linear", gradients={"weight": describe(full((1,), 1.0))})
    return StepRecord(
        step=step, layers={"x": LayerRecord(kind="any", gradients=gradients), "y": rest}
    )


def kinds(alarms: tuple[Alarm, ...]) -> list[tuple[str, str]]:
    return [(alarm.part, alarm.kind) for alarm in alarms]


@pytest.mark.parametrize(
    ("a", "expected"),
    [
        (0.99 * EXPLODING_RATIO, []),
        (1.01 * EXPLODING_RATIO, [("a", "exploding")]),
        (1.01 * VANISHING_RATIO, []),
        (0.99 * VANISHING_RATIO, [("a", "vanishing")]),
    ],
)
def test_a_factor_is_compared_with_the_linear_branch(
    a: float, expected: list[tuple[str, str]]
) -> None:
    found = GradientWatch().judge(record(1, a=3 * a, b=3.0, c=3.0))
    assert kinds(found) == expected


def test_a_matrix_is_judged_too() -> None:
    assert kinds(GradientWatch().judge(record(1, matrix=1e-6, c=1.0))) == [("matrix", "vanishing")]


@pytest.mark.parametrize("change", [2.0, 0.5])
def test_without_a_linear_branch_the_history_decides(change: float) -> None:
    watch = GradientWatch()
    jump = HISTORY_FACTOR**change if change > 1 else 1 / (2 * HISTORY_FACTOR)
    assert not watch.judge(record(0, a=jump, b=1.0))  # there is no history yet
    watch = GradientWatch()
    for step in range(MIN_HISTORY):
        assert not watch.judge(record(step, a=1.0, b=1.0))
    assert not watch.judge(record(3, a=HISTORY_FACTOR * 0.9, b=1.0))
    jump = 91 * HISTORY_FACTOR if change > 1 else 0.9 / HISTORY_FACTOR
    found = watch.judge(record(4, a=jump, b=1.0))
    assert kinds(found) == [("a", "exploding" if change > 1 else "vanishing")]
    assert "times that of the rest of the network" in found[0].text


def test_a_training_that_converges_raises_no_alarm() -> None:
    """All gradients fall together, by far more than the factor of the history."""
    watch = GradientWatch()
    for step in range(12):
        assert not watch.judge(record(step, a=0.1**step, b=0.1**step, c=0.1**step))


def test_an_alarm_is_new_once_and_again_after_a_pause() -> None:
    watch = GradientWatch()
    bad, good = record(1, a=1e-9, c=1.0), record(2, a=1.0, c=1.0)
    news = [len(watch.new(watch.judge(r))) for r in (bad, bad, good, bad)]
    assert news == [1, 0, 0, 1]


def test_a_watch_continues_where_it_was() -> None:
    watch, other = GradientWatch(), GradientWatch()
    for step in range(4):
        watch.new(watch.judge(record(step, a=1.0)))
    watch.new(watch.judge(record(4, a=1e-6)))
    other.restore(watch.state())
    for found in (record(5, a=1e-6), record(6, a=1e9)):
        alarms = watch.judge(found)
        assert other.judge(found) == alarms
        assert other.new(alarms) == watch.new(alarms)
