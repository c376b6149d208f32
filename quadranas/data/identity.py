"""The identity of a data set: names, sizes and digests of its images, to resume on the same ones.

The training images of a resumed run keep their number and order, on which every later step
depends: an image that turned out to be corrupt is replaced by the next one of its class.
"""

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import partial
from hashlib import blake2b
from pathlib import Path

import numpy as np
from pydantic import Field

from quadranas.data.image_files import NUM_THREADS, ImageFiles, in_threads
from quadranas.data.listing import ImageListing
from quadranas.errors import QuadranasError, some
from quadranas.validation import Frozen

WHOLE_LIMIT_BYTES = 4 * 2**30
"""Data up to this size are digested whole: 50,000 images of 2.5 kB took 1 s, 2,000 of 1 MB 5 s.
Beyond it, four blocks per file are, 3 s for 10,000 images of 1 MB (two cores, warm cache,
November 2026)."""

NAMED_LIMIT = 200_000
"""Number of images up to which each is recorded. Beyond it, a million images would make a file of
100 MB, and reading a part of each would take longer than listing them."""

NUM_READ = 1000
"""Number of images of a large split whose content is digested."""

BLOCK = 65_536

Fingerprint = tuple[int, str, int]
"""Size in bytes, digest and label of an image."""


class SplitTotal(Frozen):
    """The images of a split that is too large to record them one by one.

    Args:
        num_images: number of images.
        digest: digest of their names, sizes and labels, and of the content of a thousand of them.
    """

    num_images: int = Field(ge=0)
    digest: str


class DataIdentity(Frozen):
    """The images of a run, by their paths inside the source.

    Args:
        whole: whether large files are digested whole.
        train, test: the images in use, in their order: the number of bytes, digest and label of
            each; empty for large data.
        skipped: corrupt images that were skipped when the run was begun.

        totals: for large data, the training and the test split as a whole.

    Names are those of `written_name`.
    """

    whole: bool
    train: dict[str, Fingerprint]
    test: dict[str, Fingerprint]
    skipped: tuple[str, ...] = ()
    totals: tuple[SplitTotal, SplitTotal] | None = None


@dataclass(frozen=True)
class SplitFiles:
    """The image files of a data set.

    Args:
        train, test: the images in use.
        skipped: paths of the corrupt images that were skipped.
    """

    train: ImageFiles
    test: ImageFiles
    skipped: tuple[str, ...] = ()

    def identity(self) -> DataIdentity:
        """Digest the images.

        Raises:
            QuadranasError: a file cannot be read.
        """
        skipped = tuple(map(written_name, self.skipped))
        if len(self.train) + len(self.test) > NAMED_LIMIT:
            totals = _total(self.train), _total(self.test)
            return DataIdentity(whole=False, train={}, test={}, skipped=skipped, totals=totals)
        whole = _num_bytes(self.train) + _num_bytes(self.test) <= WHOLE_LIMIT_BYTES
        return DataIdentity(
            whole=whole,
            train=_fingerprints(self.train, whole),
            test=_fingerprints(self.test, whole),
            skipped=skipped,
        )


@dataclass(frozen=True)
class EarlierData:
    """The data that a run to resume was begun with.

    Args:
        run: the run folder, for messages.
        corrupt: images that an error named as corrupt; they may have been removed or replaced.
        statistics: mean and standard deviation of the training images per channel, if known.
    """

    run: Path
    identity: DataIdentity
    corrupt: frozenset[str]
    statistics: tuple[tuple[float, float, float], tuple[float, float, float]] | None

    def split(self, listing: ImageListing) -> SplitFiles:
        """The files of the run in a listing; `skipped` are those that are gone.

        Raises:
            QuadranasError: the images are not those of the run.
        """
        recorded, pool = self.identity, listing.test or listing.train
        self._check(listing.train, pool, is_shared=listing.test is None)
        train, labels, gone_train = _recorded(listing.train, recorded.train)
        test, tested, gone_test = _recorded(pool, recorded.test)
        present = [position for position, index in enumerate(train) if index is not None]
        chosen = substituted(present, labels)
        return SplitFiles(
            _chosen(listing.train, [train[i] for i in chosen], [labels[i] for i in chosen]),
            _chosen(pool, test, tested),
            (*gone_train, *gone_test),
        )

    def remaining(self, files: SplitFiles) -> SplitFiles:
        """The files of a run with large data: those of the splits that it did not skip.

        Raises:
            QuadranasError: the images are not those of the run.
        """
        skipped = set(self.identity.skipped)
        kept = SplitFiles(_without(files.train, skipped), _without(files.test, skipped))
        assert self.identity.totals is not None
        for name, part, total in zip(
            ("training", "test"), (kept.train, kept.test), self.identity.totals, strict=True
        ):
            if (found := _total(part)) != total:
                numbers = f"{found.num_images} instead of {total.num_images} images"
                raise QuadranasError(
                    f"cannot resume {self.run}: its {name} data have changed since it was begun: "
                    + (numbers if found.num_images != total.num_images else "other images"),
                    "Restore the images, or start a new run with another --output.",
                )
        return kept

    def _check(self, train: ImageFiles, test: ImageFiles, *, is_shared: bool) -> None:
        """Refuse other images than those of the run; `is_shared`: both splits are in `train`."""
        recorded = self.identity
        parts = [(train, recorded.train), (test, recorded.test)]
        if is_shared:
            parts = [(train, recorded.train | recorded.test)]
        faults: dict[str, list[str]] = {"changed": [], "missing": [], "new": []}
        for pool, wanted in parts:
            known = wanted.keys() | set(recorded.skipped)
            listed = map(written_name, pool.members)
            faults["changed"] += _changed(pool, wanted, recorded.whole)
            faults["missing"] += _recorded(pool, wanted)[2]
            faults["new"] += [name for name in listed if name not in known]
        texts = []
        for fault, names in faults.items():
            if names := [name for name in names if name not in self.corrupt]:
                texts.append(f"{len(names)} {fault} ({some(names)})")
        if texts:
            raise QuadranasError(
                f"cannot resume {self.run}: its data have changed since it was begun; images: "
                f"{', '.join(texts)}",
                "Restore the images, or start a new run with another --output.",
            )


