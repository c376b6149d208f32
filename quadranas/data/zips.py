"""The source of images that are members of a zip file."""

import io
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any, ClassVar, final
from weakref import finalize

from quadranas.data import source
from quadranas.data.class_folders import ClassFolders, Member, folder_of
from quadranas.data.decoding import image_extensions
from quadranas.data.left_out import is_zipped_link, left_out_zipped
from quadranas.data.names import Names
from quadranas.files import require_readable


@final
class Archive:
    """A zip file, opened when it is needed and once per process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._opened: zipfile.ZipFile | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "_opened": None}

    def __call__(self) -> zipfile.ZipFile:
        """The opened zip file.

        Raises:
            OSError: it cannot be read.
            zipfile.BadZipFile, NotImplementedError, ValueError: it is damaged.
        """
        if self._opened is None:
            archive = zipfile.ZipFile(self.path)
            # Closes the file without a ResourceWarning even if the archive ends up in a reference
            # cycle, such as that of a caught error, in which the file may be collected first.
            assert archive.fp is not None
            finalize(archive, archive.fp.close)
            self._opened = archive
        return self._opened


@final
@dataclass(frozen=True)
class ZipSource:
    """Images that are members of a zip file; see `quadranas.data.source.Source`."""

    kind: ClassVar[str] = "zip file"

    archive: Archive
    names: Names

    @property
    def path(self) -> Path:
        """The zip file."""
        return self.archive.path

    def open(self, number: int, whole: bool) -> IO[bytes]:
        """Open a member; reading all of it also verifies its checksum, its header is cheaper."""
        archive, member = self.archive(), self.names[number]
        size = archive.getinfo(member).file_size
        if size > source.MAX_FILE_BYTES:
            raise ValueError(f"it unpacks to {size} bytes; the limit is {source.MAX_FILE_BYTES}")
        return io.BytesIO(archive.read(member)) if whole else archive.open(member)

    def num_bytes(self, number: int) -> int:
        """Size of the member in bytes, unpacked."""
        return self.archive().getinfo(self.names[number]).file_size

    def digest(self, number: int, whole: bool) -> str:
        """The checksum, which is verified whenever the image is read."""
        return f"{self.archive().getinfo(self.names[number]).CRC:08x}"


def list_zip(path: Path) -> ClassFolders:
    """List a zip file with folders of images.

    Raises:
        QuadranasError: not a regular file.
        OSError: it cannot be read.
        zipfile.BadZipFile, NotImplementedError, ValueError: no zip file, or a damaged one.
    """
    require_readable(path, "zip file")
    archive = Archive(path)
    return ClassFolders(path, folder_of(_members(archive())), partial(ZipSource, archive))


def _members(archive: zipfile.ZipFile) -> Iterator[Member]:
    extensions = image_extensions()
    for info in archive.infolist():
        parts = PurePosixPath(info.filename).parts
        if info.is_dir():
            yield parts, None
        elif info.filename.lower().endswith(extensions) and not is_zipped_link(info):
            yield parts, info.filename
        else:
            yield parts, left_out_zipped(info)
