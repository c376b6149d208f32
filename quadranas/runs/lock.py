"""One writer per folder: a lock file that names its owner, released when the process ends."""

import errno
import fcntl
import getpass
import os
import socket
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from quadranas.errors import QuadranasError
from quadranas.files import cannot_write

UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""Error numbers of file systems without locks."""

MAX_OWNER_BYTES = 400


class FolderInUseError(QuadranasError):
    """Another process writes to the folder."""


class FolderLock:
    """The right to write to a folder, which one process has at a time.

    The lock is `flock` on a file, so the system releases it however the process ends; on NFS it
    also excludes processes on other hosts. The text of the file only names the owner in error
    messages. The file is removed on release.

    Args:
        path: the lock file.
        folder: the folder that it protects, for error messages.

    Attributes:
        is_supported: False if the file system has no locks: then nothing excludes other writers.
    """

    def __init__(self, path: Path, folder: Path) -> None:
        self.path, self.folder = path, folder
        self.is_supported = True
        self._handle: int | None = None

    @property
    def is_held(self) -> bool:
        """Whether this object has the lock."""
        return self._handle is not None

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(self, *raised: object) -> None:
        self.release()

    def acquire(self) -> None:
        """Take the lock, unless this object has it already.

        Raises:
            FolderInUseError: another process, or another run of this one, has it.
            QuadranasError: the file cannot be written.
        """
        while self._handle is None:
            try:
                # Not through a link, which could lead to any file.
                flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
                handle = os.open(self.path, flags, 0o666)
            except OSError as error:
                raise cannot_write(self.path, error) from error
            try:
                self.is_supported = self._lock(handle)
                # The previous owner may have removed the file since it was opened here.
                if self._is_at_path(handle):
                    os.ftruncate(handle, 0)
                    os.write(handle, f"{_owner()}\n".encode(errors="replace"))
                    self._handle = handle
            except OSError as error:
                raise cannot_write(self.path, error) from error
            finally:
                if self._handle is None:
                    os.close(handle)

    def release(self) -> None:
        """Give the lock back, if this object has it."""
        if self._handle is None:
            return
        with suppress(OSError):  # a file that is left behind locks nothing
            if self._is_at_path(self._handle):
                self.path.unlink()
        os.close(self._handle)
        self._handle = None

    def _lock(self, handle: int) -> bool:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in UNSUPPORTED:
                return False
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise
            raise FolderInUseError(
                f"{self.folder} is in use by {_read_owner(handle)}",
                "Wait until it ends or end it, or choose another --output.",
            ) from error
        return True

    def _is_at_path(self, handle: int) -> bool:
        try:
            there = self.path.lstat()
        except FileNotFoundError:
            return False
        return os.path.samestat(os.fstat(handle), there)


def _owner() -> str:
    """This process, in words."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a user without a name, as in some containers
        user = str(os.getuid())
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    return f"process {os.getpid()} of user {user} on host {socket.gethostname()} since {now}"


def _read_owner(handle: int) -> str:
    """The text of a lock file, on one line."""
    text = os.pread(handle, MAX_OWNER_BYTES, 0).decode("utf-8", "replace").strip()
    return "".join(c if c.isprintable() else "?" for c in text) or "another process"
