"""The interface of the sources of images: encoded images by number, read in any process."""

from pathlib import Path
from typing import IO, ClassVar, Protocol

from quadranas.data.names import Names

MAX_FILE_BYTES = 256 * 2**20
"""Maximum size of an image in an archive, unpacked."""

LAYOUT = (
    "Accepted: a folder or a zip file with train/ and test/ or val/, each with one folder of "
    "images per class; or with class folders only. Or tar shards or Parquet files with images "
    "and labels."
)


class Source(Protocol):
    """Encoded images, by number; the label of an image is known to who listed the source.

    A source is picklable: a worker process gets a copy, and opens files of its own. What it
    returns for a number never depends on earlier calls, and threads may share it.
    """

    kind: ClassVar[str]
    """What the images are stored in, in words."""

    @property
    def path(self) -> Path:
        """The folder or file, as it was given."""

    @property
    def names(self) -> Names:
        """The path of every image inside the source; no two are equal."""

    def open(self, number: int, whole: bool) -> IO[bytes]:
        """Open an image as a file; True to read and check all of it, False for its header.

        Raises:
            OSError: it cannot be read.
            Exception: what is stored is damaged; libraries have no common error class.
        """

    def num_bytes(self, number: int) -> int:
        """Size of an encoded image in bytes, or the mean of some if that is cheaper to know.

        Errors as in `open`.
        """

    def digest(self, number: int, whole: bool) -> str:
        """Digest of an encoded image; False for samples of a large one; errors as in `open`."""
