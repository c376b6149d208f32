"""Labelled images from a folder, a zip or scikit-learn's digits, with a training and a test split.

Shapes: N images of a split, B of a batch, R the resolution. Pixels are stored as (N, R, R, 3) in
uint8 and handed out as (B, 3, R, R), which makes a batch channels_last without a copy.
"""

import io
import os
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path, PurePosixPath
from typing import IO, TypeAlias, TypeVar, final

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from quadranas.errors import QuadranasError

MEMORY_LIMIT_BYTES = 512 * 2**20
"""A split whose pixels are larger than this is decoded batch by batch, not once."""

MAX_FILE_BYTES = 256 * 2**20
"""A zip member that unpacks to more than this is refused."""

MAX_UPSCALING = 4
"""An image whose shorter side is smaller than the resolution by more than this is refused."""

TEST_SHARE = 5
"""One image in so many is held out where the data come without a test split."""

THREADS_FROM_RESOLUTION = 64
"""Below it threads only wait for each other (CIFAR-10: 2.1 s on one, 2.7 to 3.5 s on two)."""

NUM_THREADS = min(8, os.cpu_count() or 1)
NUM_IMAGES_FOR_STATISTICS = 2000
MAX_FOLDER_DEPTH = 6
SPLIT_NAMES = ("train", "test", "val")
COMMON_FORMATS = ("JPEG", "PNG")

NOT_PICTURES = ("EPS", "WMF", "HDF5", "MPEG", "GRIB", "BUFR")
"""Formats Pillow only recognises, or hands to another programme (EPS to Ghostscript)."""

LAYOUT = (
    "Accepted: a folder or a zip with train/ and test/ or val/, each holding one folder of images "
    "per class; or with one folder of images per class alone."
)

Pixels: TypeAlias = npt.NDArray[np.uint8]
Triple: TypeAlias = tuple[float, float, float]
Result = TypeVar("Result")
_Tree: TypeAlias = "dict[str, _Tree | str]"


