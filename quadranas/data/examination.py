"""Examination of image files before training: damaged files, and images without content.

Every file is opened once. Decoding all of them would take as long as a first epoch: 10,000 photos
of 100 to 170 kB took 60 s of processor time, their headers and ends 1 s (Pillow 13.0, one core,
November 2026). So unless all are to be decoded, only those are whose header and end leave doubt:
without a mark of their end, with so few bytes that the pixels may be of one colour, or with 16
bits, which may be unused. On slow storage the threads wait side by side.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import IO, Literal, TypeAlias

import numpy as np
from PIL import Image

from quadranas.data.decoding import CorruptImageError, Pixels, fit
from quadranas.data.faults import raise_faults
from quadranas.data.image_files import NUM_THREADS, ImageFiles
from quadranas.errors import QuadranasError, printable, some

Verify: TypeAlias = Literal["ends", "full"]
"""How image files are verified before training: headers and ends, or all of them decoded."""

TAIL_BYTES = 64
DARK = 16
"""Limit of the pixel values of an image that counts as dark, of 256. Images of 12 bits, stored in
16 bits, stay below it."""

PLAIN_BYTES, PLAIN_BYTES_PER_PIXEL = 1024, 0.05
"""Upper limit on the size of an image of one colour: of a JPEG, 0.02 bytes per pixel and a header
of 600 bytes; of a PNG, less."""


def _ends_with(mark: bytes) -> Callable[[IO[bytes], int], bool]:
    def is_whole(file: IO[bytes], num_bytes: int) -> bool:
        file.seek(max(0, num_bytes - TAIL_BYTES))
        return mark in file.read()

    return is_whole


def _is_whole_riff(file: IO[bytes], num_bytes: int) -> bool:
    file.seek(4)
    return int.from_bytes(file.read(4), "little") + 8 <= num_bytes


IS_WHOLE: dict[str | None, Callable[[IO[bytes], int], bool]] = {
    # Compressed pixels never contain the mark of the end.
    "JPEG": _ends_with(b"\xff\xd9"),
    "MPO": _ends_with(b"\xff\xd9"),
    "PNG": _ends_with(b"IEND\xaeB`\x82"),
    "WEBP": _is_whole_riff,
}
"""By format: whether a file certainly has its end. Files of other formats are decoded."""


@dataclass(frozen=True)
class Look:
    """What an image looks like.

    Args:
        colour: its only colour, if all pixels are equal.
        is_dark: whether all values are below `DARK`.
        is_deep: whether it stores 16 bits.
    """

    colour: tuple[int, ...] | None = None
    is_dark: bool = False
    is_deep: bool = False


ORDINARY = Look()
"""An image with content, as nearly all are; one object for all of them."""


def examine(
    splits: Sequence[ImageFiles], resolution: int, *, verify: Verify, skip_corrupt: bool
) -> list[str]:
    """Open every image once, before training.

    Args:
        splits: the training split, then the test split.
        resolution: R, the size that images are decoded to.
        skip_corrupt: pass over corrupt images.

    Returns: warnings about images without content.

    Raises:
        CorruptImageError: images are corrupt; all are found.
        QuadranasError: images are too small, unreadable, or all alike.
    """
    decode_all = verify == "full"
    faults: list[QuadranasError] = []
    looks: list[tuple[str, Look]] = []
    num_examined = 0
    for files in splits:
        found = files.each(_examiner(files, resolution, decode_all), NUM_THREADS)
        faults += [
            fault
            for fault in found
            if isinstance(fault, QuadranasError)
            and not (skip_corrupt and isinstance(fault, CorruptImageError))
        ]
        if files is splits[0] and not faults:
            _refuse_alike([look for look in found if isinstance(look, Look)], files)
        looks += [
            (f"{printable(files.member(index))} in {files.source.path}", look)
            for index, look in enumerate(found)
            if isinstance(look, Look) and look != ORDINARY
        ]
        num_examined += sum(isinstance(look, Look) for look in found)
    raise_faults(faults, sum(map(len, splits)))
    return warnings_of(looks, num_examined)


def _examiner(
    files: ImageFiles, resolution: int, decode_all: bool
) -> Callable[[int], Look | QuadranasError]:
    def look(image: Image.Image, file: IO[bytes]) -> Look:
        return look_at(image, file, resolution, decode_all=decode_all)

    def examine_one(index: int) -> Look | QuadranasError:
        try:
            return files.use(index, True, look, resolution)
        except QuadranasError as error:
            return error

    return examine_one


def look_at(
    image: Image.Image, file: IO[bytes], resolution: int, *, decode_all: bool = False
) -> Look:
    """Look at an opened image, which is decoded if its header and end leave doubt.

    Args:
        resolution: R, the size to decode to.
        decode_all: decode it in any case.

    Raises:
        Exception: it cannot be decoded.
    """
    if not decode_all and not _is_doubtful(image, file):
        return ORDINARY
    is_deep = image.mode.startswith("I")
    return _look(fit(image, resolution), is_deep=is_deep)


def _is_doubtful(image: Image.Image, file: IO[bytes]) -> bool:
    """Whether only the pixels tell if an image is whole and has content."""
    place = file.tell()
    num_bytes = file.seek(0, 2)
    width, height = image.size
    is_whole = IS_WHOLE.get(image.format)
    result = (
        image.mode.startswith("I")
        or num_bytes < PLAIN_BYTES + PLAIN_BYTES_PER_PIXEL * width * height
        or is_whole is None
        or not is_whole(file, num_bytes)
    )
    file.seek(place)
    return result


def _look(pixels: Pixels, *, is_deep: bool) -> Look:
    first = pixels[0, 0]
    colour = tuple(first.tolist()) if bool((pixels == first).all()) else None
    return Look(colour=colour, is_dark=int(np.max(pixels)) < DARK, is_deep=is_deep)


def _refuse_alike(looks: Sequence[Look], files: ImageFiles) -> None:
    """Refuse training images that are all of the same single colour.

    Raises:
        QuadranasError: they are.
    """
    colours = {look.colour for look in looks}
    if len(colours) != 1 or None in colours:
        return
    (colour,) = colours
    is_black = colour == (0, 0, 0)
    is_deep = all(look.is_deep for look in looks)
    reason = ""
    if is_black and is_deep:
        reason = ": they have 16 bits, of which only the lower 8 are used"
    raise QuadranasError(
        f"all {len(files)} training images in {files.source.path} are of one colour, "
        f"{'black' if is_black else f'RGB {colour}'}{reason}",
        "Save 8-bit values as 8-bit files, or scale them to the range of 16 bits (0 to 65535)."
        if is_deep
        else "Check how the images were written.",
    )


def warnings_of(looks: Sequence[tuple[str, Look]], total: int) -> list[str]:
    """Warnings about images of one colour, and about 16-bit images that are nearly black.

    Args:
        total: the number of images that were examined.
    """
    deep = [name for name, look in looks if look.is_dark and look.is_deep]
    others = [(name, look) for name, look in looks if not (look.is_dark and look.is_deep)]
    plain = [name for name, look in others if look.colour is not None]
    shallow = [name for name, look in others if look.is_dark and look.colour is None]
    warnings = []
    if plain:
        warnings.append(f"{_images(plain, total)} of one colour only ({some(plain)})")
    if deep:
        warnings.append(
            f"{_images(deep, total)} black or nearly black: 16-bit files with values below "
            f"{DARK * 256} of 65535 ({some(deep)}); scale their values, or save them as 8 bits"
        )
    if shallow:
        warnings.append(
            f"{_images(shallow, total)} nearly black: no value above {DARK - 1} of 255 "
            f"({some(shallow)})"
        )
    return warnings


def _images(names: Sequence[str], total: int) -> str:
    return f"{len(names)} of {total} images {'is' if len(names) == 1 else 'are'}"
