"""The journal of a measurement: a file to which every timing is appended immediately.

Each line is one JSON object; the first identifies the measurement. A killed process loses at most
the line it was writing.
"""

import errno
import fcntl
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Self

from quadranas.errors import QuadranasError
from quadranas.files import parse_json

Identity = Mapping[str, str | int | None]
Samples = dict[str, dict[int, list[float]]]
"""The milliseconds of all calls, by program and round."""

JSON_FAULTS = (ValueError, LookupError, TypeError, OverflowError)
"""Exceptions that reading a damaged line can raise."""


def read_identity(path: Path) -> Identity:
    """Read the identity of a journal; empty if the file has none."""
    try:
        with path.open("rb") as file:
            identity = parse_json(file.readline() or b"{}").get("identity", {})
    except (OSError, ValueError, AttributeError):
        return {}
    return identity if isinstance(identity, dict) else {}


class Journal:
    """The timings of one measurement, in memory and on disk; open in one process at a time.

    Args:
        path: the file; created if it does not exist, continued if it belongs to the same
            measurement. `None`: the timings are kept in memory only.
        identity: identifies the measurement and its conditions.

    Raises:
        QuadranasError: the file is of another measurement, damaged, in use, or not writable.
    """

    def __init__(self, path: Path | None, identity: Identity) -> None:
        self.path = path
        self.samples: Samples = {}
        self.file: IO[bytes] | None = None
        if path is None:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.file = path.open("a+b", buffering=0)
        except OSError as error:
            raise self._fault(error) from error
        try:
            self._lock(self.file)
            self._read(self.file, identity)
        except BaseException:
            self.file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.file is not None:
            self.file.close()

    def add(self, program: str, round_number: int, times_ms: list[float]) -> None:
        """Append the timings of one program in one round."""
        self._write({"program": program, "round": round_number, "ms": times_ms})
        self.samples.setdefault(program, {})[round_number] = times_ms

    def remove(self) -> None:
        """Delete the file, once its timings have been used."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    @property
    def num_timings(self) -> int:
        """Number of timings: programs times rounds."""
        return sum(map(len, self.samples.values()))

    def _lock(self, file: IO[bytes]) -> None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise QuadranasError(
                f"another process is measuring into {self.path}",
                "Wait for it, or choose another --output.",
            ) from error

    def _read(self, file: IO[bytes], identity: Identity) -> None:
        file.seek(0)
        content = file.read()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):  # an incomplete line of a killed process
            file.truncate(whole)
        lines = content[:whole].splitlines()
        if not lines:
            self._write({"identity": dict(identity)})
            return
        try:
            self._check(parse_json(lines[0])["identity"], identity)
            for line in map(parse_json, lines[1:]):
                times = _times(line["ms"])
                self.samples.setdefault(str(line["program"]), {})[int(line["round"])] = times
        except JSON_FAULTS as error:
            raise QuadranasError(
                f"{self.path} is not a journal of a measurement, or it is damaged: {error}",
                "Delete it to start again.",
            ) from error

    def _check(self, found: Any, wanted: Identity) -> None:
        if not isinstance(found, dict):
            raise TypeError("its first line does not identify a measurement")
        for key in dict.fromkeys((*wanted, *found)):
            if found.get(key) != wanted.get(key):
                raise QuadranasError(
                    f"{self.path} holds an unfinished measurement with {key} {found.get(key)!r}; "
                    f"expected {wanted.get(key)!r}",
                    "Finish that one, delete the file to start again, or choose another --output.",
                )

    def _write(self, content: object) -> None:
        if self.file is None:
            return
        try:
            line = json.dumps(content).encode() + b"\n"
            if self.file.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self.file.fileno())
        except OSError as error:
            raise self._fault(error) from error

    def _fault(self, error: OSError) -> QuadranasError:
        return QuadranasError(
            f"cannot write {self.path}: {error.strerror or error}; the timings so far are kept",
            "Free some space or choose another --output, then run the same command again.",
        )


def _times(values: Any) -> list[float]:
    times = [float(value) for value in values]
    if not times or not all(math.isfinite(ms) and ms > 0 for ms in times):
        raise ValueError(f"{values} are not times")
    return times
