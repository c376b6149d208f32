"""inspect: what the terms of a trained network's quadratic layers do, as a page.

The page is self-contained and a function of the run's files and the image.
"""

from pathlib import Path
from typing import Any

from quadranas.data.decoding import read_image
from quadranas.errors import QuadranasError
from quadranas.files import write_atomically
from quadranas.inspection.records import read_records
from quadranas.inspection.terms import TermView, view_terms
from quadranas.layers.replacement import quadratic_layers
from quadranas.reports.inspection_page import inspection_page
from quadranas.runs.stored_network import StoredNetwork


def inspect_run(stored: StoredNetwork, image: Path, output: Path) -> dict[str, Any]:
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
    stored.require_weights()
    if stored.preprocessing is None:
        raise QuadranasError(
            f"{stored.architecture.name} comes without preprocessing.json, so that nobody knows "
            "how its images are prepared",
            "Name the run folder that it was trained in.",
        )
    wanted = stored.preprocessing
    pixels = read_image(image, wanted.resolution, "Name an image file with --image.")
    network = stored.network()
    terms = view_terms(network, wanted.tensor(pixels))
    forms = {name: layer.form for name, layer in quadratic_layers(network).items()}
    layers = [_layer(name, forms[name], *pair) for name, pair in terms.items()]
    records = read_records(stored.folder) if stored.folder else ()
    name = stored.folder.name if stored.folder else stored.architecture.name
    page = inspection_page(f"{name} on {image.name}", pixels, terms, layers, records)
    # A file's name can hold half of a surrogate pair, which UTF-8 cannot.
    write_atomically(output, page.encode("utf-8", "replace"))
    return {
        "model": stored.architecture.name,
        "image": str(image),
        "page": str(output),
        "layers": layers,
    }


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
