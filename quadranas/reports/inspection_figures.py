"""Figures of an inspection, as inline SVG: layers over the course of training.

Functions take plain data and return markup; the same data give the same bytes.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from quadranas.errors import printable
from quadranas.inspection.records import QUANTILES, Distribution, LayerRecord, StepRecord
from quadranas.reports.page import BLUE, ORANGE, RED, figure, note, plot_figure

COLOURS = {"a": BLUE, "b": ORANGE, "c": "#3d8f5f", "matrix": BLUE}
MAX_LABEL = 60
"""Number of characters of a layer's path in a figure, the last ones."""

BANDS = ((0.01, 0.99), (0.05, 0.95), (0.25, 0.75))
SHARED_BANDS = ((0.05, 0.95),)
"""Pairs of quantiles to draw: for one tensor in a panel, and for several."""


def inspection_section(records: Sequence[StepRecord]) -> str:
    """The section of a report on the inspection: an overview of all layers, and the alarms."""
    if not records:
        return note("Nothing was recorded. Train with <code>--inspect</code> to do so.")
    maps = [_over_training(records, *quantity) for quantity in QUANTITIES]
    alarms = [alarm for record in records for alarm in record.alarms]
    said = {(alarm.layer, alarm.part, alarm.kind): alarm.text for alarm in reversed(alarms)}
    lines = "".join(f"<li>{escape(text)}</li>" for text in reversed(said.values()))
    raised = f"<p>Alarms, at their first occurrence:</p><ul>{lines}</ul>" if lines else ""
    return (
        "".join(maps)
        + (raised or note("No gradient vanished or exploded, and all values were finite."))
    )  # fmt: skip


def _share(layer: LayerRecord) -> float:
    share = layer.second_order_share
    return math.nan if share is None else share


def _gradient_ratio(layer: LayerRecord) -> float:
    """Norm of the largest second-order gradient over that of the linear branch."""
    factors = [gradient.norm for gradient in layer.second_order_gradients().values()]
    linear = layer.gradients.get("c")
    return max(factors) / linear.norm if factors and linear and linear.norm else math.nan


QUANTITIES: tuple[tuple[str, str, Callable[[LayerRecord], float]], ...] = (
    (
        "Share of the second-order term",
        "Energy (mean square) of the second-order term over that of both terms.",
        _share,
    ),
    (
        "Second-order gradients",
        "Norm of the larger gradient of a factor over that of the linear branch.",
        _gradient_ratio,
    ),
)
"""For each figure: title, caption, and the quantity of a layer that it shows."""


def _over_training(
    records: Sequence[StepRecord],
    title: str,
    caption: str,
    number: Callable[[LayerRecord], float],
) -> str:
    """A quantity of all layers over training: one row per layer, on a logarithmic colour scale."""
    names = list(dict.fromkeys(name for record in records for name in record.layers))
    grid = np.array(
        [
            [number(r.layers[name]) if name in r.layers else math.nan for r in records]
            for name in names
        ]
    )
    shown = ~np.all(np.isnan(grid), axis=1)
    if not shown.any():
        return ""
    names = [name for name, is_shown in zip(names, shown, strict=True) if is_shown]
    powers = np.log10(np.maximum(grid[shown], 1e-12))

    def draw(whole: Figure) -> None:
        axes = whole.add_subplot()
        image = axes.imshow(powers, aspect="auto", cmap="viridis", interpolation="nearest")
        axes.set_yticks(range(len(names)), [printable(n)[-MAX_LABEL:] for n in names], fontsize=7)
        marks = np.unique(np.linspace(0, len(records) - 1, min(8, len(records))).round())
        axes.set_xticks(marks, [str(records[int(mark)].step) for mark in marks])
        axes.set_xlabel("step")
        whole.colorbar(image, ax=axes, label="power of ten", pad=0.01)

    size = (9.6, 1.2 + 0.17 * len(names))
    return figure(plot_figure(title.lower().replace(" ", "-"), title, draw, size), caption)


def plot_layer(name: str, records: Sequence[StepRecord]) -> str:
    """A layer's distributions over training: activations, weights and gradients."""
    seen = [(record.step, record.layers[name]) for record in records if name in record.layers]
    if not seen:
        return ""
    panels: dict[str, dict[str, list[tuple[int, Distribution]]]] = {
        "activations": {"": [(n, r.activation) for n, r in seen if r.activation is not None]}
    }
    for title in ("weights", "gradients"):
        found: dict[str, list[tuple[int, Distribution]]] = {}
        for step, record in seen:
            for part, distribution in sorted(getattr(record, title).items()):
                found.setdefault(part, []).append((step, distribution))
        panels[title] = found

    def draw(whole: Figure) -> None:
        all_axes = whole.subplots(1, len(panels), squeeze=False)[0]
        for axes, (title, lines) in zip(all_axes, panels.items(), strict=True):
            _draw_bands(axes, lines)
            axes.set(title=title, xlabel="step")

    return plot_figure(f"layer-{name}", f"Distributions of {name}", draw, (9.6, 2.3))


def _draw_bands(axes: Axes, lines: Mapping[str, Sequence[tuple[int, Distribution]]]) -> None:
    """Medians as lines inside bands of quantiles; a cross marks values that are not finite."""
    for part, points in lines.items():
        steps = [step for step, _ in points]
        colour = COLOURS.get(part, BLUE)
        at = {
            level: [d.quantiles[index] for _, d in points] for index, level in enumerate(QUANTILES)
        }
        for low, high in SHARED_BANDS if len(lines) > 1 else BANDS:
            axes.fill_between(steps, at[low], at[high], color=colour, alpha=0.14, lw=0)
        axes.plot(
            steps,
            at[0.5],
            color=colour,
            lw=1.3,
            marker=".",
            ms=3,
            label=printable(part)[-MAX_LABEL:],
        )
        broken = [(step, 0.0) for step, d in points if d.num_nonfinite]
        if broken:
            axes.plot(*zip(*broken, strict=True), "x", color=RED)
    if len(lines) > 1:
        axes.legend(ncols=len(lines), loc="upper left")
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))


def plot_maps(name: str, image: np.ndarray, maps: Mapping[str, np.ndarray | None]) -> str:
    """The image beside the maps of a layer's terms.

    Args:
        image: (H, W, 3), 0 to 255.
        maps: (H', W') by title; None for a term that the layer does not have.
    """

    def draw(whole: Figure) -> None:
        all_axes = whole.subplots(1, 1 + len(maps), squeeze=False)[0]
        all_axes[0].imshow(image)
        all_axes[0].set_title("image")
        for axes, (title, values) in zip(all_axes[1:], maps.items(), strict=True):
            axes.set_title(title)
            if values is None:
                axes.text(0.5, 0.5, "none", ha="center", va="center")
            else:
                shown = axes.imshow(values, cmap="magma", vmin=0, interpolation="nearest")
                whole.colorbar(shown, ax=axes, shrink=0.85)
        for axes in all_axes:
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set_visible(False)

    return plot_figure(f"maps-{name}", f"Terms of {name}", draw, (7.2, 2.3))
