"""Files that contain many images each: which of them belong to which split.

The names follow the Hugging Face hub: a split is a word of the file name (`train-00000-of-00008`,
`imagenet-validation-0001`), or of the folder that the file lies in (`default/train/0000.parquet`).
"""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

from quadranas.data.class_folders import SPLITS, is_hidden
from quadranas.data.image_files import ImageFiles
from quadranas.data.source import LAYOUT
from quadranas.errors import QuadranasError

WORDS = {
    "train": ("train", "training"),
    "test": ("test", "testing", "eval", "evaluation"),
    "val": ("val", "valid", "validation", "dev"),
}
"""The words that name a split."""


@final
@dataclass(frozen=True)
class Shards:
    """Shards of a data set, by the split that their names contain.

    Args:
        path: the folder or the one shard, as it was given.
        by_split: the shards of every split, in alphabetical order; "" if the names contain none.
        listed: the images in some of the shards; the text names them in messages.
    """

    path: Path
    by_split: Mapping[str, Sequence[Path]]
    listed: Callable[[Sequence[Path], str], ImageFiles]

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits of the data; none if there is only one, from which a test is held out."""
        is_divided = "train" in self.by_split and len(self.by_split) > 1
        return tuple(name for name in SPLITS if name in self.by_split) if is_divided else ()

    def split(self, name: str) -> ImageFiles:
        """The images of one split."""
        return self._list(self.by_split[name], f"split {name} of {self.path}")

    def undivided(self) -> ImageFiles:
        """All images, from which a test split is held out."""
        if len(self.by_split) > 1:
            raise QuadranasError(
                f"--data {self.path} has shards of {', '.join(sorted(self.by_split))}, but none "
                "of train",
                LAYOUT,
            )
        return self.everything("--data")

    def everything(self, option: str) -> ImageFiles:
        """The images of all shards as one split."""
        shards = sorted(shard for part in self.by_split.values() for shard in part)
        return self._list(shards, f"{option} {self.path}")

    def _list(self, shards: Sequence[Path], where: str) -> ImageFiles:
        try:
            return self.listed(shards, where)
        except OSError as error:
            reason = error.strerror or error
            raise QuadranasError(f"cannot read {error.filename or where}: {reason}") from error


def find_shards(path: Path, suffix: str) -> dict[str, list[Path]]:
    """The shards below a folder by split, or a file as the only one.

    Args:
        suffix: the extension of shards, with its dot.

    Raises:
        QuadranasError: the names of some contain a split, but not of all.
        OSError: a folder cannot be read.
    """
    if path.is_file():
        return {"": [path]}
    found: dict[str, list[Path]] = {}
    for folder, folders, files in os.walk(path, onerror=_raise):
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        for name in sorted(files):
            if name.lower().endswith(suffix) and not is_hidden(name):
                shard = Path(folder) / name
                found.setdefault(split_of(shard.relative_to(path)), []).append(shard)
    if "" in found and len(found) > 1:
        named = ", ".join(name for name in SPLITS if name in found)
        raise QuadranasError(
            f"the split of {found[''][0]} is unknown: its name contains none of train, test and "
            f"val, as those of other shards do ({named})",
            "Rename it, such as to train-00000.tar, or move it elsewhere.",
        )
    return found


def split_of(shard: Path) -> str:
    """The split that a path contains, the name of the file first; empty without any."""
    for part in (shard.stem, *reversed(shard.parent.parts)):
        for word in re.split(r"[^a-z]+", part.lower()):
            for split, words in WORDS.items():
                if word in words:
                    return split
    return ""


def _raise(error: OSError) -> None:
    raise error
