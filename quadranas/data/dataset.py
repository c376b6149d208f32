"""Labelled images from a folder, a zip file or scikit-learn's digits, in two splits.

Shapes: N images of a split, B of a batch, R the resolution. Pixels are stored as (N, R, R, 3) in
uint8 and returned as (B, 3, R, R), which makes a batch channels_last without a copy.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from statistics import median_low
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from quadranas.data.class_names import alike_warnings
from quadranas.data.decoding import CorruptImageError
from quadranas.data.digits import list_digits
from quadranas.data.examination import Verify, examine
from quadranas.data.identity import EarlierData, SplitFiles, substituted
from quadranas.data.image_files import ImageFiles, threads_for
from quadranas.data.image_set import ImageSet, picker
from quadranas.data.left_out import described
from quadranas.data.listing import ImageListing, list_images
from quadranas.data.parquet import ParquetSource
from quadranas.data.samples import Samples
from quadranas.data.splits import evenly_spaced, hold_out, hold_out_share
from quadranas.errors import QuadranasError

MEMORY_LIMIT_BYTES = 512 * 2**20
"""Maximum size of a split's pixels in memory; a larger split is decoded batch by batch."""

MIN_TRAINING_IMAGES = 2
"""Minimum number of training images per class: one for each half of the training split."""

NUM_IMAGES_FOR_STATISTICS = 2000
NUM_IMAGES_FOR_NATIVE_SIDE = 200

