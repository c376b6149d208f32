"""Networks by name: reference models, published architectures, files and run folders."""

import shlex
from pathlib import Path

from quadranas.errors import QuadranasError, unknown
from quadranas.files import shipped
from quadranas.space.architecture import ARCHITECTURE_FILE, Architecture, load_architecture
from quadranas.space.reference import REFERENCE_MODELS, reference_architecture


def published_architectures() -> dict[str, Path]:
    """The architecture files that ship beside the spaces, by name."""
    return {path.stem: path for path in sorted(shipped("search_spaces").glob("*/*.json"))}


def find_architecture(name: str) -> Architecture:
    """An architecture by a file's or run folder's path, or a reference or published model's name.

    Raises:
        QuadranasError: unknown (nearest suggested), or a fault in the file.
    """
    if name in REFERENCE_MODELS:
        return reference_architecture(name)
    published = published_architectures()
    if name in published:
        return load_architecture(published[name])
    path = Path(name)
    if path.is_dir():
        inside = path / ARCHITECTURE_FILE
        if not inside.is_file():
            folder = shlex.quote(name)
            raise QuadranasError(
                f"{path} holds no {ARCHITECTURE_FILE}",
                f"If it is an unfinished run: quadranas search --resume --output {folder}",
            )
        return load_architecture(inside)
    if path.suffix == ".json" or path.is_file():
        return load_architecture(path)
    raise unknown(
        "model", name, (*REFERENCE_MODELS, *published), "Name one of these, a .json file or a run."
    )
