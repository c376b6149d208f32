"""The cards at the top of a report: the figures of a run that are asked for first."""

import re
from collections.abc import Iterator
from html import escape
from pathlib import Path

from quadranas.errors import QuadranasError
from quadranas.latency.budget import format_ms
from quadranas.latency.contract import Contract
from quadranas.reports.page import note as note_line
from quadranas.reports.run_view import TIMES, Run
from quadranas.runs.results import DeviceLatency
from quadranas.space.cost import count_macs, count_params


def percent(share: float, digits: int = 1) -> str:
    """A share in per cent."""
    return f"{100 * share:.{digits}f} %"


def short_ms(latency_ms: float) -> str:
    """A duration without trailing zeros, as a budget is typed."""
    return re.sub(r"\.0+ ", " ", format_ms(latency_ms))


def _count(number: int) -> str:
    for factor, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= factor:
            return f"{number / factor:.3g} {unit}"
    return str(number)


def headline(run: Run) -> str:
    """The cards: latency, budget, accuracy and size of the network."""
    predicted_ms, budget_ms, result = run.predicted_ms, run.budget_ms, run.result
    method = f" ({run.method})" if run.table else ""
    cards = []
    if predicted_ms is not None and budget_ms is not None:
        note = f"{percent(predicted_ms / budget_ms)} of {short_ms(budget_ms)}"
        note += ": over the budget" if predicted_ms > budget_ms else ""
        cards.append((f"predicted latency{method}", format_ms(predicted_ms), note))
    elif predicted_ms is not None:
        cards.append((f"predicted latency{method}", format_ms(predicted_ms), "budget unknown"))
    elif budget_ms is not None:
        cards.append(("budget", short_ms(budget_ms), "no network yet"))
    if run.confidence is not None and budget_ms is not None:
        cards.append(("budget", short_ms(budget_ms), _about_confidence(run)))
    if run.derived is not None and run.derived.measured_ms is not None:
        cards.append(("measured latency", format_ms(run.derived.measured_ms), run.device or ""))
    for one in run.derived.also if run.derived else ():
        cards += _further_cards(one)
    if result is not None and result.accuracy is not None:
        cards.append(("test accuracy", percent(result.accuracy), _tested_on(run)))
    else:
        cards.append(("test accuracy", "unknown", "not tested yet"))
    cards += size_cards(run)
    drawn = "".join(
        f'<div class="card"><b>{escape(value)}</b><span>{escape(name)}</span>'
        f"<small>{escape(note)}</small></div>"
        for name, value, note in cards
    )
    source = run.source
    if run.table is not None:
        source += f"; expected error {run.table.header.expected_error}"
    note = "" if predicted_ms is None and budget_ms is None else f"Predicted latency: {source}."
    return f'<div class="cards">{drawn}</div>{note_line(escape(note))}'


def _further_cards(latency: DeviceLatency) -> Iterator[tuple[str, str, str]]:
    """Predicted and measured latency on a further device."""
    method = (
        "from a measured table" if latency.table.method == "measured" else latency.table.method
    )
    share = f"{percent(latency.predicted_ms / latency.budget_ms)} of {short_ms(latency.budget_ms)}"
    name = f"predicted latency on {latency.device} ({method})"
    yield name, format_ms(latency.predicted_ms), share
    if latency.measured_ms is not None:
        yield "measured latency", format_ms(latency.measured_ms), latency.device


def _about_confidence(run: Run) -> str:
    """The confidence, and the predicted latency within which the budget is kept with it."""
    assert run.budget_ms is not None
    assert run.confidence is not None
    text = f"with a confidence of {percent(run.confidence, 0)}"
    if run.table is None:
        return text
    contract = Contract(budget_ms=run.budget_ms, confidence=run.confidence)
    try:
        return f"{text}: predicted within {format_ms(contract.decoding_ms(run.table))}"
    except QuadranasError:  # the table was not measured
        return text


def size_cards(run: Run) -> list[tuple[str, str, str]]:
    """Parameters and MACs; for a network with replaced layers, those of its result."""
    architecture = run.architecture
    if architecture is None:
        return []
    if not architecture.changes:
        params, macs = count_params(architecture), count_macs(architecture)
    elif run.result is not None:
        params, macs = run.result.params, run.result.macs
    else:
        return []
    changed = f", {len(architecture.changes)} layers replaced" if architecture.changes else ""
    pixels = architecture.resolution
    return [
        ("parameters", _count(params), f"{params:,}{changed}"),
        ("MACs", _count(macs), f"at {pixels}{TIMES}{pixels} px"),
    ]


def _tested_on(run: Run) -> str:
    name = Path(str(run.config.get("data") or "built-in digits")).name
    classes = f", {run.num_classes} classes" if run.num_classes else ""
    chance = "" if run.chance is None else f"; chance {percent(run.chance)}"
    tested = run.result.resolution if run.result else None
    pixels = tested or run.config.get("train_resolution")
    return f"{name}{classes}" + (f", {pixels} px" if pixels else "") + chance
