"""A real sshd on loopback, whose board is this machine: one's own keys, port and configuration."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quadranas.latency.device import Device
from tests.measuring import board

SSHD = shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin:/usr/local/sbin")
ABSENT = "OpenSSH's server is not installed: apt-get install openssh-server" if not SSHD else ""
HOST = "board"

SERVER = """
Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host_key
PidFile none
AuthorizedKeysFile {folder}/authorized_keys
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
StrictModes no
Subsystem sftp internal-sftp
{more}
"""

CLIENT = """
Host board
    HostName 127.0.0.1
    Port {port}
    IdentityFile {folder}/key
    IdentitiesOnly yes
    UserKnownHostsFile {folder}/known_hosts
    GlobalKnownHostsFile /dev/null
"""


@dataclass
class SshBoard:
    """A board behind sshd.

    Args:
        folder: of its keys and configurations.
        port: where its server listens.
        more: further lines of the server's configuration.
    """

    folder: Path
    port: int
    more: str = ""
    server: "subprocess.Popen[bytes] | None" = None

    def make_key(self, name: str) -> None:
        """Make a pair of keys in the folder, in place of an old one."""
        path = self.folder / name
        path.unlink(missing_ok=True)
        words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)]
        subprocess.run(words, check=True, stdin=subprocess.DEVNULL)

    def trust(self) -> None:
        """Have the client know the host key of now."""
        key = (self.folder / "host_key.pub").read_text(encoding="utf-8")
        known = f"[127.0.0.1]:{self.port} {key}"
        (self.folder / "known_hosts").write_text(known, encoding="utf-8")

    def write(self) -> None:
        """Write the configurations."""
        values = {"port": self.port, "folder": self.folder, "more": self.more}
        (self.folder / "sshd_config").write_text(SERVER.format(**values), encoding="utf-8")
        (self.folder / "ssh_config").write_text(CLIENT.format(**values), encoding="utf-8")
        key = (self.folder / "key.pub").read_text(encoding="utf-8")
        (self.folder / "authorized_keys").write_text(key, encoding="utf-8")

    def start(self) -> None:
        """Start the server."""
        assert SSHD is not None
        if os.getuid() == 0:  # the folder for its unprivileged part, as a service would make it
            Path("/run/sshd").mkdir(exist_ok=True)
        log = (self.folder / "sshd.log").open("ab")
        command = [SSHD, "-D", "-e", "-f", str(self.folder / "sshd_config")]
        self.server = subprocess.Popen(command, stderr=log, start_new_session=True)
        log.close()
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
            except OSError:
                time.sleep(0.02)
            else:
                return
        raise AssertionError((self.folder / "sshd.log").read_text(encoding="utf-8"))

    def sessions(self) -> list[int]:
        """The server's processes for open connections."""
        assert self.server is not None
        tasks = Path(f"/proc/{self.server.pid}/task").glob("*/children")
        return [int(pid) for task in tasks for pid in task.read_text().split()]

    def stop(self) -> None:
        """End the server, and every connection, as a power failure would."""
        if self.server is None:
            return
        sessions = self.sessions()
        self.server.kill()
        self.server.wait()
        self.server = None
        for pid in sessions:
            self.end(pid)

    def end(self, pid: int) -> None:
        """End a connection, with the processes that it has started."""
        subprocess.run(["pkill", "-KILL", "-P", str(pid)], check=False)
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

    def reach(self, **changes: Any) -> Mapping[str, Any]:
        """How a device file reaches it."""
        files = {"ssh_config": str(self.folder / "ssh_config"), "folder": str(self.folder)}
        return {"ssh": HOST, "python": sys.executable, **files, **changes}

    def device(self, reach: Mapping[str, Any] | None = None, **changes: Any) -> Device:
        """A device that is reached there."""
        return board(reach=self.reach(**(reach or {})), **changes)


@contextmanager
def ssh_board(folder: Path, more: str = "") -> Iterator[SshBoard]:
    """A board that runs until the end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    found = SshBoard(folder, port, more)
    found.make_key("host_key")
    found.make_key("key")
    found.write()
    found.trust()
    found.start()
    try:
        yield found
    finally:
        found.stop()
