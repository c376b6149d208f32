"""Latency budgets as they are written on the command line: `30ms`, `0.3s`, `250us`."""

import math
import re

from quadranas.errors import BudgetError

# The last two differ: the micro sign and the Greek letter.
MIN_MS, MAX_MS = 1e-30, 1e30
"""Range of accepted latencies of operations: their sums are finite in float32, and the slowest
operation of the slowest analytic model is within it."""

MIN_BUDGET_MS, MAX_BUDGET_MS = 1e-40, 1e40
"""Range of accepted budgets: wider, since it must include the latencies of all networks."""

UNITS_MS = {"s": 1e3, "ms": 1.0, "us": 1e-3, "\u00b5s": 1e-3, "\u03bcs": 1e-3}
PATTERN = re.compile(
    # Possessive quantifiers (`++`, `*+`) do not backtrack: a long faulty text is refused at once.
    r"\s*+([+-]?(?:\d++(?:\.\d*+)?|\.\d++)(?:e[+-]?\d++)?|[+-]?(?:nan|inf(?:inity)?))\s*+(\S*+)\s*+"
)


def parse_budget(text: str) -> float:
    """Parse a budget; returns milliseconds.

    Raises:
        BudgetError: no number, no or an unknown unit, or a number that is not positive and finite,
            or not between `MIN_BUDGET_MS` and `MAX_BUDGET_MS`.
    """
    hint = "Write a positive number and a unit, for example 30ms, 0.3s or 250us."
    match = PATTERN.fullmatch(text.lower())
    if match is None:
        raise BudgetError(f"cannot read the budget {text!r}", hint)
    number, unit = float(match.group(1)), match.group(2)
    if not unit:
        raise BudgetError(f"the budget {text!r} has no unit; accepted: s, ms, us", hint)
    if unit not in UNITS_MS:
        raise BudgetError(
            f"the budget {text!r} has the unknown unit {unit!r}; accepted: s, ms, us", hint
        )
    budget_ms = number * UNITS_MS[unit]
    if not math.isfinite(budget_ms) or budget_ms <= 0:
        raise BudgetError(f"the budget must be positive and finite, got {text!r}", hint)
    if not MIN_BUDGET_MS <= budget_ms <= MAX_BUDGET_MS:
        raise BudgetError(
            f"the budget must be from {MIN_BUDGET_MS:g} to {MAX_BUDGET_MS:g} ms, got {text!r}",
            hint,
        )
    return budget_ms


def parse_device_budget(text: str) -> tuple[str, float]:
    """Parse a budget on a named device, `DEVICE=BUDGET`; returns the name and milliseconds.

    Raises:
        BudgetError: no device, or no budget that `parse_budget` accepts.
    """
    device, equals, budget = text.rpartition("=")
    if not equals or not device.strip():
        raise BudgetError(
            f"cannot read the budget on a further device {text!r}",
            "Write DEVICE=BUDGET, for example --also vpu=30ms.",
        )
    return device.strip(), parse_budget(budget)


def format_ms(latency_ms: float) -> str:
    """Format a duration with three significant digits, in the unit that suits its size."""
    for limit, factor, unit in ((1.0, 1e3, "us"), (1e4, 1.0, "ms"), (math.inf, 1e-3, "s")):
        if latency_ms < limit:
            value = latency_ms * factor
            digits = max(0, 2 - math.floor(math.log10(value))) if value > 0 else 0
            return f"{value:.{digits}f} {unit}"
    return f"{latency_ms} ms"
