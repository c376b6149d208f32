"""The built-in source: scikit-learn's digits, in the memory of the package."""

import io
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import IO, Any, ClassVar, final
from zlib import crc32

import numpy as np

from quadranas.data.decoding import Pixels
from quadranas.data.image_files import ImageFiles
from quadranas.data.names import Names, packed

CLASS_NAMES = tuple("0123456789")


@final
@dataclass(frozen=True)
class DigitsSource:
    """The 1797 digits (8 x 8 pixels, grey values 0 to 16); see `quadranas.data.source.Source`."""

    kind: ClassVar[str] = "built-in digits"

    path: Path = Path("digits")

    @cached_property
    def names(self) -> Names:
        """Their numbers, as names of files."""
        return Names.of([("", packed(f"{number:04}.pgm" for number in range(len(self._grey))))])

    @cached_property
    def labels(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """The classes of the digits, (1797,)."""
        labels: np.ndarray[Any, np.dtype[np.int64]] = _digits().target.astype(np.int64)
        return labels

    @cached_property
    def _grey(self) -> Pixels:
        grey: Pixels = np.rint(_digits().images * (255 / 16)).astype(np.uint8)
        return grey

    def open(self, number: int, whole: bool) -> IO[bytes]:
        """Open a digit as a file in the PGM format."""
        return io.BytesIO(self._file(number))

    def num_bytes(self, number: int) -> int:
        """Size of the file in bytes."""
        return len(self._file(number))

    def digest(self, number: int, whole: bool) -> str:
        """The checksum of the file."""
        return f"{crc32(self._file(number)):08x}"

    def _file(self, number: int) -> bytes:
        pixels = self._grey[number]
        height, width = pixels.shape
        return b"P5 %d %d 255\n%b" % (width, height, pixels.tobytes())


@cache
def _digits() -> Any:
    from sklearn import datasets

    return datasets.load_digits()


def list_digits() -> ImageFiles:
    """All digits, from which a test split is held out."""
    source = DigitsSource()
    return ImageFiles(source, np.arange(len(source.names)), source.labels, CLASS_NAMES)
