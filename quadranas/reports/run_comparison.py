"""The page about several runs side by side.

Like a report it depends on the files in the run folders alone, and names what they lack.
"""

from collections.abc import Mapping
from html import escape

from matplotlib.axes import Axes

from quadranas.errors import printable
from quadranas.latency.budget import format_ms
from quadranas.reports.figures import draw_architecture, latency_parts, values_of
from quadranas.reports.page import COLOURS, figure, html_page, note, plot, table
from quadranas.reports.run_cards import percent, short_ms, size_cards
from quadranas.reports.run_view import Run, fixed_ms
from quadranas.runs import layout


def comparison_page(runs: Mapping[str, Run]) -> str:
    """The HTML of the page.

    Args:
        runs: the runs by a name for each.
    """
    sections = {
        "Runs": _overview(runs),
        **_fronts(runs),
        "Latency by part": _parts(runs),
        **_accuracy(runs),
        "Architectures": _architectures(runs),
    }
    return html_page(f"{len(runs)} runs side by side", sections)


def _key(number: int) -> str:
    return f'<i class="key" style="background:{COLOURS[number % len(COLOURS)]}"></i>'


def _named(runs: Mapping[str, Run]) -> list[str]:
    """The names of the runs with their colours, as markup."""
    return [f"{_key(number)}{escape(name)}" for number, name in enumerate(runs)]


def _overview(runs: Mapping[str, Run]) -> str:
    head = [
        *("run", "space", "device", "budget", "predicted", "measured", "test accuracy"),
        *("parameters", "MACs", "seed"),
    ]
    rows = [[name, *_facts(run)] for name, run in zip(_named(runs), runs.values(), strict=True)]
    missing = "".join(
        note(f"{escape(name)} is not finished: {escape(run.faults[layout.RESULT])}.")
        for name, run in runs.items()
        if run.result is None
    )
    return table(head, rows, range(3, 10)) + missing


def _facts(run: Run) -> list[str]:
    """The row of a run without its name."""
    measured_ms = run.derived.measured_ms if run.derived else None
    accuracy = run.result.accuracy if run.result else None
    sizes = [value for _, value, _ in size_cards(run)] or ["", ""]
    return [
        escape(run.name),
        escape(run.device or ""),
        "" if run.budget_ms is None else short_ms(run.budget_ms),
        "" if run.predicted_ms is None else format_ms(run.predicted_ms),
        "" if measured_ms is None else format_ms(measured_ms),
        "" if accuracy is None else percent(accuracy),
        *sizes,
        "" if run.seed is None else escape(str(run.seed)),
    ]


def _fronts(runs: Mapping[str, Run]) -> dict[str, str]:
    """Per device the fronts of all runs, and the networks that they chose."""
    devices = dict.fromkeys(
        device.device for run in runs.values() if run.fronts for device in run.fronts.devices
    )
    drawn = "".join(_front(runs, device) for device in devices)
    caption = note(
        "Lines: the fronts, with the weights of the supernets on training images that did not "
        "train them. Stars: the networks that the runs chose, on the same images. Latencies are "
        "predictions of the tables in the run folders."
    )
    return {"Accuracy against latency": caption + drawn} if drawn else {}


def _front(runs: Mapping[str, Run], device: str) -> str:
    def draw(axes: Axes) -> None:
        for number, (name, run) in enumerate(runs.items()):
            colour = COLOURS[number % len(COLOURS)]
            for one in run.fronts.devices if run.fronts else ():
                if run.fronts is not None and one.device == device:
                    xs, ys = zip(*run.fronts.points(one), strict=True)
                    shares = [100 * y for y in ys]
                    label = printable(name)
                    axes.plot(xs, shares, color=colour, marker="o", ms=4, lw=1, label=label)
            if run.device == device and run.chosen is not None:
                ms, accuracy = run.chosen
                star = {"marker": "*", "ms": 15, "ls": "none", "mec": "white"}
                axes.plot(
                    *([ms], [100 * accuracy]),
                    color=colour,
                    label=f"{printable(name)}: chosen",
                    **star,  # type: ignore[arg-type]
                )
        axes.set_xlabel(f"predicted latency on {printable(device)} [ms]")
        axes.set_ylabel("accuracy with the supernet's weights [%]")
        axes.grid(color="#e4e7eb", lw=0.6)
        axes.legend(loc="best")

    title = f"Accuracy against latency on {device}"
    return figure(plot(f"fronts-{device}", title, draw, (9.6, 3.6)), f"Device {escape(device)}.")


