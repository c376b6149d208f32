"""inspect: what the terms of a trained network's quadratic layers compute, as an HTML page.

The page is self-contained and depends only on the run's files and the image.
"""

from pathlib import Path

from quadranas.data.decoding import read_image
from quadranas.data.preprocessing import Preprocessing
from quadranas.errors import QuadranasError
from quadranas.inspection.records import LayerTerms, energy_share, read_records
from quadranas.inspection.terms import TermView, view_terms
from quadranas.layers.replacement import quadratic_layers
from quadranas.reports.inspection_page import inspection_page
from quadranas.reports.page import write_page
from quadranas.runs import layout
from quadranas.runs.stored_network import Model, StoredNetwork, open_network
from quadranas.validation import CommandResult


class InspectResult(CommandResult):
    """The terms of a network's quadratic layers on one image.

    Args:
        model: the name of the network.
        image: the image file.
        page: the HTML page that was written.
        layers: the energy of the terms, layer by layer.
    """

    model: str
    image: Path
    page: Path
    layers: tuple[LayerTerms, ...]


def inspect(
    run: Model,
    *,
    image: str | Path,
    output: str | Path | None = None,
    weights: str | Path | None = None,
) -> InspectResult:
    """Write a page that shows the terms of a trained network's quadratic layers on an image.

    Args:
        run: the folder of a trained network.
        image: any image that Pillow reads; it is preprocessed as in the run.
        output: the page to write; an existing file is replaced. Default: `inspection.html` in
            the run folder.
        weights: a safetensors file to use instead of the run's own weights.

    Raises:
        QuadranasError: no trained weights or preprocessing, no quadratic layer, or an image that
            cannot be read.
    """
    stored, image = open_network(run, weights), Path(image)
    stored.require_weights()
    preprocessing = _preprocessing(stored)
    pixels = read_image(image, preprocessing.resolution, "Name an image file with --image.")
    network = stored.network()
    terms = view_terms(network, preprocessing.tensor(pixels))
    forms = {name: layer.form for name, layer in quadratic_layers(network).items()}
    layers = tuple(_layer(name, forms[name], *pair) for name, pair in terms.items())
    records = read_records(stored.folder) if stored.folder else ()
    name = stored.folder.name if stored.folder else stored.architecture.name
    content = inspection_page(f"{name} on {image.name}", pixels, terms, layers, records)
    page = Path(output) if output is not None else _default_page(stored)
    write_page(page, content)
    return InspectResult(model=stored.architecture.name, image=image, page=page, layers=layers)


def _preprocessing(stored: StoredNetwork) -> Preprocessing:
    if stored.preprocessing is None:
        raise QuadranasError(
            f"{stored.architecture.name} has no {layout.PREPROCESSING}, so the preprocessing of "
            "its images is unknown",
            "Name the run folder that it was trained in.",
        )
    return stored.preprocessing


def _default_page(stored: StoredNetwork) -> Path:
    if stored.folder is None:
        raise QuadranasError("a network outside a run folder needs a page", "Add --output PAGE.")
    return stored.folder / layout.INSPECTION_PAGE


def _layer(name: str, form: str, first: TermView | None, second: TermView | None) -> LayerTerms:
    energies = [None if term is None else term.energy for term in (first, second)]
    return LayerTerms(
        layer=name,
        form=form,
        first_order_energy=energies[0],
        second_order_energy=energies[1],
        second_order_share=energy_share(*energies),
    )
