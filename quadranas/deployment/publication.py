"""A folder for a model hub: model card with metadata, architecture, weights, and the bundle.

The metadata are the hub's: its licence, and the results of the evaluation as a `model-index`
(https://huggingface.co/docs/hub/model-cards).
"""

import re
import shutil
from pathlib import Path
from typing import Any

from quadranas.deployment.bundle import MANIFEST, Bundle, write_manifest
from quadranas.deployment.images import preprocessing_in
from quadranas.deployment.manifest import LatencyNote, Manifest
from quadranas.deployment.model_card import model_card
from quadranas.errors import QuadranasError, printable
from quadranas.files import dump_yaml, file_name, write_atomically
from quadranas.network.weights import digest_of, save_tensors
from quadranas.runs import layout
from quadranas.runs.hub_folder import HUB_CONFIG, HUB_WEIGHTS
from quadranas.runs.stored_network import StoredNetwork

HUB_CARD = "README.md"
HUB_BUNDLE = "bundle"
HUB_FILES = {HUB_CARD, HUB_CONFIG, HUB_WEIGHTS, layout.PREPROCESSING, HUB_BUNDLE}

LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]*")
TASK = "image-classification"
USAGE = f"""\
    import quadranas

    network = quadranas.from_pretrained("FOLDER")    # this folder; a torch.nn.Module

    quadranas run FOLDER/{HUB_BUNDLE} image.png          # the exported file in its runtime

The normalisation of the images is in `{layout.PREPROCESSING}` and below."""


def check_license(license: str) -> None:
    """Check that a licence is an identifier as hubs list them.

    Raises:
        QuadranasError: it is a sentence, a path or empty.
    """
    if not LICENSE.fullmatch(license):
        raise QuadranasError(
            f"the licence {license!r} is not an identifier; accepted: lower-case letters, digits, "
            "'.', '+' and '-'",
            "Name it as model hubs do, for example apache-2.0, mit, cc-by-nc-4.0 or other.",
        )


def check_hub_place(folder: Path, *, replace: bool) -> None:
    """Check that a folder for a hub can be written to a place.

    Args:
        replace: whether a folder that `quadranas publish` wrote may be replaced.

    Raises:
        QuadranasError: the place is a file, or holds something else.
    """
    hint = "Name another folder."
    try:
        if folder.exists() and not folder.is_dir():
            raise QuadranasError(f"{folder} is a file; the output is a folder", hint)
        found = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    except OSError as error:
        raise QuadranasError(f"cannot read {folder}: {error.strerror}", hint) from error
    if found - HUB_FILES:
        raise QuadranasError(
            f"{folder} holds files of another origin, which would be lost: "
            f"{min(found - HUB_FILES)}",
            hint,
        )
    if found and not replace:
        raise QuadranasError(
            f"{folder} exists already", "Add --force to replace it, or name another folder."
        )


def write_hub_folder(folder: Path, bundle: Bundle, stored: StoredNetwork, *, license: str) -> None:
    """Write the files of a hub into an empty folder; addresses of boards become examples.

    Args:
        stored: the network that the bundle was exported from.
        license: identifier of the licence.

    Raises:
        QuadranasError: the weights are not those of the bundle, or a file cannot be written.
    """
    manifest, network = bundle.manifest, stored.network()
    _check_weights(bundle, stored, digest_of(network.state_dict()))
    save_tensors(network.state_dict(), folder / HUB_WEIGHTS)
    manifest.architecture.save(folder / HUB_CONFIG)
    known = preprocessing_in(manifest)
    if known is not None:
        known.save(folder / layout.PREPROCESSING)
    write_atomically(folder / HUB_CARD, hub_card(manifest, license))
    (folder / HUB_BUNDLE).mkdir()
    for name in manifest.files:
        shutil.copyfile(bundle.folder / name, folder / HUB_BUNDLE / name)
    public = manifest.model_copy(update={"device": manifest.device.without_addresses()})
    write_manifest(folder / HUB_BUNDLE, public)


def _check_weights(bundle: Bundle, stored: StoredNetwork, digest: str) -> None:
    """Check that the evaluation in a bundle is that of a network's weights."""
    expected = bundle.manifest.weights_sha256
    if expected is None:
        raise QuadranasError(
            f"{bundle.folder / MANIFEST} does not record the weights that the file was made of; "
            "older versions of quadranas do not",
            "Export the network again.",
        )
    if digest != expected:
        raise QuadranasError(
            f"the weights in {stored.weights} are not those that {bundle.folder} was exported "
            f"from: their SHA-256 begins with {digest[:12]}, that in {MANIFEST} with "
            f"{expected[:12]}",
            "Name the network that was exported: --model RUN, or export it again.",
        )


def hub_card(manifest: Manifest, license: str) -> str:
    """The card of a model hub: metadata in YAML, then the model card."""
    return f"---\n{dump_yaml(_metadata(manifest, license))}---\n\n{model_card(manifest, USAGE)}"


def _metadata(manifest: Manifest, license: str) -> dict[str, Any]:
    metadata: dict[str, Any] = {
        "license": license,
        "library_name": "quadranas",
        "pipeline_tag": TASK,
        "tags": [TASK, "neural-architecture-search", "quadratic-neural-network", manifest.format],
    }
    if manifest.accuracy is not None:
        metadata["metrics"] = ["accuracy"]
        name = printable(manifest.name)
        metadata["model-index"] = [{"name": name, "results": [_evaluation(manifest)]}]
    return metadata


def _evaluation(manifest: Manifest) -> dict[str, Any]:
    """The evaluation as a result of a `model-index`; latencies in milliseconds."""
    accuracy, latency = manifest.accuracy, manifest.latency
    assert accuracy is not None
    images = printable(accuracy.images)
    metrics: list[dict[str, Any]] = [
        _metric("accuracy", "Top-1 accuracy in PyTorch", accuracy.pytorch),
        _metric("accuracy", f"Top-1 accuracy of {manifest.artefact}", accuracy.exported),
    ]
    for title, note in (("predicted", latency.predicted), ("measured", latency.measured)):
        if note is not None:
            metrics.append(_metric("latency", _latency_name(title, note), note.ms))
    return {
        "task": {"type": TASK, "name": "Image classification"},
        "dataset": {"type": file_name(accuracy.images), "name": images},
        "metrics": metrics,
    }


def _metric(kind: str, name: str, value: float) -> dict[str, Any]:
    return {"type": kind, "name": name, "value": round(value, 6)}


def _latency_name(title: str, note: LatencyNote) -> str:
    return f"Latency {title} in ms, {printable(note.device)}: {printable(note.source)}"