def _parts(runs: Mapping[str, Run]) -> str:
    """A bar and a column of milliseconds per run."""
    found = {name: latency_parts(run) for name, run in runs.items()}
    kinds = list(dict.fromkeys(part for parts in found.values() for part in parts))
    longest = max((sum(parts.values()) for parts in found.values()), default=0.0)
    if not longest:
        return note("No run has a latency table that covers its network.")
    head = ["run", *(f'<i class="key" style="background:{c}"></i>{escape(p)}' for p, c in kinds)]
    rows = []
    for name, parts in zip(_named(runs), found.values(), strict=True):
        total = sum(parts.values())
        cells = [fixed_ms(parts[kind], total) if kind in parts else "" for kind in kinds]
        rows.append([name, *cells, fixed_ms(total, total) if total else ""])
    bars = "".join(
        f"<h3>{escape(name)}</h3>{_bar(parts, longest)}" for name, parts in found.items() if parts
    )
    sources = "; ".join(
        f"{escape(name)}: {escape(run.source)}" for name, run in runs.items() if run.table
    )
    columns = range(1, len(kinds) + 2)
    return f"{bars}{table([*head, 'predicted [ms]'], rows, columns)}{note(f'Sources: {sources}.')}"


def _bar(parts: Mapping[tuple[str, str], float], longest: float) -> str:
    pieces = "".join(
        f'<i style="width:{100 * ms / longest:.3f}%;background:{colour}"></i>'
        for (_, colour), ms in parts.items()
    )
    return f'<div class="stack">{pieces}</div>'


def _accuracy(runs: Mapping[str, Run]) -> dict[str, str]:
    """The accuracy over the epochs of every run; empty without any."""
    curves = {name: values_of(run.epochs, "accuracy", 100) for name, run in runs.items()}
    if not any(curves.values()):
        return {}

    def draw(axes: Axes) -> None:
        for number, (name, points) in enumerate(curves.items()):
            if points:
                xs, ys = zip(*points, strict=True)
                colour = COLOURS[number % len(COLOURS)]
                axes.plot(xs, ys, color=colour, lw=1.4, label=printable(name))
        axes.set(xlabel="epoch", ylabel="accuracy on training images [%]")
        axes.legend(loc="best")

    caption = "Epochs are numbered through all phases; before fine-tuning, of sampled networks."
    return {"Training": figure(plot("accuracy", "Accuracy", draw, (9.6, 3.2)), caption)}


def _architectures(runs: Mapping[str, Run]) -> str:
    """The networks, with colours and heights that mean the same for all."""
    specs = [
        spec
        for run in runs.values()
        if run.architecture is not None
        for spec in (run.space.specs() if run.space else run.architecture.ops())
    ]
    drawn = []
    for name, run in runs.items():
        title = f"<h3>{escape(name)}</h3>"
        if run.architecture is None:
            fault = escape(run.faults[layout.ARCHITECTURE])
            drawn.append(f"{title}{note(f'Not shown: {fault}.')}")
            continue
        kept = sum(block.is_searched and not block.skipped for block in run.blocks)
        caption = f"{kept} blocks besides stem, downsampling and head."
        drawn.append(title + figure(draw_architecture(run.blocks, specs), caption))
    return "".join(drawn)
