"""Networks by name: reference models, published architectures, files and run folders."""

import shlex
from pathlib import Path

from quadranas.errors import QuadranasError, unknown
from quadranas.files import shipped
from quadranas.space.architecture import ARCHITECTURE_FILE, Architecture, load_architecture
from quadranas.space.reference import REFERENCE_MODELS, reference_architecture

_WEIGHTS = (
    "a file of weights",
    "Name the network that the weights are for, and add: --weights {file}",
)
OTHER_FILES = {
    ".onnx": (
        "an ONNX file",
        "Predict its latency, MACs and parameters with: quadranas predict {file} --device cpu",
    ),
    ".py": (
        "Python source",
        "From Python, quadranas.memory.profile_memory(network, (1, 3, 224, 224)) counts the "
        "parameters, MACs and memory of any torch.nn.Module; for its latency, export it to ONNX "
        "and use: quadranas predict FILE.onnx --device cpu",
    ),
    **dict.fromkeys((".safetensors", ".pt", ".pth", ".ckpt"), _WEIGHTS),
}
"""Kinds of files that are easily taken for a model: what they are, and what to do with them."""


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
    if path.suffix in OTHER_FILES:
        kind, hint = OTHER_FILES[path.suffix]
        raise QuadranasError(
            f"model {name!r} is {kind}, not an architecture file or a run",
            hint.format(file=shlex.quote(name)),
        )
    if path.suffix == ".json" or path.is_file():
        return load_architecture(path)
    raise unknown(
        "model", name, (*REFERENCE_MODELS, *published), "Name one of these, a .json file or a run."
    )
