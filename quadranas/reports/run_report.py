"""The report of a run, finished or not: one self-contained HTML page.

The page depends on the files in the run folder alone: no clock, no paths, no network. All text
from them is escaped; each section names in one line the files that it lacks.
"""

import math
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from quadranas.errors import QuadranasError
from quadranas.latency.budget import format_ms
from quadranas.reports.figures import (
    PHASES,
    draw_architecture,
    draw_gate,
    latency_parts,
    plot_blocks,
    plot_curves,
    plot_front,
)
from quadranas.reports.inspection_figures import inspection_section
from quadranas.reports.page import figure, html_page, scrollable, write_page
from quadranas.reports.page import note as note_line
from quadranas.reports.run_cards import headline, percent, short_ms
from quadranas.reports.run_comparison import comparison_page
from quadranas.reports.run_view import (
    RUN_FILES,
    BlockView,
    Run,
    fixed_ms,
    op_label,
    read_run,
)
from quadranas.runs import layout
from quadranas.runs.fronts import DeviceFront, Fronts
from quadranas.runs.pretrained_record import computed_alike
from quadranas.runs.results import SearchResult
from quadranas.space.architecture import OwnModel
from quadranas.space.search_space import Slot


def write_report(run: Path) -> Path:
    """Write `report.html` into a run folder and return its path.

    Raises:
        QuadranasError: the folder does not exist, contains none of a run's files, or is not
            writable.
    """
    path = run / layout.REPORT
    write_page(path, report_page(find_run(run)))
    return path


def write_comparison(run: Path, others: Sequence[Path]) -> Path:
    """Write `comparison.html`, about a run and others, into its folder and return its path.

    Raises:
        QuadranasError: as of `write_report`, for any of the folders.
    """
    runs: dict[str, Run] = {}
    for folder in (run, *others):
        if str(folder) in runs:
            raise QuadranasError(f"{folder} is named twice", "Name other runs to compare with.")
        runs[str(folder)] = find_run(folder)
    path = run / layout.COMPARISON
    write_page(path, comparison_page(runs))
    return path


def find_run(run: Path) -> Run:
    """Read a run folder; see `read_run`.

    Raises:
        QuadranasError: the folder does not exist, or contains none of a run's files.
    """
    hint = "Pass the folder that `quadranas search`, `derive` or `train` wrote."
    if not run.is_dir():
        raise QuadranasError(f"run folder {run} does not exist", hint)
    if not any((run / name).is_file() for name in RUN_FILES):
        raise QuadranasError(
            f"{run} is not a run folder: it has none of {', '.join(RUN_FILES)}", hint
        )
    return read_run(run)


def report_page(run: Run) -> str:
    """The HTML of the page about a run."""
    title = run.name if run.device is None else f"{run.name} on {run.device}"
    if run.budget_ms is not None:
        title += f" within {short_ms(run.budget_ms)}"
    for one in run.derived.also if run.derived else ():
        title += f" and on {one.device} within {short_ms(one.budget_ms)}"
    sections = {
        "The network": _network(run),
        "Latency": _latency(run),
        "Training": _training(run),
        **_pretrained(run),
        **_inspection(run),
        **({} if run.is_training else {"Other budgets": _fronts(run)}),
        "Blocks": _block_table(run),
        "Provenance": _provenance(run),
        "Configuration": _configuration(run),
    }
    before = "\n".join((_state(run), headline(run), _warnings(run)))
    return html_page(title, sections, before=before)


def _warnings(run: Run) -> str:
    """The warnings in the result: signs that the training failed."""
    texts = run.result.warnings if run.result else ()
    return "".join(f'<p class="state">Warning: {escape(text)}.</p>' for text in texts)


def _why_not(run: Run, *files: str) -> str:
    """The text of a section without data."""
    faults = [run.faults[name] for name in files if name in run.faults]
    text = "; ".join(faults) or "no data"
    return note_line(f"{escape(text[0].upper() + text[1:])}.")


def _state(run: Run) -> str:
    """A line at the top of the page while the run has no result."""
    if run.result is not None:
        return ""
    last = "no epoch is recorded"
    if run.epochs:
        epoch = run.epochs[-1]
        last = f"the last recorded epoch is epoch {epoch.epoch} of {PHASES[epoch.phase][0]}"
    return f'<p class="state">Not finished: {escape(run.faults[layout.RESULT])}; {last}.</p>'


