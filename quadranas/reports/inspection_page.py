"""The page of an inspection: terms of every layer on an image, distributions over training."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from quadranas.inspection.records import LayerTerms, StepRecord
from quadranas.reports.inspection_figures import inspection_section, plot_layer, plot_maps
from quadranas.reports.page import figure, html_page, note, scrollable

if TYPE_CHECKING:
    from quadranas.inspection.terms import TermView

Terms = Mapping[str, "tuple[TermView | None, TermView | None]"]
"""First-order and second-order term of every layer."""


def inspection_page(
    title: str,
    pixels: NDArray[np.uint8],
    terms: Terms,
    layers: Sequence[LayerTerms],
    records: tuple[StepRecord, ...],
) -> str:
    """The HTML of the page.

    Args:
        pixels: the image, (R, R, 3).
        layers: energies of the terms of every layer.
        records: the records of the training; may be empty.
    """
    sections = {
        "Energy of the terms": _energies(layers),
        "Terms on the image": _maps(pixels, terms),
        "Over training": inspection_section(records) + _distributions(records),
    }
    return html_page(title, sections)


def _energies(layers: Sequence[LayerTerms]) -> str:
    head = (
        '<tr><th>layer</th><th>form</th><th class="n">first order</th>'
        '<th class="n">second order</th><th class="n">share</th><th></th></tr>'
    )
    rows = ""
    for layer in layers:
        numbers = [layer.first_order_energy, layer.second_order_energy]
        cells = "".join(
            f'<td class="n">{"none" if value is None else f"{value:.3g}"}</td>'
            for value in numbers
        )
        share = layer.second_order_share
        shown = "" if share is None else f"{100 * share:.1f} %"
        bar = f'<div class="stack bar"><i style="width:{100 * (share or 0):.2f}%"></i></div>'
        rows += (
            f"<tr><td><code>{escape(layer.layer)}</code></td><td>{escape(layer.form)}</td>"
            f'{cells}<td class="n">{shown}</td><td>{bar}</td></tr>'
        )
    return scrollable(f"<table>{head}{rows}</table>", "table") + note(
        "Energy: mean square of a term over the layer's output for this image. Share: energy of "
        "the second-order term over that of both terms."
    )


def _maps(pixels: np.ndarray, terms: Terms) -> str:
    drawn = []
    for name, pair in terms.items():
        images = [
            None if term is None or term.image is None else term.image.numpy() for term in pair
        ]
        if any(image is not None for image in images):
            titles = ("first order", "second order")
            drawing = plot_maps(name, pixels, dict(zip(titles, images, strict=True)))
            drawn.append(figure(drawing, f"<code>{escape(name)}</code>"))
    caption = "Mean absolute value of each term over the channels. Every map has its own scale."
    return note(caption) + f'<div class="pairs">{"".join(drawn)}</div>'


def _distributions(records: tuple[StepRecord, ...]) -> str:
    names = dict.fromkeys(name for record in records for name in record.layers)
    if not names:
        return ""
    drawn = "".join(
        f"<details><summary><code>{escape(name)}</code></summary>"
        f"{plot_layer(name, records)}</details>"
        for name in names
    )
    caption = (
        "Per layer: medians, with bands from 5 to 95 %, for activations also from 25 to 75 % and "
        "1 to 99 %. A red cross marks a step with values that are not finite."
    )
    return note(caption) + drawn
