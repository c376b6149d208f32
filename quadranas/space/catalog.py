"""Networks by name: reference models, published architectures, files and run folders."""

from pathlib import Path

from quadranas.errors import QuadranasError, unknown
from quadranas.files import shipped
from quadranas.space.architecture import ARCHITECTURE_FILE, Architecture, load_architecture
from quadranas.space.reference import REFERENCE_MODELS, reference_architecture


def published_architectures() -> dict[str, Path]:
    """The shipped architecture files by name."""
    return {path.stem: path for path in sorted(shipped("search_spaces").glob("*/*.json"))}


def find_folder(name: str) -> Path | None:
    """The folder at a path; `None` if there is none, or if the path is the name of a model.

    Raises:
        QuadranasError: the path is not one that the file system accepts.
    """
    if name in REFERENCE_MODELS or name in published_architectures():
        return None
    path = Path(name)
    try:
        return path if path.is_dir() else None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise QuadranasError(f"cannot read model {name!r}: {reason}") from error


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
    folder, path = find_folder(name), Path(name)
    if folder is not None:
        return load_architecture(folder / ARCHITECTURE_FILE)
    if path.suffix == ".json" or path.is_file():
        return load_architecture(path)
    raise unknown(
        "model", name, (*REFERENCE_MODELS, *published), "Name one of these, a .json file or a run."
    )
