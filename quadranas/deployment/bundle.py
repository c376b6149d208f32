"""The bundle: a folder with a file for a runtime, and all that its user must know."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from quadranas.deployment.manifest import FORMAT_VERSION, Manifest
from quadranas.errors import QuadranasError
from quadranas.files import read_json, write_json
from quadranas.validation import refuse_newer, validate

MANIFEST = "manifest.json"
CARD = "model-card.md"
SCRIPT = "infer.py"


@dataclass(frozen=True)
class Bundle:
    """A bundle whose files are those that were exported."""

    folder: Path
    manifest: Manifest

    @property
    def artefact(self) -> Path:
        """The file for the runtime."""
        return self.folder / self.manifest.artefact


def checksums(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of a bundle but the manifest, for `Manifest.files`.

    Raises:
        QuadranasError: a file cannot be read.
    """
    names = sorted(path.name for path in folder.iterdir() if path.name != MANIFEST)
    return {name: _sha256(folder / name) for name in names}


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `manifest.json`, after all other files: without it a folder is no bundle.

    Raises:
        QuadranasError: it cannot be written.
    """
    write_json(folder / MANIFEST, manifest.model_dump(mode="json"))


def open_bundle(folder: Path) -> Bundle:
    """Read a bundle's manifest, and compare every file with its checksum.

    Raises:
        QuadranasError: not a bundle, one from a newer version, or a file is missing or is not the
            one that was exported.
    """
    manifest = read_manifest(folder)
    for name, expected in manifest.files.items():
        _check_file(folder / name, expected)
    return Bundle(folder, manifest)


def read_manifest(folder: Path) -> Manifest:
    """A bundle's manifest; its files are not looked at.

    Raises:
        QuadranasError: not a bundle, or one from a newer version.
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
            f"{folder} has no {MANIFEST}: it is no bundle, or its export was interrupted",
            "Write one with: quadranas export RUN --format onnx",
        )


def _check_file(path: Path, expected: str) -> None:
    if not path.is_file():
        raise QuadranasError(
            f"{path} is missing; {MANIFEST} lists it",
            "Copy the whole folder again, or export again.",
        )
    found = _sha256(path)
    if found != expected:
        raise QuadranasError(
            f"{path} is not the file that was exported: its SHA-256 begins with {found[:12]}, "
            f"that in {MANIFEST} with {expected[:12]}",
            "It is damaged or was edited. Copy the folder again, or export again.",
        )


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise QuadranasError(f"cannot read {path}: {error.strerror or error}") from error
