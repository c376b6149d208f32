"""The bundle: a folder with a model file and everything needed to use it."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from quadranas.deployment.inference_script import inference_script
from quadranas.deployment.manifest import FORMAT_VERSION, Manifest
from quadranas.deployment.model_card import model_card
from quadranas.errors import QuadranasError
from quadranas.files import read_json, refuse_links, write_atomically, write_json
from quadranas.latency.runtimes import file_formats, files_of
from quadranas.validation import refuse_newer, validate

MANIFEST = "manifest.json"
CARD = "model-card.md"
SCRIPT = "infer.py"


@dataclass(frozen=True)
class Bundle:
    """A bundle whose files match the checksums in its manifest."""

    folder: Path
    manifest: Manifest

    @property
    def artefact(self) -> Path:
        """The file for the runtime."""
        return self.folder / self.manifest.artefact


def check_place(output: Path, *, replace: bool) -> None:
    """Check that a bundle can be written to a folder.

    Args:
        replace: whether a bundle in the folder may be replaced.

    Raises:
        QuadranasError: the folder is a file, or holds something other than a bundle.
    """
    try:
        _check_content(output, replace)
    except OSError as error:
        raise QuadranasError(
            f"cannot read the output {output}: {error.strerror}", "Choose another --output."
        ) from error


def _check_content(output: Path, replace: bool) -> None:
    suffixes = {files_of(name).suffix for name in file_formats()}
    if output.is_file() or output.suffix in suffixes:
        raise QuadranasError(
            f"the output {output} is a file; a bundle is a folder", "Name a folder with --output."
        )
    if not output.is_dir() or not any(output.iterdir()):
        return
    if not (output / MANIFEST).is_file():
        raise QuadranasError(
            f"{output} exists and is not a bundle: it has no {MANIFEST}",
            "Choose another --output.",
        )
    if not replace:
        raise QuadranasError(
            f"{output} exists already", "Add --force to replace it, or choose another --output."
        )
    manifest = read_manifest(output)
    foreign = {path.name for path in output.iterdir()} - {MANIFEST, *manifest.files}
    if foreign:
        raise QuadranasError(
            f"{output} holds files besides its bundle, which would be lost: {min(foreign)}",
            "Move them elsewhere, or choose another --output.",
        )


def checksums(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of a bundle except the manifest, for `Manifest.files`.

    Raises:
        QuadranasError: a file cannot be read.
    """
    names = sorted(path.name for path in folder.iterdir() if path.name != MANIFEST)
    return {name: _sha256(folder / name) for name in names}


def write_papers(folder: Path, manifest: Manifest) -> None:
    """Complete a bundle whose model file is written: model card, script and manifest.

    Raises:
        QuadranasError: they cannot be written.
    """
    write_atomically(folder / CARD, model_card(manifest))
    write_atomically(folder / SCRIPT, inference_script(manifest.format))
    write_manifest(folder, manifest.model_copy(update={"files": checksums(folder)}))


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `manifest.json`, after all other files: a folder without it is not a bundle.

    Raises:
        QuadranasError: it cannot be written.
    """
    write_json(folder / MANIFEST, manifest.model_dump(mode="json"))


def open_bundle(folder: Path) -> Bundle:
    """Read a bundle's manifest and compare every file with its checksum.

    Raises:
        QuadranasError: not a bundle, or from a newer version; a file is missing, was changed, or
            is a link out of the folder.
    """
    manifest = read_manifest(folder)
    for name, expected in manifest.files.items():
        _check_file(folder / name, expected)
    return Bundle(folder, manifest)


def read_manifest(folder: Path) -> Manifest:
    """Read a bundle's manifest without checking its files.

    Raises:
        QuadranasError: not a bundle, or from a newer version.
    """
    path = folder / MANIFEST
    try:
        _check_folder(folder, path)
    except OSError as error:
        raise QuadranasError(f"cannot read {folder}: {error.strerror or error}") from error
    try:
        return _parse(path)
    except QuadranasError as error:
        hint = error.hint or "It is damaged or was edited. Copy the folder again, or export again."
        raise QuadranasError(error.message, hint) from error


def _parse(path: Path) -> Manifest:
    content = read_json(path, "manifest")
    refuse_newer(content, FORMAT_VERSION, path)
    return validate(Manifest, content, path)


def _check_folder(folder: Path, manifest: Path) -> None:
    if not folder.is_dir():
        raise QuadranasError(
            f"{folder} {'is a file' if folder.exists() else 'does not exist'}; expected a bundle",
            "Name the folder that quadranas export wrote.",
        )
    if not manifest.is_file():
        raise QuadranasError(
            f"{folder} has no {MANIFEST}: it is not a bundle, or its export was interrupted",
            "Write one with: quadranas export RUN --format onnx",
        )
    refuse_links(folder)


def _check_file(path: Path, expected: str) -> None:
    if not path.is_file():
        raise QuadranasError(
            f"{path} is missing; {MANIFEST} lists it",
            "Copy the whole folder again, or export again.",
        )
    found = _sha256(path)
    if found != expected:
        raise QuadranasError(
            f"{path} differs from the exported file: its SHA-256 begins with {found[:12]}, "
            f"that in {MANIFEST} with {expected[:12]}",
            "It is damaged or was edited. Copy the folder again, or export again.",
        )


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise QuadranasError(f"cannot read {path}: {error.strerror or error}") from error
