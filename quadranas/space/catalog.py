"""Networks by name: reference models, published architectures, files and run folders."""

import shlex
from pathlib import Path

from quadranas.errors import QuadranasError, unknown
from quadranas.files import shipped
from quadranas.space.architecture import ARCHITECTURE_FILE, Architecture, load_architecture
from quadranas.space.reference import REFERENCE_MODELS, reference_architecture


def published_architectures() -> dict[str, Path]:
    """The shipped architecture files by name."""
    return {path.stem: path for path in sorted(shipped("search_spaces").glob("*/*.json"))}


def find_architecture(name: str) -> Architecture:
    """Find an architecture by the path of a file or run folder, or by a model's name.

    Args:
        name: a path, a reference model (`REFERENCE_MODELS`) or a published architecture.

    Raises:
        QuadranasError: unknown name (the nearest is suggested), or an invalid file.
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
                f"{path} contains no {ARCHITECTURE_FILE}",
                f"If it is an unfinished run: quadranas search --resume --output {folder}",
            )
        return load_architecture(inside)
    if path.suffix == ".json" or path.is_file():
        return load_architecture(path)
    raise unknown(
        "model", name, (*REFERENCE_MODELS, *published), "Name one of these, a .json file or a run."
    )