def substituted(usable: Sequence[int], labels: Sequence[int]) -> list[int]:
    """For each image its own index, or that of the next usable one of its class.

    The last image of a class is followed by its first; images of a class without usable ones are
    left out.
    """
    by_label: dict[int, list[int]] = {}
    for index in usable:
        by_label.setdefault(labels[index], []).append(index)
    is_usable, result = set(usable), []
    for index, label in enumerate(labels):
        if index in is_usable:
            result.append(index)
        elif others := by_label.get(label):
            result.append(next((other for other in others if other > index), others[0]))
    return result


def written_name(name: str) -> str:
    """The name of an image as files contain it: bytes that are not UTF-8 are escaped."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def _recorded(
    pool: ImageFiles, wanted: Mapping[str, Fingerprint]
) -> tuple[list[int | None], list[int], list[str]]:
    """The wanted images: index in `pool` (None if it is gone) and label of each; those gone."""
    listed = {written_name(member): index for index, member in enumerate(pool.members)}
    indices = [listed.get(name) for name in wanted]
    gone = [name for name, index in zip(wanted, indices, strict=True) if index is None]
    return indices, [label for _, _, label in wanted.values()], gone


def _chosen(pool: ImageFiles, indices: Sequence[int | None], labels: Sequence[int]) -> ImageFiles:
    """The images that are still there, with the labels that were recorded."""
    found = [(i, label) for i, label in zip(indices, labels, strict=True) if i is not None]
    files = pool.select([index for index, _ in found])
    return replace(files, labels=np.array([label for _, label in found], dtype=np.int64))


def _changed(pool: ImageFiles, wanted: Mapping[str, Fingerprint], whole: bool) -> Iterator[str]:
    """The names of files with another size or content than recorded."""
    names = map(written_name, pool.members)
    indices = [index for index, name in enumerate(names) if name in wanted]
    found = _fingerprints(pool.select(indices), whole)
    return (name for name, (*content, _) in found.items() if content != [*wanted[name][:2]])


def _without(files: ImageFiles, names: Set[str]) -> ImageFiles:
    if not names:
        return files
    members = (written_name(files.member(index)) for index in range(len(files)))
    return files.select([index for index, name in enumerate(members) if name not in names])


def _total(files: ImageFiles) -> SplitTotal:
    """The identity of a split as a whole.

    Raises:
        QuadranasError: a file cannot be read.
    """
    digest = blake2b(digest_size=16)
    for start in range(0, len(files), BLOCK):
        block = range(start, min(start + BLOCK, len(files)))
        sizes = in_threads(partial(_size_of, files, start), len(block), NUM_THREADS)
        for index, size in zip(block, sizes, strict=True):
            name = written_name(files.member(index))
            digest.update(f"{name}\0{size}\0{files.labels[index]}\0".encode())
    for index in np.linspace(0, len(files) - 1, min(len(files), NUM_READ)).astype(int).tolist():
        digest.update(files.digest(index, whole=False).encode())
    return SplitTotal(num_images=len(files), digest=digest.hexdigest())


def _size_of(files: ImageFiles, start: int, position: int) -> int:
    return files.num_bytes(start + position)


def _num_bytes(files: ImageFiles) -> int:
    return sum(files.num_bytes(index) for index in range(len(files)))


def _fingerprints(files: ImageFiles, whole: bool) -> dict[str, Fingerprint]:
    def read(index: int) -> Fingerprint:
        label = int(files.labels[index])
        return files.num_bytes(index), files.digest(index, whole=whole), label

    names = map(written_name, files.members)
    return dict(zip(names, files.each(read, NUM_THREADS), strict=True))