def _network(run: Run) -> str:
    if run.architecture is None:
        return _why_not(run, layout.ARCHITECTURE)
    if run.architecture.model is not None:
        return _own_network(run, run.architecture.model)
    specs = run.space.specs() if run.space else tuple(run.architecture.ops())
    searched = [block for block in run.blocks if block.is_searched]
    kept = sum(not block.skipped for block in searched)
    caption = f"{kept} of {len(searched)} blocks are kept."
    if run.space is None:
        caption = (
            f"{kept} blocks; skipped blocks are not shown ({escape(run.faults[layout.SPACE])})."
        )
    caption += " Data flow from left to right, stage by stage."
    if run.table is not None:
        caption += f" On the right: latency per stage, {escape(run.source)}."
    return figure(draw_architecture(run.blocks, specs), caption)


def _own_network(run: Run, model: OwnModel) -> str:
    """What a search made of a user's own model, part by part."""
    rows = []
    for block in run.blocks:
        for number, op in enumerate(block.ops):
            own = op.own
            if own is None:
                continue
            made = ", ".join(map(str, own.changes)) or "as it is"
            params, ms = f"{own.params:,}", f"{block.ms[number]:.4g}" if block.ms else ""
            if block.skipped:
                made, params = "skipped", ""
            rows.append(
                f"<tr><td>{escape(own.layer or 'the rest')}</td><td>{escape(made)}</td>"
                f'<td class="n">{params}</td><td class="n">{ms}</td></tr>'
            )
    head = (
        '<tr><th>part</th><th>choice</th><th class="n">parameters</th>'
        '<th class="n">latency [ms]</th></tr>'
    )
    source = f" Latency {escape(run.source)}." if run.table is not None else ""
    return f"<table>{head}{''.join(rows)}</table>" + note_line(
        f"The network is made from your own model ({escape(model.source)}) by these choices: h is "
        "a number of hidden units, k a kernel size in pixels. No file of the run holds the code "
        f"of the model, so it has to be given again to build the network.{source}"
    )


def _latency(run: Run) -> str:
    if run.architecture is None or run.table is None:
        return _why_not(run, layout.ARCHITECTURE, layout.TABLE)
    total_ms, parts = run.table.predict_ms(run.architecture), latency_parts(run)
    whole_ms = max(total_ms, run.budget_ms or 0.0)
    bar = "".join(
        f'<i style="width:{100 * ms / whole_ms:.3f}%;background:{colour}"></i>'
        for (_, colour), ms in parts.items()
    )
    rows = "".join(
        f'<tr><td><i class="key" style="background:{colour}"></i>{escape(part)}</td><td class="n">'
        f'{fixed_ms(ms, total_ms)}</td><td class="n">{percent(ms / total_ms)}</td></tr>'
        for (part, colour), ms in parts.items()
    )
    head = '<tr><th>part</th><th class="n">latency [ms]</th><th class="n">share</th></tr>'
    total = f'<td>predicted</td><td class="n">{fixed_ms(total_ms, total_ms)}</td><td></td>'
    return (
        f'<div class="stack">{bar}</div><table>{head}{rows}<tr class="sum">{total}</tr></table>'
        + note_line(f"{_about_bar(run, total_ms)}Source: {escape(run.source)}.")
        + figure(plot_blocks(run.blocks), f"Source: {escape(run.source)}.")
    )


def _about_bar(run: Run, total_ms: float) -> str:
    text = ""
    if run.budget_ms is not None and run.budget_ms > total_ms:
        unused = format_ms(run.budget_ms - total_ms)
        text += f"The length of the bar is the budget; {unused} of it are unused. "
    recorded_ms = run.derived.predicted_ms if run.derived else None
    if recorded_ms is not None and not math.isclose(recorded_ms, total_ms, rel_tol=1e-3):
        text += (
            f"{layout.RESULT} records a prediction of {format_ms(recorded_ms)}: it does not match "
            f"{layout.TABLE}. "
        )
    return text


