"""A board that is reached by OpenSSH: a worker and files there, and what failures mean.

`ssh` and `scp` are started with lists of arguments, without a shell here; what the shell there
gets is quoted. Keys are never asked for, and the key of the host must be known.
"""

import json
import os
import re
import shlex
import subprocess
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from quadranas.backends.worker_process import (
    SCRIPT,
    RefusedError,
    WorkerLostError,
    WorkerProcess,
)
from quadranas.errors import DeviceLostError, QuadranasError, ThrottledError, printable_lines
from quadranas.latency.device import Device

OPTIONS = {
    "BatchMode": "yes",
    "StrictHostKeyChecking": "yes",
    "ConnectTimeout": "10",
    "ServerAliveInterval": "5",
    "ServerAliveCountMax": "3",
    "ClearAllForwardings": "yes",
    "ForwardAgent": "no",
    "ForwardX11": "no",
}
"""A link without a sign of life for 15 s counts as broken."""

SAFE_FOLDER = re.compile(r"(/[A-Za-z0-9_.+-]+)*/quadranas-[A-Za-z0-9_]+")
"""Folders made here, with names that every version of scp takes as they are."""

OLDEST_PYTHON = (3, 6)

STEP_S = 60
"""Time limit of short steps."""

COPY_S = 600
"""Time limit of copying a file."""

PAUSES_S = (1, 5, 15, 30, 60)
"""How long to wait before each further attempt to connect: together, a reboot."""

LAST_LINES = 4
SSH_FAILED = 255
NO_PROGRAM = (126, 127)

PREPARE = """
import json, shutil, sys, tempfile
if sys.argv[2]:
    shutil.rmtree(sys.argv[2], ignore_errors=True)
folder = tempfile.mkdtemp(prefix="quadranas-", dir=sys.argv[1] or None)
print(json.dumps({"folder": folder, "python": list(sys.version_info[:2])}))
"""
"""Makes the folder for the worker, and removes that of one that was lost."""

CLEAR = """
import os, shutil, sys
folder = os.path.dirname(sys.argv[1])
if os.path.exists(sys.argv[1]):
    os.remove(sys.argv[1])
print(shutil.disk_usage(folder).free)
if not os.listdir(folder):
    os.rmdir(folder)
"""
"""Removes an incomplete file, and the folder if it is empty then, and prints the free space."""

REFUSALS = {
    "REMOTE HOST IDENTIFICATION HAS CHANGED": (
        "its host key has changed",
        "Find out why. If the board was set up anew, remove its old key with: ssh-keygen -R HOST, "
        "then connect once by hand with: {ssh}",
    ),
    "Host key verification failed": (
        "its host key is not known",
        "Connect once by hand, compare the fingerprint and accept it: {ssh}",
    ),
    r"Permission denied \(|Too many authentication failures": (
        "it accepts none of your keys",
        "Copy your key there with: ssh-copy-id {host}; load one with a passphrase with: ssh-add",
    ),
    "Bad configuration option|Can't open user config file|Bad owner or permissions": (
        "the configuration of OpenSSH has a fault",
        "Correct it until this works: {ssh}",
    ),
    "Could not resolve hostname.*not known": (
        "no such host is known",
        "Correct reach.ssh in the device's file, or your ~/.ssh/config.",
    ),
}
"""What does not pass by itself: what ssh says, what it means, and the next step."""


