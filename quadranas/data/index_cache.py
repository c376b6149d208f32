"""Indexes of large data sets, kept between runs so that a folder or a shard is listed once.

An index is a file in the user's cache folder. It records what it was made of, by which the reader
recognises changes; a damaged or foreign file counts as none. Nothing depends on the cache: without
it, the data are listed again.
"""

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from quadranas.errors import QuadranasError
from quadranas.files import file_name, write_atomically

CACHE_VARIABLE = "QUADRANAS_CACHE"
"""Environment variable with the folder of the cache; empty: nothing is kept."""

MIN_IMAGES = 20_000
"""Smallest number of images that are worth an index: listing fewer takes under half a second."""

FORMAT_VERSION = 1

SETTLED_NS = 2 * 10**9
"""Age of a change, in nanoseconds, from which another change has another time stamp: some file
systems count whole or even seconds."""

Arrays = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Index:
    """An index.

    Args:
        facts: what it was made of and small parts of its content, as plain data.
        arrays: large parts of its content, by name.
    """

    facts: dict[str, Any]
    arrays: Arrays


def cache_folder() -> Path | None:
    """The folder of the cache; None if nothing is to be kept."""
    given = os.environ.get(CACHE_VARIABLE)
    if given is not None:
        return Path(given) if given else None
    base = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA")
    with suppress(RuntimeError):  # without a home folder
        return (Path(base) if base else Path.home() / ".cache") / "quadranas"
    return None


def load_index(kind: str, path: Path) -> Index | None:
    """The index of a folder or file; None if there is none that can be read.

    Args:
        kind: what the index is about, such as `folder`.
    """
    from safetensors import safe_open

    place = _place(kind, path)
    if place is None or not place.is_file():
        return None
    # The library's errors have no common class.
    with suppress(Exception), safe_open(place, framework="numpy") as file:
        text = file.metadata()["facts"]
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if file.metadata()["digest"] == _digest(text, arrays):
            return Index(json.loads(text), arrays)
    return None


def save_index(kind: str, path: Path, index: Index) -> None:
    """Keep an index, if the cache can be written."""
    from safetensors.numpy import save

    place = _place(kind, path)
    if place is None:
        return
    text = json.dumps(index.facts)
    content = save(dict(index.arrays), {"facts": text, "digest": _digest(text, index.arrays)})
    with suppress(OSError, QuadranasError):
        place.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(place, content)


def _place(kind: str, path: Path) -> Path | None:
    folder = cache_folder()
    if folder is None:
        return None
    where = f"{FORMAT_VERSION}/{kind}/{path.resolve()}".encode("utf-8", "surrogateescape")
    digest = blake2b(where, digest_size=8).hexdigest()
    return folder / f"{file_name(path.resolve().name)[:40]}-{digest}.index"


def _digest(text: str, arrays: Arrays) -> str:
    digest = blake2b(text.encode(), digest_size=16)
    for name in sorted(arrays):
        digest.update(f"{name}/{arrays[name].dtype}".encode())
        digest.update(np.ascontiguousarray(arrays[name]).data)
    return digest.hexdigest()
