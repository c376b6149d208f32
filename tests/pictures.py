"""Pictures of noise in folders and zips, how they are spoiled, and what is loaded of them."""

import zipfile
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from quadranas.data import image_files
from quadranas.data.dataset import Dataset
from quadranas.data.decoding import Pixels, fit
from quadranas.data.image_set import ImageSet


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


def pixels(images: ImageSet) -> torch.Tensor:
    """All images of a split."""
    return images.batch(torch.arange(len(images)))


def same(first: Dataset, second: Dataset) -> bool:
    """Whether two data sets hold the same classes, labels and pixels."""
    return first.class_names == second.class_names and all(
        torch.equal(a.labels, b.labels) and torch.equal(pixels(a), pixels(b))
        for a, b in ((first.train, second.train), (first.test, second.test))
    )


def count_decoded(monkeypatch: pytest.MonkeyPatch, module: ModuleType = image_files) -> list[int]:
    """A list that grows by one for each image that a module decodes."""
    decoded: list[int] = []

    def fit_and_count(image: Image.Image, resolution: int) -> Pixels:
        decoded.append(1)
        return fit(image, resolution)

    monkeypatch.setattr(module, "fit", fit_and_count)
    return decoded


def truncate(file: Path) -> None:
    """Leave the header whole and cut the pixels."""
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])


def text(file: Path) -> None:
    """Put a text in the place of the image."""
    file.write_text("<html>404</html>")