class SshHost:
    """Runs workers on a board; see `WorkerHost`.

    Args:
        device: its reach names the board and the interpreter there.
        folder: for the logs of workers.
        warn: called when the board is lost.

    Attributes:
        observed: the extremes of clocks and temperature since the backend was opened.
    """

    def __init__(
        self, device: Device, folder: Path, warn: Callable[[str], None] = lambda text: None
    ) -> None:
        reach = device.reach
        assert reach.ssh is not None
        self.device, self.address, self.warn = device, reach.ssh, warn
        self.python = (reach.python or "python3").removeprefix("~/")
        self.parent = (reach.folder or "").removeprefix("~/")
        config = (
            [] if reach.ssh_config is None else ["-F", str(Path(reach.ssh_config).expanduser())]
        )
        # Files are copied through the connection of the worker, if there is one. Users' own shared
        # connections are not used: ssh would stay in the background and keep our pipes open.
        self.shared = folder / "ssh"
        fixed = OPTIONS | {"ControlPath": str(self.shared), "ControlPersist": "no"}
        self.options = [*config, *(f"-o{key}={value}" for key, value in fixed.items())]
        self.log = folder / "worker.log"
        self.there = ""
        self.placed: dict[Path, str] = {}
        self.observed: dict[str, float] = {}

    # What a worker needs

    def start(self) -> WorkerProcess:
        """See `WorkerHost`: makes a folder there, and copies the worker into it."""
        self.placed.clear()
        self.shared.unlink(missing_ok=True)
        text = self._run_there(PREPARE, self.parent, self.there)
        try:
            found = json.loads(text.strip().splitlines()[-1])
            folder, python = str(found["folder"]), tuple(found["python"])
        except (ValueError, LookupError, TypeError) as error:
            raise self._fault(f"{self.python} there printed {text[:80]!r}") from error
        if not SAFE_FOLDER.fullmatch(folder):
            raise self._fault(
                f"its folder for temporary files is {folder!r}, which cannot be copied to",
                "Name another folder as reach.folder, of letters, digits and /._-",
            )
        if python < OLDEST_PYTHON:
            release = ".".join(map(str, python))
            raise self._fault(
                f"{self.python} there is Python {release}; needed: at least 3.6",
                "Name another one in the device's file, as in reach: {python: /usr/bin/python3}.",
            )
        self.there = folder
        script = self._copy(SCRIPT)
        words = [self.python, "-I", script, self.there]
        return WorkerProcess(self._ssh(words, "-oControlMaster=yes"), self.log)

    def place(self, path: Path) -> str:
        """See `WorkerHost`: copies the file, and one with weights beside it."""
        if path not in self.placed:
            weights = path.with_suffix(".bin")
            if path.suffix == ".xml" and weights.is_file():
                self._copy(weights)
            self.placed[path] = self._copy(path)
        return self.placed[path]

    def pause_s(self, attempt: int, loss: Exception) -> float:
        """See `WorkerHost`."""
        pause_s = PAUSES_S[min(attempt, len(PAUSES_S) - 1)]
        self.warn(f"{self._name} was lost: {loss}; connecting again in {pause_s:g} s")
        return pause_s

    def is_loss(self, refusal: RefusedError) -> bool:
        """See `WorkerHost`."""
        return False

    def lost(self, what: str, times: int, loss: Exception) -> DeviceLostError:
        """See `WorkerHost`."""
        return DeviceLostError(
            f"{self._name} was lost {times} times when asked to {what}; the last time, {loss}",
            "Check that the board runs and can be reached, then repeat the command; timings that "
            "were taken are kept.",
        )

    def explained(self, what: str, refusal: RefusedError) -> QuadranasError:
        """See `WorkerHost`."""
        if not refusal.missing:
            return QuadranasError(f"{self._name} cannot {what}: {refusal}")
        package = refusal.missing.partition(".")[0]
        pip = [self.python, "-m", "pip", "install", f"{package}{_pinned(package)}"]
        return self._fault(
            f"{self.python} there has no package {refusal.missing!r}",
            f"Install it with: {shlex.join(['ssh', self.address, shlex.join(pip)])}\n"
            "If there is no such version for its Python, install the newest one.",
        )

    def observe(self, answer: Mapping[str, Any]) -> None:
        """See `WorkerHost`: keeps extremes of clocks and temperature."""
        state = answer.get("state") or {}
        for key, name, pick in (
            ("temperature_c", "max_temperature_c", max),
            ("clock_mhz", "min_clock_mhz", min),
            ("clock_mhz", "max_clock_mhz", max),
        ):
            value = state.get(key)
            if isinstance(value, int | float):
                self.observed[name] = pick(self.observed.get(name, value), value)
        if state.get("throttled"):
            reasons = "; ".join(map(str, state["throttled"]))
            raise ThrottledError(
                f"{self._name} lowered its clock while it was measured: {reasons}",
                "Cool it or improve its power supply, or lower its clock for good "
                "(scaling_max_freq), then repeat the command.",
            )

    # Commands

    @property
    def _name(self) -> str:
        return f"device {self.device.name!r} ({self.address})"

    def _fault(self, fault: str, hint: str = "") -> QuadranasError:
        return QuadranasError(f"{self._name}: {fault}", hint)

    def _ssh(self, words: Sequence[str], master: str = "-oControlMaster=no") -> list[str]:
        """The command that runs words there.

        Args:
            master: whether other programs can use its connection.
        """
        return ["ssh", master, *self.options, "-T", "--", self.address, shlex.join(words)]

    def _run_there(self, code: str, *arguments: str) -> str:
        """Run code in the interpreter there; returns what it prints."""
        done = self._run(self._ssh([self.python, "-I", "-c", code.strip(), *arguments]), STEP_S)
        if done.returncode == 0:
            return done.stdout
        if done.returncode == SSH_FAILED:
            raise self._broken(done.stderr)
        last = _last_lines(done.stderr, 1) or f"exit code {done.returncode}"
        if done.returncode in NO_PROGRAM:
            raise self._fault(
                f"there is no interpreter {self.python!r} there: {last}",
                "Name it in the device's file, as in reach: {ssh: "
                f"{self.address}, python: /home/me/env/bin/python}}.",
            )
        raise self._fault(
            f"cannot prepare a folder there: {last}",
            "Free some space there, or name another folder as reach.folder.",
        )

    def _copy(self, path: Path) -> str:
        """Copy a file into the folder there; returns its path."""
        target = f"{self.there}/{path.name}"
        command = ["scp", "-oControlMaster=no", *self.options, "-q", "-B", "--", str(path)]
        done = self._run([*command, f"{self.address}:{target}"], COPY_S)
        if done.returncode == 0:
            return target
        if done.returncode == SSH_FAILED or "onnection" in done.stderr:
            raise self._broken(done.stderr)
        free = self._run_there(CLEAR, target).strip()
        raise self._fault(
            f"cannot copy {path.name} ({path.stat().st_size} bytes) to {self.there}, where {free} "
            f"bytes are free: {_last_lines(done.stderr, 1)}",
            "Free some space there, or name another folder as reach.folder, then repeat the "
            "command; timings that were taken are kept.",
        )

    def _run(self, command: Sequence[str], timeout_s: float) -> "subprocess.CompletedProcess[str]":
        try:
            return subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                env=os.environ | {"LC_ALL": "C"},  # the words of ssh are looked for
                timeout=timeout_s,
                start_new_session=True,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise WorkerLostError(f"{command[0]} did not end in {timeout_s:g} s") from error
        except OSError as error:
            raise self._fault(
                f"cannot start {command[0]}: {error.strerror or error}",
                "Install OpenSSH's client; on Debian and Ubuntu: apt-get install openssh-client",
            ) from error

    def _broken(self, said: str) -> Exception:
        """The error for a connection that failed, with what ssh said."""
        for pattern, (fault, hint) in REFUSALS.items():
            if re.search(pattern, said):
                by_hand = {"ssh": shlex.join(["ssh", self.address]), "host": self.address}
                lines = _last_lines(said, len(said.splitlines()))
                return self._fault(f"cannot connect, {fault}:\n{lines}", hint.format(**by_hand))
        return WorkerLostError(f"cannot connect: {_last_lines(said, LAST_LINES)}")


def _last_lines(text: str, number: int) -> str:
    lines = [line for line in printable_lines(text.replace("\r", "")).splitlines() if line.strip()]
    return "\n".join(lines[-number:])


def _pinned(package: str) -> str:
    """The version of a package that is installed here, which the files are written for."""
    try:
        return f"=={version(package).partition('+')[0]}"
    except PackageNotFoundError:
        return ""
