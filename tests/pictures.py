"""Pictures of noise, written to folders and zips."""

import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from quadranas.data.decoding import Pixels


def noise(seed: int, *shape: int) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def write_classes(
    folder: Path, classes: tuple[str, ...] = ("cat", "dog"), count: int = 5, size: int = 16
) -> Path:
    """One folder per class with `count` PNG files of noise, told apart by their content."""
    for label, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            picture = Image.fromarray(noise(1000 * label + index, size, size, 3))
            picture.save(folder / name / f"{index:03}.png")
    return folder


def write_zip(path: Path, folder: Path, prefix: str = "") -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, prefix + file.relative_to(folder).as_posix())
    return path
