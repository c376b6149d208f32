"""inspect: what the terms of a trained network's quadratic layers do, as a page.

The page is self-contained and a function of the run's files and the image.
"""

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import torch

from quadranas.data.dataset import Triple
from quadranas.data.folders import read_image
from quadranas.errors import QuadranasError
from quadranas.files import write_atomically
from quadranas.inspection.records import StepRecord, read_records
from quadranas.inspection.terms import TermView, view_terms
from quadranas.layers.replacement import quadratic_layers
from quadranas.reports.inspection_figures import inspection_section, plot_layer, plot_maps
from quadranas.reports.page import figure, html_page, note
from quadranas.runs.subject import Subject

Terms = Mapping[str, tuple[TermView | None, TermView | None]]


def inspect_run(subject: Subject, image: Path, output: Path) -> dict[str, Any]:
    """Write the page.

    Args:
        image: any that Pillow reads; it is prepared as the run prepared its own.
        output: the page; a file there is replaced.

    Returns: model, image, page, and layers: for each its form, the energy (mean square) of its
    terms on the image, none for a term that it has not, and the second-order one's share.

    Raises:
        QuadranasError: no trained weights or preprocessing, no quadratic layer, or an image that
            cannot be read.
    """
    subject.require_weights()
    if subject.preprocessing is None:
        raise QuadranasError(
            f"{subject.architecture.name} comes without preprocessing.json, so that nobody knows "
            "how its images are prepared",
            "Name the run folder that it was trained in.",
        )
    wanted = subject.preprocessing
    pixels = read_image(image, wanted.resolution, "Name an image file with --image.")
    network = subject.network()
    terms = view_terms(network, _prepared(pixels, wanted.mean, wanted.std))
    forms = {name: layer.form for name, layer in quadratic_layers(network).items()}
    layers = [_layer(name, forms[name], *pair) for name, pair in terms.items()]
    records = read_records(subject.folder) if subject.folder else ()
    sections = {
        "Energy of the terms": _energies(layers),
        "Terms on the image": _maps(pixels, terms),
        "Over training": inspection_section(records) + _distributions(records),
    }
    name = subject.folder.name if subject.folder else subject.architecture.name
    page = html_page(f"{name} on {image.name}", sections)
    # A file's name can hold half of a surrogate pair, which UTF-8 cannot.
    write_atomically(output, page.encode("utf-8", "replace"))
    return {
        "model": subject.architecture.name,
        "image": str(image),
        "page": str(output),
        "layers": layers,
    }


def _prepared(pixels: np.ndarray, mean: Triple, std: Triple) -> torch.Tensor:
    """(1, 3, R, R), normalised."""
    scaled = (pixels / 255 - np.array(mean)) / np.array(std)
    return torch.from_numpy(scaled.astype(np.float32)).permute(2, 0, 1)[None]


def _layer(
    name: str, form: str, first: TermView | None, second: TermView | None
) -> dict[str, Any]:
    energies = [None if term is None else term.energy for term in (first, second)]
    share = None
    if energies[0] is not None and energies[1] is not None:
        total = energies[0] + energies[1]
        share = energies[1] / total if total else 0.0
    return {
        "layer": name,
        "form": form,
        "first_order_energy": energies[0],
        "second_order_energy": energies[1],
        "second_order_share": share,
    }


def _energies(layers: list[dict[str, Any]]) -> str:
    head = (
        '<tr><th>layer</th><th>form</th><th class="n">first order</th>'
        '<th class="n">second order</th><th class="n">share</th><th></th></tr>'
    )
    rows = ""
    for layer in layers:
        numbers = [layer["first_order_energy"], layer["second_order_energy"]]
        cells = "".join(
            f'<td class="n">{"none" if value is None else f"{value:.3g}"}</td>'
            for value in numbers
        )
        share = layer["second_order_share"]
        shown = "" if share is None else f"{100 * share:.1f} %"
        bar = f'<div class="stack bar"><i style="width:{100 * (share or 0):.2f}%"></i></div>'
        rows += (
            f"<tr><td><code>{escape(layer['layer'])}</code></td><td>{escape(layer['form'])}</td>"
            f'{cells}<td class="n">{shown}</td><td>{bar}</td></tr>'
        )
    return f'<div class="scroll"><table>{head}{rows}</table></div>' + note(
        "Energy: mean square of a term over the layer's output for this image. Share: the "
        "second-order term's of both."
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
    caption = (
        "Mean absolute value of each term over the channels; every map has a scale of its own."
    )
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
        "1 to 99 %. A red cross: not all values were finite."
    )
    return note(caption) + drawn