Triple: TypeAlias = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A training and a test split with the same classes.

    Args:
        name: `digits`, or the path's stem.
        resolution: height and width of every image, in pixels.
        num_skipped: the number of corrupt images that were skipped, in both splits.
        mean, std: statistics of the training images per channel, for pixels in [0, 1].
        files: the image files in use, and the skipped ones; None for digits.
        warnings: what may be wrong with the images, in words.
        resized: returns the splits with the same images at another resolution.
        workers: number of processes that decode training images that are not kept in memory; None
            to choose it by the number of cores.
        validation: training images that are held out; None: none are.
        kept, held_out: indices of the training images that remain and of those that are held out.
    """

    name: str
    class_names: tuple[str, ...]
    resolution: int
    train: ImageSet
    test: ImageSet
    num_skipped: int = 0
    mean: Triple
    std: Triple
    files: SplitFiles | None = None
    warnings: tuple[str, ...] = ()
    resized: Callable[[int], tuple[ImageSet, ImageSet]]
    workers: int | None = None
    validation: ImageSet | None = None
    kept: Tensor | None = None
    held_out: Tensor | None = None

    def at(self, resolution: int) -> "Dataset":
        """The same images at another resolution, however small they are; statistics stay."""
        if resolution == self.resolution:
            return self
        train, test = self.resized(resolution)
        return replace(self, resolution=resolution, train=train, test=test)._divided(train)

    def with_holdout(self, share: float, seed: int) -> "Dataset":
        """The same images with a share of the training images of every class held out.

        The statistics stay those of all training images.

        Args:
            share: 0 for none.

        Raises:
            QuadranasError: a class has too few images.
        """
        if not share:
            return self
        what = "training images (holdout)"
        _check_counts(self.train.labels, self.class_names, MIN_TRAINING_IMAGES + 1, what)
        kept, held_out = hold_out_share(self.train.labels, share, seed, least=MIN_TRAINING_IMAGES)
        return replace(self, kept=kept, held_out=held_out)._divided(self.train)

    def _divided(self, images: ImageSet) -> "Dataset":
        """With the images of all training, of which some are held out."""
        if self.kept is None or self.held_out is None:
            return self
        return replace(
            self, train=images.subset(self.kept), validation=images.subset(self.held_out)
        )

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.class_names)


def load_dataset(
    data: str | Path | ImageListing | None,
    *,
    val: str | Path | None = None,
    resolution: int,
    seed: int = 0,
    skip_corrupt: bool = False,
    earlier: EarlierData | None = None,
    verify: Verify = "ends",
) -> Dataset:
    """Read a data set.

    The training and the test split are the first of these that applies: all of `data` and all of
    `val`; the folders `train` and `test` of `data`; its folders `train` and `val`; or, for class
    folders only and for digits, a stratified 80/20 split drawn with `seed`. An outer folder that
    contains everything is skipped. Hidden files, files without an image extension and files next
    to the class folders are ignored.

    The EXIF orientation is applied, and the background of transparent pixels is white. Training
    images are decoded immediately. Test images are decoded with the first batch, since a search
    does not use them before its end, but every file is examined first (`examine`); with
    `skip_corrupt`, decoded.

    Args:
        data: a folder, a zip, the listing of one, or None for scikit-learn's handwritten digits.
        val: a second folder or zip with the same classes, the test split.
        resolution: images are resized to this shorter side (bilinear) and cropped at the centre.
        seed: seed of the 80/20 split.
        skip_corrupt: skip and count corrupt images instead of raising an error.
        earlier: the data of the run to resume, which then decide about splits and statistics;
            corrupt training images are replaced instead of skipped (`quadranas.data.identity`).
        verify: examine the headers and ends of all files, or decode all of them.

    Raises:
        QuadranasError: data that are missing, corrupt, too small, too few or inconsistent.
    """
    if data is not None:
        listing = _listed(data, val)
        files = _files_of(listing, seed, earlier)
        return _load_listed(listing, files, resolution, skip_corrupt, verify, earlier)
    if val is not None:
        raise QuadranasError(
            f"--val {val} needs --data: the built-in digits have their own test split",
            "Pass the training images with --data.",
        )
    return _load_digits(resolution, seed)


def _files_of(listing: ImageListing, seed: int, earlier: EarlierData | None) -> SplitFiles:
    """The images to use: those of the run to resume, or of the splits in the listing."""
    if earlier is not None and earlier.identity.totals is None:
        return earlier.split(listing)
    files = SplitFiles(*split_files(listing, seed))
    return files if earlier is None else earlier.remaining(files)


def _load_digits(resolution: int, seed: int) -> Dataset:
    """The built-in digits, however small they are; each split is decoded with its first batch."""
    train, test = _held_out(list_digits(), seed)

    def resized(resolution: int) -> tuple[ImageSet, ImageSet]:
        return _decoded_later(train, resolution), _decoded_later(test, resolution)

    images, test_images = resized(resolution)
    mean, std = _statistics(images)
    return Dataset(
        name="digits",
        class_names=train.class_names,
        resolution=resolution,
        train=images,
        test=test_images,
        mean=mean,
        std=std,
        resized=resized,
    )


def _load_listed(
    listing: ImageListing,
    files: SplitFiles,
    resolution: int,
    skip_corrupt: bool,
    verify: Verify,
    earlier: EarlierData | None,
) -> Dataset:
    """Read listed images; arguments and errors are those of `load_dataset`."""
    class_names = files.train.class_names
    warnings = examine(
        *((files.train, files.test), resolution), verify=verify, skip_corrupt=skip_corrupt
    )
    replaces = earlier is not None
    train, train_files, bad_train = _read_split(
        files.train, resolution, skip_corrupt, now=True, replaces=replaces
    )
    test, test_files, bad_test = _read_split(files.test, resolution, skip_corrupt, now=False)
    what = f"training images in {listing.data}"
    _check_counts(train.labels, class_names, MIN_TRAINING_IMAGES, what, len(bad_train))
    what = f"test images in {listing.val or listing.data}"
    _check_counts(test.labels, class_names, 1, what, len(bad_test))
    mean, std = (earlier and earlier.statistics) or _statistics(train)
    # An image may have replaced several others, so its name may occur several times.
    skipped = (*files.skipped, *dict.fromkeys(bad_train), *dict.fromkeys(bad_test))
    num_before = len(earlier.identity.skipped) if earlier else 0
    return Dataset(
        name=listing.data.resolve().stem,
        class_names=class_names,
        resolution=resolution,
        train=train,
        test=test,
        num_skipped=num_before + len(skipped),
        mean=mean,
        std=std,
        files=SplitFiles(train_files, test_files, skipped),
        warnings=(*listing_warnings(listing), *warnings, *_slow_warnings(train, train_files)),
        resized=lambda r: (_decoded_later(train_files, r), _decoded_later(test_files, r)),
    )


def listing_warnings(listing: ImageListing) -> list[str]:
    """Warnings about classes with nearly the same name, and about files that are left out."""
    splits = [split for split in (listing.train, listing.test) if split is not None]
    texts = [(split.source.path, described(split.left_out)) for split in splits]
    left_out = [f"left out of {path}: {text}" for path, text in dict.fromkeys(texts) if text]
    return alike_warnings(listing.train.class_names) + left_out


def _slow_warnings(images: ImageSet, files: ImageFiles) -> list[str]:
    """A warning for images that are read again and again, each with many others."""
    if images.is_in_memory or not isinstance(files.source, ParquetSource):
        return []
    read_mb = files.source.bytes_per_read / 1e6
    return [
        f"the training images in {files.source.path} do not fit in memory, and Parquet files are "
        f"read slowly in random order, about {read_mb:.2g} MB for each image; tar shards are "
        "faster"
    ]


def native_side(
    data: str | Path | ImageListing, *, val: str | Path | None = None, seed: int = 0
) -> int:
    """The median shorter side of the training images, in pixels.

    Only headers are read, of up to 200 images evenly spaced in the order of class and name.
    Corrupt images are ignored here; `load_dataset` reports or skips them.

    Args:
        data, val, seed: see `load_dataset`; they determine the training images.

    Returns: the median; of an even number of sides, the lower of the two middle ones.

    Raises:
        QuadranasError: `data` or `val` cannot be split, as in `load_dataset`, or all headers are
            corrupt.
    """
    listing = _listed(data, val)
    files, _ = split_files(listing, seed)
    labels = _labels(files)
    what = f"training images in {listing.data}"
    _check_counts(labels, files.class_names, MIN_TRAINING_IMAGES, what)
    sides: list[int] = []
    for index in evenly_spaced(len(files), NUM_IMAGES_FOR_NATIVE_SIDE).tolist():
        with suppress(CorruptImageError):
            sides.append(min(files.size(index)))
    # If all headers are corrupt, reading the first one again raises its error.
    return median_low(sides) if sides else min(files.size(0))


def _listed(data: str | Path | ImageListing, val: str | Path | None) -> ImageListing:
    return data if isinstance(data, ImageListing) else list_images(data, val)


def split_files(listing: ImageListing, seed: int) -> tuple[ImageFiles, ImageFiles]:
    """The files of the training and of the test split, with the same classes."""
    train, test = listing.train, listing.test
    if test is None:
        return _held_out(train, seed)
    here, there = set(train.class_names), set(test.class_names)
    if here != there:
        sides = (("training", here - there), ("test", there - here))
        parts = [
            f"only in {side}: {', '.join(sorted(names)[:5])}" for side, names in sides if names
        ]
        raise QuadranasError(
            f"the classes of training ({train.source.path}) and test ({test.source.path}) "
            f"differ; {'; '.join(parts)}",
            "Use the same class folders, with the same names, for both.",
        )
    return train, test.ordered(train.class_names)


def _held_out(files: ImageFiles, seed: int) -> tuple[ImageFiles, ImageFiles]:
    """The images that remain for the training, and those that are held out for the test."""
    first, second = hold_out(_labels(files), seed)
    return files.select(first.numpy()), files.select(second.numpy())


def _read_split(
    files: ImageFiles, resolution: int, skip_corrupt: bool, *, now: bool, replaces: bool = False
) -> tuple[ImageSet, ImageFiles, list[str]]:
    """Check all files of a split; with `now`, also decode the pixels if they fit in memory.

    Args:
        replaces: replace skipped images by others of their class.

    Returns: the split, its files, and the names of the skipped images.
    """
    pixels = None
    if now and _fits_in_memory(files, resolution):
        pixels = np.empty((len(files), resolution, resolution, 3), dtype=np.uint8)
    elif not skip_corrupt:  # `examine` has opened every file
        return _decoded_later(files, resolution), files, []
    usable = files.sift(resolution, skip_corrupt=skip_corrupt, out=pixels)
    corrupt = sorted(set(range(len(files))).difference(usable))
    skipped = [files.member(index) for index in corrupt]
    used = substituted(usable, files.labels.tolist()) if replaces else usable
    kept = files.select(used)
    if pixels is None:
        return _decoded_later(kept, resolution), kept, skipped
    decoded = torch.from_numpy(pixels[used] if skipped else pixels)
    samples = Samples(kept, resolution)
    return ImageSet(_labels(kept), picker(decoded), samples=samples), kept, skipped


def _decoded_later(files: ImageFiles, resolution: int) -> ImageSet:
    """Images that are decoded with the first batch, or batch by batch if they need much memory.

    Their sizes have been checked before, for the resolution of the training.
    """
    samples = Samples(files, resolution)

    def decode(indices: Tensor) -> Tensor:
        return torch.from_numpy(
            samples.batch(indices.tolist(), num_threads=threads_for(resolution))
        )

    is_kept = _fits_in_memory(files, resolution)
    return ImageSet(
        *(_labels(files), decode), at_first_use=is_kept, samples=samples, is_in_memory=is_kept
    )


def _fits_in_memory(files: ImageFiles, resolution: int) -> bool:
    return prod((len(files), resolution, resolution, 3)) <= MEMORY_LIMIT_BYTES


def _labels(files: ImageFiles) -> Tensor:
    return torch.from_numpy(files.labels)


def _statistics(images: ImageSet) -> tuple[Triple, Triple]:
    """Mean and standard deviation per channel over evenly spaced images."""
    sums, squares, num_pixels = torch.zeros(3).double(), torch.zeros(3).double(), 0
    for indices in evenly_spaced(len(images), NUM_IMAGES_FOR_STATISTICS).split(64):
        pixels = images.batch(indices).double() / 255
        sums += pixels.sum((0, 2, 3))
        squares += pixels.square().sum((0, 2, 3))
        num_pixels += pixels[:, 0].numel()
    mean = sums / num_pixels
    # For images of a single colour the normalisation would divide by zero.
    std = (squares / num_pixels - mean.square()).clamp(min=1 / 255**2).sqrt()
    (r, g, b), (std_r, std_g, std_b) = mean.tolist(), std.tolist()
    return (r, g, b), (std_r, std_g, std_b)


def _check_counts(
    labels: Tensor, class_names: Sequence[str], least: int, what: str, num_skipped: int = 0
) -> None:
    """Check that a split has at least `least` images of every class.

    Raises:
        QuadranasError: names the first class with too few images.
    """
    counts = torch.bincount(labels, minlength=len(class_names)).tolist()
    for name, count in zip(class_names, counts, strict=True):
        if count < least:
            skipped = f" ({num_skipped} corrupt skipped)" if num_skipped else ""
            raise QuadranasError(
                f"too few {what} to split: class {name!r} has {count}{skipped}, "
                f"at least {least} per class are needed",
                "Add images to the class, or remove its folder.",
            )
