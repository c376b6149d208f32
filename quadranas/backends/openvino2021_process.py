"""The caller's side of `openvino2021_main.py`: a process that answers, and that can be lost."""

import contextlib
import json
import os
import select
import signal
import subprocess
import time
import weakref
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).with_name("openvino2021_main.py")
LAST_LINES = 5
GRACE_S = 2.0
"""Time for a stopping worker to release its stick."""

LOOK_S = 0.5
"""Interval of checks whether the process is alive while waiting for an answer."""


class WorkerLostError(Exception):
    """The worker died, hung or sent an invalid answer, and was stopped."""


class RefusedError(Exception):
    """The worker answered that it cannot fulfil the request."""


class WorkerProcess:
    """A running worker.

    It runs in another session, so that Ctrl-C in the terminal does not reach it. It ends when it
    is stopped or garbage-collected, or when this process ends.

    Args:
        python: the interpreter, a path or a command. It runs isolated, without PYTHONPATH and the
            script's folder, where an `openvino.py` would hide the package.
        log: file that its stderr is appended to.
        script: the program of the worker.

    Raises:
        OSError: there is no such interpreter.
    """

    def __init__(self, python: str, log: Path, script: Path = SCRIPT) -> None:
        self._log = log
        self._num_requests = 0
        self._unread = b""
        with log.open("ab") as stderr:
            process = subprocess.Popen(
                [python, "-I", str(script)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                bufsize=0,
                start_new_session=True,
            )
        self._process = process
        self._finalizer = weakref.finalize(self, _end, process)

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def ask(self, do: str, timeout_s: float, **arguments: Any) -> dict[str, Any]:
        """Send a request and return its result.

        Raises:
            RefusedError: it was answered with an error.
            WorkerLostError: it was not answered.
        """
        self._num_requests += 1
        request = {"id": self._num_requests, "do": do, **arguments}
        try:
            self._send(request)
            answer = self._receive(time.monotonic() + timeout_s, timeout_s)
        except BaseException:  # Ctrl-C too: otherwise the next request would receive this answer
            self.stop(grace_s=0)
            raise
        if "error" in answer:
            raise RefusedError(answer["error"])
        result: dict[str, Any] = answer["result"]
        return result

    def stop(self, grace_s: float = GRACE_S) -> None:
        """End the process; kill it if it does not end by itself."""
        self._finalizer.detach()
        _end(self._process, grace_s)

    def _send(self, request: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            # Shorter than a pipe's buffer, so this does not block if the worker hangs.
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
        except (OSError, ValueError) as error:  # ValueError: stopped before
            raise WorkerLostError(self._how_it_ended()) from error

    def _receive(self, deadline: float, timeout_s: float) -> dict[str, Any]:
        """The answer to the last request."""
        line = self._read_line(deadline, timeout_s)
        try:
            answer: dict[str, Any] = json.loads(line)
            if answer["id"] == self._num_requests and ("result" in answer or "error" in answer):
                return answer
        except (ValueError, TypeError, KeyError):
            pass
        raise WorkerLostError(
            f"it answered {line[:80]!r}, which is not an answer{self._last_words()}"
        )

    def _read_line(self, deadline: float, timeout_s: float) -> bytes:
        assert self._process.stdout is not None
        stdout = self._process.stdout.fileno()
        poll = select.poll()
        poll.register(stdout, select.POLLIN)
        while b"\n" not in self._unread:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise WorkerLostError(f"no answer came in {timeout_s:g} s{self._last_words()}")
            if not poll.poll(min(left_s, LOOK_S) * 1e3):
                if _exit_code(self._process, 0) is None:
                    continue
                raise WorkerLostError(self._how_it_ended())  # a child process of it holds the pipe
            received = os.read(stdout, 65536)
            if not received:
                raise WorkerLostError(self._how_it_ended())
            self._unread += received
        line, _, self._unread = self._unread.partition(b"\n")
        return line

    def _how_it_ended(self) -> str:
        code = _exit_code(self._process, GRACE_S)
        if code is None:
            how = "it closed its pipes"
        elif code < 0:
            how = f"it was killed by {signal.Signals(-code).name}"
        else:
            how = f"it ended with exit code {code}"
        return how + self._last_words()

    def _last_words(self) -> str:
        """The end of its stderr, for an error message."""
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
        last = [line.strip() for line in lines if line.strip()][-LAST_LINES:]
        return "".join(f"\n  stderr: {line}" for line in last)


def _exit_code(process: "subprocess.Popen[bytes]", patience_s: float) -> int | None:
    """The exit code of a process that ends soon, negative for a signal; `None` if it runs on.

    The process stays a zombie, so that its id is not reused.
    """
    deadline = time.monotonic() + patience_s
    while process.returncode is None:
        end = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)
        if end is not None:
            return end.si_status if end.si_code == os.CLD_EXITED else -end.si_status
        if time.monotonic() > deadline:
            return None
        time.sleep(0.005)
    return process.returncode


def _end(process: "subprocess.Popen[bytes]", grace_s: float = GRACE_S) -> None:
    if process.returncode is not None:
        return
    assert process.stdin is not None
    assert process.stdout is not None
    with contextlib.suppress(OSError):
        process.stdin.close()  # makes it end
    try:
        _exit_code(process, grace_s)
    finally:  # also after a second Ctrl-C
        # Its child processes too: a newer OpenVINO in the wrong interpreter forks when imported.
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
