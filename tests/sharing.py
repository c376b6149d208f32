"""What several test processes need is made by the first of them, and read by all."""

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import pytest


class Share(Protocol):
    """Makes a file or folder unless another process has; returns its path."""

    def __call__(self, name: str, make: Callable[[Path], object]) -> Path: ...


def share_in(factory: pytest.TempPathFactory) -> Share:
    """Share in the folder of this run of the tests, which pytest-xdist's processes lie below.

    A name is locked while it is made, so that the others wait for it. What a process that failed
    left there is made again by the next one.
    """
    folder = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    folder /= "shared"

    def share(name: str, make: Callable[[Path], object]) -> Path:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        sign = folder / f"{name.replace('/', '-')}.made"
        with sign.open("a+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not sign.stat().st_size:
                if path.is_dir():
                    shutil.rmtree(path)
                path.unlink(missing_ok=True)
                make(path)
                lock.write("made")
        return path

    return share
