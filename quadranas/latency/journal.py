"""The journal of a measurement: a file to which every timing is appended immediately.

Each line is one JSON object; the first identifies the measurement. A killed process loses at most
the line it was writing.
"""

import errno
import fcntl
import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple, Self

from quadranas.errors import QuadranasError
from quadranas.files import parse_json

Identity = Mapping[str, str | int | None]
Samples = dict[str, dict[int, list[float]]]
"""The milliseconds of all calls, by program and round."""


class Calls(NamedTuple):
    """The calls of a program in a round.

    Args:
        made: number of calls that were timed.
        disturbed: number of these that lost the processor; they are kept only if all did.
    """

    made: int
    disturbed: int


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

    Attributes:
        samples: the kept timings.
        calls: by program and round, if it is known which calls lost the processor.
        begun: the first round of each program that was begun again.
        num_throttled: number of rounds that were discarded because the device lowered its clock.

    Raises:
        QuadranasError: the file is of another measurement, damaged, in use, or not writable.
    """

    def __init__(self, path: Path | None, identity: Identity) -> None:
        self.path = path
        self.samples: Samples = {}
        self.calls: dict[str, dict[int, Calls]] = {}
        self.begun: dict[str, int] = {}
        self.num_throttled = 0
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

    def add(
        self,
        program: str,
        round_number: int,
        times_ms: list[float],
        calls: Calls | None = None,
    ) -> None:
        """Append the timings of one program in one round.

        Args:
            times_ms: the kept timings.
            calls: `None` if it is unknown which calls lost the processor.
        """
        known = {} if calls is None else {"calls": calls.made, "disturbed": calls.disturbed}
        self._write({"program": program, "round": round_number, "ms": times_ms, **known})
        self._keep(program, round_number, times_ms, calls)

    def has_rounds(self, program: str, number: int) -> bool:
        """Whether the first rounds of a program are complete, since it was begun again."""
        first = self.begun.get(program, 0)
        samples = self.samples.get(program, {})
        return all(each in samples for each in range(first, first + number))

    def begin_again(self, programs: Iterable[str]) -> None:
        """Discard the timings of some programs, whose rounds follow all others."""
        first = 1 + max((max(rounds) for rounds in self.samples.values() if rounds), default=-1)
        for program in programs:
            self._write({"again": program, "round": first})
            self._discard(program, first)

    def discard_throttled(self, round_number: int) -> None:
        """Discard the timings of a round in which the device lowered its clock."""
        self._write({"throttled": round_number})
        self._discard_round(round_number)

    def _discard_round(self, round_number: int) -> None:
        self.num_throttled += 1
        for samples in self.samples.values():
            samples.pop(round_number, None)
        for calls in self.calls.values():
            calls.pop(round_number, None)

    def _keep(
        self, program: str, round_number: int, times_ms: list[float], calls: Calls | None
    ) -> None:
        self.samples.setdefault(program, {})[round_number] = times_ms
        if calls is not None:
            self.calls.setdefault(program, {})[round_number] = calls

    def _discard(self, program: str, first: int) -> None:
        self.samples.pop(program, None)
        self.calls.pop(program, None)
        self.begun[program] = first

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
                if "again" in line:
                    self._discard(str(line["again"]), int(line["round"]))
                    continue
                if "throttled" in line:
                    self._discard_round(int(line["throttled"]))
                    continue
                sample = int(line["round"]), _times(line["ms"]), _calls(line)
                self._keep(str(line["program"]), *sample)
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


def _calls(line: Mapping[str, Any]) -> Calls | None:
    if "calls" not in line:
        return None
    calls = Calls(int(line["calls"]), int(line["disturbed"]))
    if not 0 <= calls.disturbed <= calls.made or not calls.made:
        raise ValueError(f"{calls.disturbed} of {calls.made} calls are disturbed")
    return calls