def _training(run: Run) -> str:
    note = ""
    if run.dropped_lines:
        note = note_line(
            f"Number of invalid lines in metrics.jsonl, which were skipped: {run.dropped_lines}. "
            "A run that is killed while writing leaves one."
        )
    if not run.epochs:
        return _why_not(run, layout.METRICS) + note
    seen = {epoch.phase for epoch in run.epochs}
    key = " ".join(
        f'<span class="phase" style="background:{colour}">{name}</span>'
        for phase, (name, colour) in PHASES.items()
        if phase in seen
    )
    figures = plot_curves(run.epochs, run.budget_ms, run.chance)
    drawn = "".join(f"<figure>{figure}</figure>" for figure in figures)
    weights = run.config.get("weights")
    if isinstance(weights, dict) and weights.get("label_smoothing"):
        key += " The loss on training images includes label smoothing."
    if "train" not in seen:
        key += (
            " Epochs are numbered through all phases. Before fine-tuning, loss and accuracy are "
            "those of networks sampled from the supernet. The held-out half of the training "
            "images trains the gates. The expected latency is the mean under the gates' "
            f"probabilities, predicted from the table: {escape(run.source)}."
        )
    return f'{note_line(key)}{note}<div class="grid">{drawn}</div>'


def _inspection(run: Run) -> dict[str, str]:
    """The section about inspections; empty for a run without any."""
    return {"Inside the layers": inspection_section(run.records)} if run.records else {}


def _pretrained(run: Run) -> dict[str, str]:
    """The section about the network that a search started from; empty without one."""
    note = run.pretrained
    if note is None:
        fault = layout.PRETRAINED in run.faults
        return {"Pre-trained weights": _why_not(run, layout.PRETRAINED)} if fault else {}
    names = ("part", "used", "sliced", "dropped", "new")
    head = "".join(f"<th>{name}</th>" for name in names)
    rows = "".join(
        "<tr>" + "".join(f"<td>{escape(getattr(part, name))}</td>" for name in names) + "</tr>"
        for part in note.parts
    )
    text = f"Started from {escape(note.source)} ({escape(note.family)}, digest {note.digest}). "
    if note.deviations:
        text += f"Not embedded exactly: {escape('; '.join(note.deviations))}. "
    if note.max_difference is not None:
        text += f"Before any step the largest sub-network {escape(computed_alike(note))}. "
    text += "It is the teacher too." if note.is_teacher else "It is not the teacher."
    table = scrollable(f"<table><tr>{head}</tr>{rows}</table>", "table")
    return {"Pre-trained weights": table + note_line(text)}


def _fronts(run: Run) -> str:
    if run.fronts is None and run.scores is None:
        return _why_not(run, layout.GATES)
    if run.fronts is None:
        written = "<code>quadranas pareto RUN --device DEVICE</code> writes it."
        return _why_not(run, layout.PARETO) + note_line(written)
    drawn = "".join(_front(run, run.fronts, device) for device in run.fronts.devices)
    losses = _losses(run.fronts)
    return (
        drawn
        + note_line(
            f"{len(run.fronts.networks)} networks that the gates prefer for budgets over the "
            "reachable range. Accuracy: on training images that did not train the weights, with "
            "the weights of the supernet; a trained network reaches more. Another network or "
            "device: <code>quadranas derive</code>, <code>quadranas pareto</code>."
        )
        + losses
    )


def _front(run: Run, fronts: Fronts, device: DeviceFront) -> str:
    low, high = format_ms(device.min_ms), format_ms(device.max_ms)
    is_main = device.device == run.device
    budgets = (
        {run.device: run.budget_ms}
        if run.derived is None
        else {one.device: one.budget_ms for one in run.derived.latencies}
    )
    others = [
        (n.latencies_ms[device.device], n.accuracy)
        for n in fronts.networks
        if device.device in n.latencies_ms
    ]
    return figure(
        plot_front(
            device.device,
            fronts.points(device),
            others,
            run.chosen if is_main else None,
            budgets.get(device.device),
        ),
        f"Device {escape(device.device)}; its reachable range is {low} to {high}. Source of "
        f"latencies: {escape(device.table)}.",
    )


def _losses(fronts: Fronts) -> str:
    """The table of losses between devices; empty for a single device."""
    if not fronts.carried:
        return ""
    names = ("found for", "carried to", "budget", "excess", "own accuracy", "carried", "loss")
    head = "".join(f"<th>{name}</th>" for name in names)
    rows = "".join(
        f"<tr><td>{escape(one.source)}</td><td>{escape(one.target)}</td>"
        f'<td class="n">{format_ms(one.budget_ms)}</td>'
        f'<td class="n">{_share(one.excess)}</td><td class="n">{percent(one.own_accuracy)}</td>'
        f'<td class="n">{_share(one.accuracy)}</td><td class="n">{_share(one.loss)}</td></tr>'
        for one in fronts.carried
    )
    return scrollable(f"<table><tr>{head}</tr>{rows}</table>", "table") + note_line(
        "Excess: by how much the network found for the other device at the same relative "
        "budget exceeds the budget here. Carried: the best network found for the other "
        "device, at the same relative budget or a lower one, that keeps the budget here."
    )