@final
class ImageSet:
    """The images of one split and their labels, shape (N,), int64.

    Args:
        labels: one class index per image.
        pick: the images at some indices, uint8 (B, R, R, 3).
        at_first_use: whether to pick all images at the first batch, and keep them.
    """

    def __init__(
        self, labels: Tensor, pick: Callable[[Tensor], Tensor], *, at_first_use: bool = False
    ) -> None:
        self.labels = labels
        self._pick = pick
        self._at_first_use = at_first_use

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Tensor) -> Tensor:
        """The images at some indices, uint8 (B, 3, R, R), channels_last.

        Raises:
            QuadranasError: an image decoded only now turns out to be corrupt.
        """
        if self._at_first_use:
            self._pick = _picker(self._pick(torch.arange(len(self))))
            self._at_first_use = False
        return self._pick(indices.cpu()).permute(0, 3, 1, 2)


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A training and a test split with the same classes.

    Args:
        name: `digits`, or the path's stem.
        resolution: height and width of every image, in pixels.
        num_skipped: corrupt images left out of both splits.
        mean, std: of the training images per channel, pixels in [0, 1].
    """

    name: str
    class_names: tuple[str, ...]
    resolution: int
    train: ImageSet
    test: ImageSet
    num_skipped: int = 0
    mean: Triple
    std: Triple

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.class_names)


def load_dataset(
    data: str | Path | None,
    *,
    val: str | Path | None = None,
    resolution: int,
    seed: int = 0,
    skip_corrupt: bool = False,
) -> Dataset:
    """Read a data set.

    The splits are, in this order: all of `data` and all of `val`; the folders `train` and `test`
    (where there is no `test`, `val`; where there are both, `val` is left alone); or, for class
    folders alone and for digits, a stratified 80/20 split drawn with `seed`. One folder wrapped
    around everything is looked through; hidden files, files that are no images by their extension,
    and files beside the class folders are ignored.

    Training images are decoded here. Of test images only the headers are read (with `skip_corrupt`
    all of them), their pixels when a batch is first asked for: a search decides without them.

    Args:
        data: a folder, a zip, or None for scikit-learn's handwritten digits.
        val: a second folder or zip with the same classes, the test split.
        resolution: images are resized to this shorter side (bilinear) and cropped at the centre.
        seed: of the 80/20 split.
        skip_corrupt: leave corrupt images out and count them, instead of refusing the data.

    Raises:
        QuadranasError: naming what is missing, corrupt, too small, too few or inconsistent.
    """
    num_skipped = 0
    if data is None:
        if val is not None:
            raise QuadranasError(
                f"--val {val} needs --data: digits bring a test split of their own",
                "Name the training images with --data.",
            )
        name, class_names = "digits", tuple("0123456789")
        train, test = _load_digits(resolution, seed)
    else:
        name = Path(data).resolve().stem
        train_files, test_files = _find_splits(Path(data), val, resolution, seed)
        class_names = train_files.class_names
        train, num_bad_train = _read_split(train_files, skip_corrupt, now=True)
        test, num_bad_test = _read_split(test_files, skip_corrupt, now=False)
        num_skipped = num_bad_train + num_bad_test
        _check_counts(train, class_names, 2, f"training images in {data}", num_bad_train)
        _check_counts(test, class_names, 1, f"test images in {val or data}", num_bad_test)
    mean, std = _statistics(train)
    return Dataset(
        name=name,
        class_names=class_names,
        resolution=resolution,
        train=train,
        test=test,
        num_skipped=num_skipped,
        mean=mean,
        std=std,
    )


def split_halves(labels: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Two disjoint halves, for the weights and for the architecture steps, alike in every class.

    An odd image goes to the first half in every other class, to the second half in the rest.

    Returns: indices into `labels`, sorted.
    """
    return _split(labels, seed, lambda size, position: (size + 1 - position % 2) // 2)


def epoch_batches(indices: Tensor, batch_size: int, *, seed: int) -> list[Tensor]:
    """The indices in random order, in batches; a short last one only where it is the only one."""
    generator = torch.Generator().manual_seed(seed)
    shuffled = indices[torch.randperm(len(indices), generator=generator)]
    starts = range(0, len(shuffled), batch_size)
    batches = [shuffled[start : start + batch_size] for start in starts]
    return batches[:-1] if len(batches) > 1 and len(batches[-1]) < batch_size else batches


def _split(
    labels: Tensor, seed: int, first_size: Callable[[int, int], int]
) -> tuple[Tensor, Tensor]:
    """Shuffle every class and cut it at `first_size(number of images, position of the class)`."""
    generator = torch.Generator().manual_seed(seed)
    first, second = [], []
    for position, label in enumerate(sorted(set(labels.tolist()))):
        members = (labels == label).nonzero().flatten()
        members = members[torch.randperm(len(members), generator=generator)]
        cut = first_size(len(members), position)
        first.append(members[:cut])
        second.append(members[cut:])
    return torch.cat(first).sort().values, torch.cat(second).sort().values


def _hold_out(labels: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Training and test indices; every class gives at least one image to the test."""
    return _split(labels, seed, lambda size, _: size - max(1, round(size / TEST_SHARE)))


def _picker(pixels: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda indices: pixels.index_select(0, indices)


def _load_digits(resolution: int, seed: int) -> tuple[ImageSet, ImageSet]:
    """Training and test split of the 1797 digits of 8 x 8 pixels, grey values 0 to 16."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    grey = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    pixels = torch.from_numpy(np.stack([_fit(Image.fromarray(g), resolution) for g in grey]))
    labels = torch.from_numpy(digits.target.astype(np.int64))
    first, second = _hold_out(labels, seed)
    return (
        ImageSet(labels[first], _picker(pixels[first])),
        ImageSet(labels[second], _picker(pixels[second])),
    )


def _statistics(images: ImageSet) -> tuple[Triple, Triple]:
    """Mean and standard deviation per channel over evenly spaced images."""
    count = min(len(images), NUM_IMAGES_FOR_STATISTICS)
    sums, squares, num_pixels = torch.zeros(3).double(), torch.zeros(3).double(), 0
    chosen = torch.linspace(0, len(images) - 1, count).long()
    for start in range(0, count, 64):
        pixels = images.batch(chosen[start : start + 64]).double() / 255
        sums += pixels.sum((0, 2, 3))
        squares += pixels.square().sum((0, 2, 3))
        num_pixels += pixels[:, 0].numel()
    mean = sums / num_pixels
    # Images of a single colour would make the normalisation divide by zero.
    std = (squares / num_pixels - mean.square()).clamp(min=1 / 255**2).sqrt()
    (r, g, b), (std_r, std_g, std_b) = mean.tolist(), std.tolist()
    return (r, g, b), (std_r, std_g, std_b)


def _check_counts(
    images: ImageSet, class_names: Sequence[str], least: int, what: str, num_skipped: int
) -> None:
    """Refuse a split in which a class has too few images."""
    counts = torch.bincount(images.labels, minlength=len(class_names)).tolist()
    for name, count in zip(class_names, counts, strict=True):
        if count < least:
            skipped = f" ({num_skipped} corrupt ones skipped)" if num_skipped else ""
            raise QuadranasError(
                f"too few {what} to split: class {name!r} has {count}{skipped}, "
                f"at least {least} of every class are needed",
                "Add images to the class, or remove its folder.",
            )


class _CorruptImageError(QuadranasError):
    """An image that cannot be decoded; caught where corrupt images are skipped."""


@dataclass(frozen=True)
class _Source:
    """A folder or a zip: its images as a tree; how to open one, in whole (True) or to peek."""

    path: Path
    tree: _Tree
    open: Callable[[str, bool], IO[bytes]]


@dataclass(frozen=True)
class _Files:
    """The image files of one split, in the order of their labels."""

    source: _Source
    members: tuple[str, ...]
    labels: Tensor
    class_names: tuple[str, ...]
    resolution: int

    def __len__(self) -> int:
        return len(self.members)

    def select(self, indices: Tensor) -> "_Files":
        members = tuple(self.members[index] for index in indices.tolist())
        return replace(self, members=members, labels=self.labels[indices])

    def empty(self, count: int) -> Pixels:
        return np.empty((count, self.resolution, self.resolution, 3), dtype=np.uint8)

    def decode(self, indices: Tensor) -> Tensor:
        """Images as uint8 (B, R, R, 3)."""
        chosen = indices.tolist()
        pixels = self.empty(len(chosen))

        def fill(row: int) -> bool:
            pixels[row] = self.read(chosen[row])
            return True

        self.for_each(fill, len(chosen))
        return torch.from_numpy(pixels)

    def for_each(self, work: Callable[[int], bool], count: int, chunk: int = 16) -> list[bool]:
        """What `work` says of 0 to count - 1; of several errors the first in order is raised."""

        def run(start: int) -> list[bool]:
            return [work(index) for index in range(start, min(start + chunk, count))]

        with ThreadPoolExecutor(
            NUM_THREADS if self.resolution >= THREADS_FROM_RESOLUTION else 1
        ) as pool:
            return [result for part in pool.map(run, range(0, count, chunk)) for result in part]

    def read(self, index: int) -> Pixels:
        """One image's pixels, (R, R, 3).

        Raises:
            QuadranasError: the image is corrupt or too small.
        """
        return self._use(index, True, lambda image: _fit(image, self.resolution))

    def check(self, index: int) -> None:
        """Raise as `read` does, as far as an image's header tells."""
        self._use(index, False, lambda image: None)

    def _use(self, index: int, whole: bool, use: Callable[[Image.Image], Result]) -> Result:
        member, path = self.members[index], self.source.path
        try:
            with (
                self.source.open(member, whole) as file,
                Image.open(file, formats=_formats()) as image,
            ):
                width, height = image.size
                result = use(image)
        except Exception as error:  # Pillow's decoders raise many kinds on a broken file
            if isinstance(error, OSError) and error.errno is not None:
                reason = error.strerror
                raise QuadranasError(f"cannot read image {member} in {path}: {reason}") from error
            raise _CorruptImageError(
                f"corrupt image {member} in {path}: {_reason(error)}",
                "Replace or remove it, or leave such images out with --skip-corrupt.",
            ) from error
        if min(width, height) * MAX_UPSCALING < self.resolution:
            raise QuadranasError(
                f"image {member} in {path} is too small: {width} x {height} pixels; resolution "
                f"{self.resolution} needs {-(-self.resolution // MAX_UPSCALING)} on both sides",
                f"Lower the training resolution to {min(width, height) * MAX_UPSCALING} or less, "
                "or remove the image.",
            )
        return result


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not an image Pillow can read"
    return str(error) or type(error).__name__


def _fit(image: Image.Image, resolution: int) -> Pixels:
    """Resize the shorter side to the resolution and crop the centre, (R, R, 3)."""
    if image.mode.startswith("I"):  # Pillow cuts 16 bits off at 255 instead of scaling them
        image = Image.fromarray((np.asarray(image).clip(0, 65535) // 256).astype(np.uint8))
    elif image.mode == "F":
        raise ValueError("its floating-point pixels have no known range; store 8 or 16 bits")
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    image = image.convert("RGB")
    if image.size != (resolution, resolution):
        image = ImageOps.fit(image, (resolution, resolution), Image.Resampling.BILINEAR)
    return np.asarray(image)


def _read_split(files: _Files, skip_corrupt: bool, *, now: bool) -> tuple[ImageSet, int]:
    """Check every file, decode the pixels `now` where they fit in memory; count the skipped."""
    fits = len(files) * files.resolution**2 * 3 <= MEMORY_LIMIT_BYTES
    pixels = files.empty(len(files)) if fits and now else None

    def is_good(index: int) -> bool:
        try:
            if pixels is not None:
                pixels[index] = files.read(index)
            elif skip_corrupt:
                files.read(index)
            else:
                files.check(index)
        except _CorruptImageError:
            if skip_corrupt:
                return False
            raise
        return True

    good = torch.tensor(files.for_each(is_good, len(files))).nonzero().flatten()
    num_skipped = len(files) - len(good)
    kept = files.select(good)
    if pixels is None:
        return ImageSet(kept.labels, kept.decode, at_first_use=fits), num_skipped
    decoded = torch.from_numpy(pixels)
    return ImageSet(kept.labels, _picker(decoded[good] if num_skipped else decoded)), num_skipped


def _find_splits(
    data: Path, val: str | Path | None, resolution: int, seed: int
) -> tuple[_Files, _Files]:
    """The files of the training and of the test split."""
    source = _open(data, "--data")
    tree = _unwrap(source.tree)
    splits = {name.lower(): folder for name, folder in _folders(tree).items()}
    is_split = "train" in splits and bool(_folders(splits["train"]))
    if val is not None:
        if is_split:
            raise QuadranasError(
                f"--data {data} has train/ and more inside, so --val {val} is ambiguous",
                "Drop --val, or name the train folder itself with --data.",
            )
        other = _open(Path(val), "--val")
        test = _list_files(other, _unwrap(other.tree), f"--val {val}", resolution)
        return _same_classes(_list_files(source, tree, f"--data {data}", resolution), test)
    if is_split:
        held_out = next((name for name in ("test", "val") if name in splits), None)
        if held_out is None:
            raise QuadranasError(f"--data {data} has train/ but neither test/ nor val/", LAYOUT)
        train = _list_files(source, splits["train"], f"train/ of {data}", resolution)
        test = _list_files(source, splits[held_out], f"{held_out}/ of {data}", resolution)
        return _same_classes(train, test)
    if len(splits) > 1 and set(splits) <= set(SPLIT_NAMES):
        raise QuadranasError(
            f"--data {data} has {', '.join(splits)} without class folders", LAYOUT
        )
    files = _list_files(source, tree, f"--data {data}", resolution)
    first, second = _hold_out(files.labels, seed)
    return files.select(first), files.select(second)


def _list_files(source: _Source, tree: _Tree, where: str, resolution: int) -> _Files:
    """The images of one folder per class, classes and images in alphabetical order."""
    folders = sorted(_folders(tree).items())
    if not folders:
        raise QuadranasError(f"{where} has no class folders", LAYOUT)
    members: list[str] = []
    labels: list[int] = []
    for label, (name, folder) in enumerate(folders):
        images = sorted(leaf for leaf in folder.values() if isinstance(leaf, str))
        if not images:
            raise QuadranasError(f"class folder {name!r} of {where} has no images in it", LAYOUT)
        nested = [leaf for inner in _folders(folder).values() for leaf in _leaves(inner)]
        if nested:
            raise QuadranasError(
                f"image {nested[0]} of {where} lies in a folder inside its class folder", LAYOUT
            )
        members += images
        labels += [label] * len(images)
    names = tuple(name for name, _ in folders)
    if len(names) < 2:
        raise QuadranasError(f"{where} has only one class, {names[0]!r}; 2 are needed", LAYOUT)
    return _Files(source, tuple(members), torch.tensor(labels), names, resolution)


def _same_classes(train: _Files, test: _Files) -> tuple[_Files, _Files]:
    here, there = set(train.class_names), set(test.class_names)
    if here != there:
        sides = (("training", here - there), ("test", there - here))
        parts = [
            f"only in {side}: {', '.join(sorted(names)[:5])}" for side, names in sides if names
        ]
        raise QuadranasError(
            f"the classes of training ({train.source.path}) and test ({test.source.path}) "
            f"differ; {'; '.join(parts)}",
            "Give both the same class folders, spelt alike.",
        )
    return train, test


def _folders(tree: _Tree) -> "dict[str, _Tree]":
    return {name: inner for name, inner in tree.items() if isinstance(inner, dict)}


def _leaves(tree: _Tree) -> list[str]:
    nested = (_leaves(inner) if isinstance(inner, dict) else [inner] for inner in tree.values())
    return [leaf for leaves in nested for leaf in leaves]


def _unwrap(tree: _Tree) -> _Tree:
    """The tree below folders that wrap everything; a lone class folder is no wrapper."""
    folders = list(_folders(tree).values())
    return _unwrap(folders[0]) if len(folders) == 1 and _folders(folders[0]) else tree


def _open(path: Path, option: str) -> _Source:
    """List a folder or a zip.

    Raises:
        QuadranasError: missing, neither of the two, torn, or without a single image.
    """
    if not path.exists():
        raise QuadranasError(f"{option} {path} does not exist", LAYOUT)
    try:
        source = _open_folder(path) if path.is_dir() else _open_zip(path)
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise QuadranasError(
            f"{option} {path} is not a zip file, or a torn one: {error}",
            f"Download or pack it again. {LAYOUT}",
        ) from error
    except OSError as error:
        raise QuadranasError(f"cannot read {option} {path}: {error.strerror or error}") from error
    if not _leaves(source.tree):
        raise QuadranasError(
            f"{option} {path} holds no images (known by extension, such as .png or .jpg)", LAYOUT
        )
    return source


def _open_folder(path: Path) -> _Source:
    def list_folder(folder: Path, depth: int) -> _Tree:
        tree: _Tree = {}
        with os.scandir(folder) as entries:
            for entry in entries:
                if _is_hidden(entry.name):
                    continue
                if entry.is_dir() and depth < MAX_FOLDER_DEPTH:
                    tree[entry.name] = list_folder(folder / entry.name, depth + 1)
                elif entry.is_file() and _is_image(entry.name):
                    tree[entry.name] = (folder / entry.name).relative_to(path).as_posix()
        return tree

    return _Source(path, list_folder(path, 0), lambda member, whole: (path / member).open("rb"))


def _open_zip(path: Path) -> _Source:
    archive = zipfile.ZipFile(path)
    tree: _Tree = {}
    for info in archive.infolist():
        parts = PurePosixPath(info.filename).parts
        if len(parts) > MAX_FOLDER_DEPTH or any(_is_hidden(part) for part in parts):
            continue
        folder = tree
        for part in parts if info.is_dir() else parts[:-1]:
            inner = folder.setdefault(part, {})
            folder = inner if isinstance(inner, dict) else {}
        if not info.is_dir() and _is_image(info.filename):
            folder.setdefault(parts[-1], info.filename)

    def open_member(member: str, whole: bool) -> IO[bytes]:
        size = archive.getinfo(member).file_size
        if size > MAX_FILE_BYTES:
            raise ValueError(f"it unpacks to {size} bytes, at most {MAX_FILE_BYTES} are accepted")
        # Reading it whole also compares the checksum; a peek at the header is much cheaper.
        return io.BytesIO(archive.read(member)) if whole else archive.open(member)

    return _Source(path, tree, open_member)


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _is_image(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in _extensions()


@cache
def _extensions() -> frozenset[str]:
    known = Image.registered_extensions().items()
    return frozenset(extension for extension, name in known if name in _formats())


@cache
def _formats() -> tuple[str, ...]:
    """The formats Pillow decodes by itself, in the order to try them."""
    Image.init()
    others = [name for name in Image.OPEN if name not in NOT_PICTURES + COMMON_FORMATS]
    return (*COMMON_FORMATS, *others)