def _share(share: float | None) -> str:
    return "none" if share is None else percent(share)


COLUMNS = {
    "block": "",
    "latency [ms]": ' class="n"',
    "kernel": "",
    "expansion": "",
    "channels": ' class="n"',
    "pixels": ' class="n"',
    "probabilities": "",
}


def _block_table(run: Run) -> str:
    if not run.blocks:
        return _why_not(run, layout.ARCHITECTURE)
    head = "".join(f"<th{more}>{name}</th>" for name, more in COLUMNS.items())
    rows = "".join(_row(run, block) for block in run.blocks)
    why = "" if run.scores else f" No probabilities: {escape(run.faults[layout.GATES])}."
    return scrollable(f'<table class="blocks"><tr>{head}</tr>{rows}</table>', "table") + note_line(
        "Bars: probability of each candidate under the gates (dark: the chosen one). Keep: "
        "probability that the block is kept. Source of latencies: "
        f"{escape(run.source)}.{why}"
    )


def _row(run: Run, block: BlockView) -> str:
    first, last = block.ops[0], block.ops[-1]
    kernels = [text for op in block.ops for text in op_label(op, expansion=False)]
    expansions = [text for op in block.ops for text in op_label(op, kernel=False)]
    cells = (
        f"<code>{escape(block.name)}</code>",
        fixed_ms(sum(block.ms), run.predicted_ms or 0.0) if block.ms else "",
        "skipped" if block.skipped else "" if last.is_head else " ".join(kernels),
        "" if block.skipped else " ".join(expansions),
        _change(first.in_channels, last.out_channels),
        _change(first.resolution, last.out_resolution),
        _gates(run, block),
    )
    filled = "".join(
        f"<td{more}>{cell}</td>" for cell, more in zip(cells, COLUMNS.values(), strict=True)
    )
    return f'<tr class="skipped">{filled}</tr>' if block.skipped else f"<tr>{filled}</tr>"


def _change(before: int, after: int) -> str:
    return str(after) if before == after else f"{before} → {after}"


def _gates(run: Run, block: BlockView) -> str:
    if run.scores is None or run.space is None or block.name not in run.scores.blocks:
        return ""
    scores = run.scores.blocks[block.name]
    slots: tuple[Slot, ...] = next(b.slots for b in run.space.blocks if b.name == block.name)
    drawn = ""
    for slot, op, logs in zip(slots, block.ops, scores.slots, strict=True):
        chosen = None if block.skipped else slot.candidates.index(op)
        drawn += draw_gate(slot.candidates, [math.exp(min(log, 0.0)) for log in logs], chosen)
    if scores.skip is not None:
        drawn += f"<span>keep {percent(math.exp(min(scores.keep, 0.0)), 0)}</span>"
    return f'<div class="gates">{drawn}</div>'


def _provenance(run: Run) -> str:
    searched = run.result if isinstance(run.result, SearchResult) else None
    versions = searched.versions if searched else {}
    rows: dict[str, Any] = {
        "seed": "not recorded" if run.seed is None else run.seed,
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items())
        or "not recorded",
        "notes": "; ".join(run.result.notes) if run.result else "",
    }
    if run.table is not None:
        header = run.table.header
        rows["latency table"] = header.summary()
        rows["fitted to"] = header.fitted_to
        rows["statistic"] = header.statistic
        rows["command"] = f"{header.command} (quadranas {header.quadranas}, {header.date})"
        rows["commit"] = header.commit
    for one in run.derived.also if run.derived else ():
        rows[f"latency table of {escape(one.device)}"] = one.table.summary
    lines = "".join(
        f"<dt>{name}</dt><dd>{escape(str(value))}</dd>"
        for name, value in rows.items()
        if value != ""
    )
    return f"<dl>{lines}</dl>"


def _configuration(run: Run) -> str:
    fault = _why_not(run, layout.CONFIG) if layout.CONFIG in run.faults else ""
    if run.config_text is None:
        return fault
    text = f'<pre tabindex="0">{escape(run.config_text)}</pre>'
    return f"{fault}<details><summary>{layout.CONFIG}</summary>{text}</details>"
